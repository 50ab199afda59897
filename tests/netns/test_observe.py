# SPDX-License-Identifier: Apache-2.0
"""Observe mode: the same judgement, nothing dropped; and the way from one mode to the other."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from .resident import CONTROL, environment, wait_for
from .traffic import CLOSED, OPEN, SILENT

SETTINGS = "interface = v0\nlog.format = json\nmode = observe\nmetrics.listen = 127.0.0.1:9773\n"


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def web(wire):
    with wire.listen(80), wire.listen(80, ipv6=True):
        yield


@pytest.fixture(autouse=True)
def observing(watch):
    yield
    watch.done("mode", "observe")


def would(watch, *more):
    return {entry["prefix"]: entry for entry in watch.answer("block", "list", "--would", *more)}


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_nothing_is_dropped_and_all_is_told(watch, wire, ipv6):
    source, before = wire.somebody(ipv6), watch.ledger()
    assert wire.knock(source, 1, 2, 3, 4, 80) == [CLOSED] * 4 + [OPEN]
    assert watch.record("scan", src_ip=source)["mode"] == "observe"
    block = watch.record("block", src_ip=source)
    assert block["mode"] == "observe" and block["reason"] == "port scan" and block["until"]
    wait_for(lambda: len(watch.records("connection", src_ip=source)) == 5, "all records")
    modes = [record.get("mode") for record in watch.records("connection", src_ip=source)]
    assert modes == [None, None, None, "observe", "observe"]
    after = watch.ledger()
    assert after["connections"] - before["connections"] == 5
    assert after["connections_dropped"] == before["connections_dropped"] == 0


def test_whom_it_would_have_blocked(watch, wire):
    source = wire.somebody()
    wire.knock(source, 1, 2, 3, 4, 5)
    entry = would(watch, "--since", "24h")[source]
    assert entry["would"] is True and entry["reason"] == "port scan" and entry["dropped"] == 2
    time.sleep(1.1)
    assert source not in would(watch, "--since", "1s") and source in would(watch)
    assert f"{source} " in watch.done("block", "list", "--would", "--since", "24h")


def test_text_says_would(watch, wire):
    source = wire.somebody()
    command = [*CONTROL, "tail", "--socket", str(watch.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as tail:
        while watch.status()["ledger"] and not tailed(watch):
            time.sleep(0.05)
        wire.knock(source, 1, 2, 3, 4)
        lines = [tail.stdout.readline()[21:].rstrip() for _ in range(6)]
        tail.terminate()
    assert lines[4] == f"Would block {source} for 1m (port scan)"
    assert lines[5].startswith(f"Would block connection: {source}:")


def tailed(watch):
    """Whether someone follows the records: seen in what they cost, a place at the socket."""
    listing = subprocess.run(["ss", "-xH", "src", str(watch.socket)], capture_output=True, text=True, check=True)
    return "ESTAB" in listing.stdout


def test_status_says_that_nothing_is_dropped(watch):
    assert "observing only, nothing is dropped" in watch.done("status")
    status = watch.answer("status")
    assert status["mode"] == "observe" and status["protecting"] is False and status["would_drop"] > 0


def test_the_metrics_bear_the_mode(watch, wire):
    text = wire.host.run(["curl", "-s", "http://127.0.0.1:9773/metrics"]).stdout
    assert 'packetwatch_mode{mode="observe"} 1.0' in text and 'packetwatch_mode{mode="enforce"} 0.0' in text
    assert 'packetwatch_connections_would_drop_total{family="ipv4",interface="v0"}' in text


def test_enforce_begins_with_an_empty_block_table(watch, wire):
    source = wire.somebody()
    wire.knock(source, 1, 2, 3)
    assert source in would(watch)
    answer = watch.answer("mode", "enforce")
    assert answer["mode"] == "enforce" and answer["forgotten"] >= 1
    assert watch.answer("block", "list") == []
    assert wire.knock(source, 80) == [OPEN]
    assert wire.knock(source, 1, 2, 80)[-1] == SILENT  # 80, 1, 2 are three


def test_enforce_may_keep_what_observe_has_found(watch, wire):
    source = wire.somebody()
    assert wire.knock(source, 1, 2, 3, 80)[-1] == OPEN
    assert watch.answer("mode", "enforce", "--keep")["forgotten"] == 0
    assert wire.knock(source, 80) == [SILENT]
    assert source in {entry["prefix"] for entry in watch.answer("block", "list")}
    assert watch.command("block", "list", "--would").returncode == 1


def test_lists_are_observed_as_well(watch, wire):
    source = wire.somebody()
    watch.done("block", "add", source)
    assert wire.knock(source, 80) == [OPEN]
    assert watch.record("connection", src_ip=source)["mode"] == "observe"
    watch.done("block", "remove", source)


def test_a_mode_set_by_hand_outlives_reload_and_restart(resident, netns, veth):
    host, outside = netns(), netns()
    veth(host, "v0", outside, "v1")
    watch = resident(host, "interface = v0\nlog.format = json\nmetrics.listen = off\nmode = enforce")
    watch.done("mode", "observe")
    watch.done("reload")
    assert watch.status()["mode"] == "observe"
    assert watch.stop() == 0
    watch.start()
    status = watch.status()
    assert (status["mode"], status["mode_origin"]) == ("observe", "set by hand")
    watch.done("mode", "enforce")
    assert json.loads(watch.lines[-1])["event_type"] == "start" and watch.status()["mode_origin"] == "configuration"
