# SPDX-License-Identifier: Apache-2.0
"""Scrapes of a running resident: well-formed, complete from the start, in step with status, and never in its way."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from packetwatch import metricnames, privileges

from .resident import TERMS
from .traffic import CLOSED, SILENT, listen

SETTINGS = "interface = v0 gone0\nlog.format = json\nmetrics.listen = 127.0.0.1:9773 [::1]:9773\n"
PER_ACCOUNT = ("syns", *TERMS)


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS)


def scrape(wire, url="http://127.0.0.1:9773/metrics"):
    with wire.host.enter(), urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def samples(wire):
    """(name, labels as a sorted tuple) -> value."""
    families = text_string_to_metric_families(scrape(wire))
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(found, name, **labels):
    return found[name, tuple(sorted(labels.items()))]


def total(found, name, **labels):
    """Over all samples of a name that bear these labels."""
    return sum(v for (n, l), v in found.items() if n == name and labels.items() <= dict(l).items())


def test_every_metric_is_there_from_the_start_at_zero(watch, wire):
    found = samples(wire)
    names = {name for name, _ in found}
    suffix = {"counter": "_total", "gauge": "", "info": "_info"}
    assert {row.name + suffix[row.kind] for row in metricnames.METRICS} <= names
    for term in PER_ACCOUNT:
        for family in ("ipv4", "ipv6"):
            assert total(found, f"packetwatch_{term}_total", interface="v0", family=family) == 0
    dropped = {dict(labels)["reason"] for name, labels in found if name == "packetwatch_connections_dropped_total"}
    assert dropped == {"scan", "list", "challenge"}
    assert value(found, "packetwatch_connections_lost_total", interface="v0", family="ipv4", where="ring") == 0
    assert value(found, "packetwatch_blocks_total", reason="scan") == 0
    assert value(found, "packetwatch_interface_attached", interface="v0") == 1
    assert value(found, "packetwatch_interface_attached", interface="gone0") == 0
    assert value(found, "packetwatch_interface_info", interface="v0", mode="native") == 1
    assert value(found, "packetwatch_mode", mode="enforce") == 1
    assert value(found, "packetwatch_mode", mode="observe") == 0
    assert value(found, "packetwatch_config_last_reload_successful") == 1
    assert abs(value(found, "packetwatch_config_last_reload_success_timestamp_seconds") - time.time()) < 120
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names


def test_promtool_finds_no_fault(watch, wire):
    result = subprocess.run(["promtool", "check", "metrics"], input=scrape(wire), capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_at_rest_the_account_balances_and_equals_status(watch, wire):
    scanner, other = wire.somebody(), wire.somebody(ipv6=True)
    assert wire.knock(scanner, 1, 2, 3, 4, 5)[-1] == SILENT
    assert wire.knock(other, 1, 2) == [CLOSED] * 2
    watch.done("block", "add", other)
    assert wire.knock(other, 3) == [SILENT]
    watch.ledger()
    found, status = samples(wire), watch.answer("status")
    for family in ("ipv4", "ipv6"):
        terms = [total(found, f"packetwatch_{name}_total", interface="v0", family=family) for name in PER_ACCOUNT]
        assert terms[0] == sum(terms[1:]) > 0
    for name in PER_ACCOUNT:
        assert total(found, f"packetwatch_{name}_total") == status["ledger"][name] == status["by_interface"]["v0"][name]
    reasons = ("scan", "challenge")  # two are challenged, and in native mode lost on the way
    dropped = [value(found, "packetwatch_connections_dropped_total", interface="v0", family="ipv4", reason=reason)
               for reason in reasons]
    assert dropped == [0, 2]
    assert value(found, "packetwatch_connections_dropped_total", interface="v0", family="ipv6", reason="list") == 1
    assert total(found, "packetwatch_scans_total") == status["scans"] == 1
    assert value(found, "packetwatch_blocks_total", reason="manual") == 1
    assert value(found, "packetwatch_blocked_sources") == status["blocked_now"] == 2
    assert value(found, "conn_count_total") == status["ledger"]["syns"]
    for table, row in status["tables"].items():
        assert value(found, "packetwatch_table_capacity", table=table) == row["capacity"]
    assert not any(scanner in str(labels) or other in str(labels) for _, labels in found)


def test_both_addresses_answer_and_no_other_path(watch, wire):
    assert "packetwatch_syns_total" in scrape(wire, "http://[::1]:9773/metrics")
    with wire.host.enter():
        link = http.client.HTTPConnection("127.0.0.1", 9773, timeout=5)
        link.request("GET", "/etc/passwd")
        assert link.getresponse().status == 404
        link.close()
    with wire.outside.enter(), pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 9773), 0.3)


@pytest.mark.parametrize("address", ("198.51.100.9", "2001:db8:9::9"))
def test_an_address_may_come_after_the_start(resident, netns, address):
    """As at boot: the service is there before the network is."""
    place = f"[{address}]:9773" if ":" in address else f"{address}:9773"
    host = netns()
    watch = resident(host, f"interface = lo\nlog.format = json\nmetrics.listen = {place}\n")
    assert watch.status()["metrics"] == [place]
    host.run(["ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])])
    with host.enter():  # the kernel gives it a route a little later
        assert b"packetwatch_syns_total" in patient(lambda: read(f"http://{place}/metrics"))


def read(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def test_slow_and_many_clients_cost_nothing(watch, wire):
    """They hold bounded threads for a bounded time; the monitor and who scrapes after them do not notice."""
    with contextlib.ExitStack() as open_links, wire.host.enter():
        for _ in range(40):
            link = open_links.enter_context(socket.socket())
            link.setblocking(False)
            link.connect_ex(("127.0.0.1", 9773))
        time.sleep(0.3)
        source, begun = wire.somebody(), time.monotonic()
        assert wire.knock(source, 1, 2, 3, 4)[-1] == SILENT
        watch.record("block", src_ip=source)
        assert watch.status()["protecting"] and time.monotonic() - begun < 1.5
        assert len(threads(watch.pid)) < 30
    assert "packetwatch_syns_total" in patient(lambda: scrape(wire))


def threads(pid):
    return os.listdir(f"/proc/{pid}/task")


def test_no_thread_keeps_what_only_the_start_needs(watch, wire):
    """Capabilities are a thread's own: those that answer the network must not have been there before."""
    scrape(wire)
    every = list(statuses(watch.pid))
    assert len(every) >= 3
    assert {re.search(r"NoNewPrivs:\s+(\d)", status)[1] for status in every} == {"1"}
    held = [int(re.search(r"CapPrm:\s+(\w+)", status)[1], 16) for status in every]
    assert set(held) <= {0, sum(1 << number for number in privileges.NEEDED)}
    assert 0 in held, "what looks names up"


