# SPDX-License-Identifier: Apache-2.0
"""Settings read anew while it runs: good ones without a gap, bad ones without effect; and what a restart keeps."""

from __future__ import annotations

import json
import signal

import pytest

from .resident import wait_for
from .traffic import CLOSED, OPEN, OUT4, SILENT, listen

BASE = "interface = v0\nlog.format = json\nmetrics.listen = 127.0.0.1:9773\n"


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, BASE)


@pytest.fixture(autouse=True)
def as_before(watch):
    yield
    watch.write(BASE)
    watch.done("reload")


def reload(watch, settings):
    watch.write(BASE + settings)
    return watch.answer("reload")


def seat(watch):
    """What a re-attach or a new program would change."""
    (row,) = watch.status()["interfaces"]
    return row["link_id"], row["program_id"]


def test_the_rule_changes_with_the_next_packet(watch, wire):
    before, source = seat(watch), wire.somebody()
    assert wire.knock(source, 1, 2) == [CLOSED] * 2
    assert reload(watch, "scan.ports = 4")["changed"] == ["scan.ports"]
    assert wire.knock(source, 3, 4, 5) == [CLOSED, CLOSED, SILENT]
    for_ever = "block.first = forever\nblock.duration = forever\nblock.proof = none"
    changed = ["scan.ports", "block.first", "block.duration", "block.proof"]
    assert reload(watch, f"scan.ports = 2\n{for_ever}")["changed"] == changed
    other = wire.somebody()
    assert wire.knock(other, 1, 2, 3) == [CLOSED, CLOSED, SILENT]
    assert watch.record("block", src_ip=other)["until"] == "forever"
    assert wire.knock(source, 1) == [SILENT]  # blocks stay
    assert seat(watch) == before


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_lists_change_by_their_difference(watch, wire, ipv6):
    source, other = wire.somebody(ipv6), wire.somebody(ipv6)
    network = "2001:db8:5::/48" if ipv6 else "198.51.100.0/24"
    with wire.listen(80, ipv6):
        reload(watch, f"block = {network}\nallow = {source}")
        assert wire.knock(source, 1, 2, 3, 80)[-1] == OPEN
        assert wire.knock(other, 80) == [SILENT]
        assert watch.command("block", "remove", network).returncode == 4
        reload(watch, f"block = {source}")
        assert wire.knock(source, 80) == [SILENT]
        assert wire.knock(other, 80) == [OPEN]
        assert wire.knock(OUT4, 80) == [CLOSED if ipv6 else OPEN]


def test_a_hangup_reloads(watch, wire):
    source = wire.somebody()
    watch.write(BASE + f"block = {source}")
    watch.send(signal.SIGHUP)
    wait_for(lambda: watch.answer("block", "list"), "the new list")
    assert wire.knock(source, 80) == [SILENT]


def test_all_faults_are_told_and_nothing_changes(watch, wire):
    good = reload(watch, "scan.ports = 2")
    assert good["changed"] == ["scan.ports"]
    watch.write(BASE + "scan.ports = 2\nscan.window = 60\nscan.prots = 3\nblock = 192.0.2.1/24\nmode = obsreve")
    result = watch.command("reload")
    assert result.returncode == 78
    for words in ("'60'", "did you mean ports", "192.0.2.0/24", "one of enforce, observe"):
        assert words in result.stderr, result.stderr
    assert all(line.startswith((f"{watch.config}:", "packetwatch: ")) for line in result.stderr.splitlines())
    config = watch.status()["config"]
    assert not config["ok"] and "the last reload failed" in config["error"]
    assert "FAULTY" in watch.done("status")
    source = wire.somebody()
    assert wire.knock(source, 1, 2, 3)[-1] == SILENT  # 2 ports still suffice
    assert reload(watch, "")["changed"] == ["scan.ports"]
    assert watch.status()["config"]["ok"]


def test_a_hangup_with_faults_is_told_on_stderr(watch):
    watch.write(BASE + "scan.ports = many")
    watch.send(signal.SIGHUP)
    wait_for(lambda: "reload failed, the running settings stay" in watch.errors(), "the line")
    assert not watch.status()["config"]["ok"] and watch.status()["protecting"]


def test_an_address_in_use_leaves_the_old_one(watch, wire):
    with listen(wire.host, "127.0.0.1", 9774):
        watch.write(BASE.replace("9773", "9774") + "scan.ports = 2")
        result = watch.command("reload")
    assert result.returncode == 1 and "127.0.0.1:9774" in result.stderr and "in use" in result.stderr
    assert watch.status()["metrics"] == ["127.0.0.1:9773"]
    assert "packetwatch_syns" in wire.host.run(["curl", "-s", "http://127.0.0.1:9773/metrics"]).stdout
    assert reload(watch, "")["changed"] == []  # scan.ports was not taken either


def test_a_log_file_that_cannot_be_is_refused(watch):
    watch.write(BASE + "log.file = /proc/nowhere/log.json\nscan.ports = 2")
    result = watch.command("reload")
    assert result.returncode == 1 and "/proc/nowhere/log.json" in result.stderr
    assert reload(watch, "")["changed"] == []


def test_what_needs_a_restart_is_said(watch):
    answer = reload(watch, "ring.size = 8M\nscan.ports = 5")
    assert answer == {"changed": ["scan.ports", "ring.size"], "restart_needed": ["ring.size"]}
    assert watch.status()["config"]["restart_needed"] == ["ring.size"]
    watch.write(BASE + "ring.size = 8M")  # scan.ports changes back, ring.size still waits
    assert "A restart is needed for ring.size." in watch.done("reload")


def test_the_mode_of_xdp_changes(watch, wire):
    native = seat(watch)
    reload(watch, "xdp.mode = generic\nblock.proof = none")  # out of a generic program a challenge would be answered
    assert watch.status()["interfaces"][0]["mode"] == "generic" and seat(watch)[0] != native[0]
    source = wire.somebody()
    assert wire.knock(source, 1, 2, 3, 4)[-1] == SILENT
    assert "v0: watched, XDP mode generic" in watch.done("status")
    assert 'packetwatch_interface_info{interface="v0",mode="generic"} 1.0' in wire.host.run(
        ["curl", "-s", "http://127.0.0.1:9773/metrics"]).stdout


def test_blocks_and_lists_by_hand_outlive_a_restart(resident, netns, veth):
    host, outside = netns(), netns()
    veth(host, "v0", outside, "v1")
    watch = resident(host, "interface = v0\nlog.format = json\nmetrics.listen = off")
    watch.done("block", "add", "203.0.113.0/24", "--duration", "2h", "--reason", "kept")
    watch.done("block", "add", "2001:db8:9::/48", "--duration", "forever")
    watch.done("allow", "add", "203.0.113.7")
    before = watch.answer("block", "list")
    assert watch.stop() == 0
    watch.start()
    assert watch.answer("block", "list") == before
    assert {"prefix": "203.0.113.7", "reason": "manual"} in watch.answer("allow", "list")


def test_what_was_blocked_by_hand_before_the_boot_is_listed(resident, netns):
    """Its beginning is below 0 on this boot's clock."""
    watch = resident(netns(), "interface = gone0\nmetrics.listen = off\nlog.format = json")
    watch.done("block", "add", "198.51.100.7")
    watch.stop()
    file = watch.state / "state.json"
    saved = json.loads(file.read_text())
    saved["manual_blocks"][0][2] = 10**18
    file.write_text(json.dumps(saved))
    watch.start()
    assert [row["prefix"] for row in watch.answer("block", "list")] == ["198.51.100.7"]
    assert watch.answer("block", "list", "--since", "1h") == []