def statuses(pid):
    """Of every thread that is still there."""
    for thread in threads(pid):
        try:
            yield Path(f"/proc/{pid}/task/{thread}/status").read_text()
        except FileNotFoundError:
            pass  # one that answered a scrape


def patient(act, timeout_s=8):
    """What it returns once it does not fail."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return act()
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_addresses_change_with_a_reload(watch, wire):
    watch.write(SETTINGS.replace("127.0.0.1:9773 [::1]:9773", "127.0.0.1:9774"))
    watch.done("reload")
    assert "packetwatch_syns_total" in scrape(wire, "http://127.0.0.1:9774/metrics")
    with pytest.raises(OSError):
        scrape(wire)
    watch.write(SETTINGS.replace("127.0.0.1:9773 [::1]:9773", "off"))
    watch.done("reload")
    assert watch.status()["metrics"] == []
    with listen(wire.host, "127.0.0.1", 9774):
        pass  # it has let go
    watch.write(SETTINGS)
    watch.done("reload")
    assert "packetwatch_syns_total" in scrape(wire)


def test_a_scrape_during_a_flood_answers(watch, wire):
    before = watch.ledger()["syns"]
    wire.flood(100_000)
    begun = time.monotonic()
    found = samples(wire)
    assert time.monotonic() - begun < 2
    assert total(found, "packetwatch_syns_total") > before
    assert watch.ledger()["syns"] == before + 100_000
