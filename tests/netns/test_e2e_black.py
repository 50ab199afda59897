# SPDX-License-Identifier: Apache-2.0
"""The monitor against the outside, with what a user has: the command line, the log and TCP. Looks into nothing."""

from __future__ import annotations

import re
import time

import pytest

from .resident import wait_for
from .traffic import CLOSED, HOST4, HOST6, OPEN, OUT4, SILENT, begin

SETTINGS = """
interface = v0
log.format = text
metrics.listen = off
scan.window = 2s
block.duration = 1h
allow = 198.51.100.200
"""
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: "


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def web(wire):
    """One port is open."""
    with wire.listen(80), wire.listen(80, ipv6=True):
        yield


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    return wire.somebody(ipv6=request.param == "IPv6")


def blocked(watch):
    return [entry["prefix"] for entry in watch.answer("block", "list")]


def end(address, port):
    return re.escape(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")


def test_a_connection_is_one_line(watch, wire, source):
    assert wire.knock(source, 80) == [OPEN]
    to = HOST6 if ":" in source else HOST4
    host = re.escape(f"[{source}]" if ":" in source else source)
    watch.line(TIME + f"New connection: {host}:\\d+ -> {end(to, 80)}")


def test_a_fast_scan_is_blocked_after_its_third_port(watch, wire, source):
    assert wire.knock(source, 1, 2, 80, 80, 80) == [CLOSED, CLOSED, OPEN, SILENT, SILENT]
    to = HOST6 if ":" in source else HOST4
    watch.line(TIME + f"Port scan detected: {re.escape(source)} -> {re.escape(to)} on ports 1,2,80")
    watch.line(TIME + f"Blocked {re.escape(source)} for 1m \\(port scan\\)")
    assert source in blocked(watch)


def test_a_slow_scan_is_not_blocked(watch, wire, source):
    for port in (21, 22, 23, 24):
        assert wire.knock(source, port) == [CLOSED]
        time.sleep(1.05)
    assert wire.knock(source, 80) == [OPEN]
    assert source not in blocked(watch)


def test_hammering_one_port_is_not_blocked(watch, wire, source):
    assert wire.knock(source, *[80] * 60) == [OPEN] * 60
    assert wire.knock(source, 81, 80) == [CLOSED, OPEN]
    assert source not in blocked(watch)


def test_an_allowed_source_is_never_blocked(watch, wire):
    assert set(wire.knock("198.51.100.200", *range(1, 30))) == {CLOSED}
    assert wire.knock("198.51.100.200", 80) == [OPEN]
    assert "198.51.100.200" not in blocked(watch)


def test_one_source_blocked_is_another_not(watch, wire):
    bad, good = wire.somebody(), wire.somebody()
    assert wire.knock(bad, 5, 6, 7, 80)[-1] == SILENT
    assert wire.knock(good, 80) == [OPEN]


def test_connections_that_exist_live_on(watch, wire):
    source = wire.somebody()
    with wire.listen(8080) as listener, wire.outside.enter(), begin(source, HOST4, 8080) as ours:
        theirs = listener.accept()[0]
        assert wire.knock(source, 5, 6, 7, 80)[-1] == SILENT
        ours.setblocking(True)
        ours.sendall(b"still here")
        assert theirs.recv(100) == b"still here"
        theirs.close()


@pytest.mark.parametrize("kind", ["-sS", "-sT"])
def test_nmap_is_stopped(watch, wire, kind):
    """What it would ask for next stays unseen."""
    source = wire.somebody()
    wire.outside.ip(f"route change 192.0.2.0/24 dev v1 src {source}")  # whom a connect scan comes from
    try:
        printed = wire.nmap(kind, "-r", "-p", "1000-1020,80", HOST4)
    finally:
        wire.outside.ip(f"route change 192.0.2.0/24 dev v1 src {OUT4}")
    assert watch.line(TIME + f"Port scan detected: {re.escape(source)} -> {HOST4} on ports ([\\d,]+)")
    assert printed.count("closed") <= 3 and "filtered" in printed
    assert source in blocked(watch)
    assert wire.knock(source, 80) == [SILENT]


def test_nmap_over_ipv6_is_stopped(watch, wire):
    source = wire.somebody(ipv6=True)
    wire.nmap("-6", "-sS", "-e", "v1", "-S", source, "-p", "1000-1020", HOST6)
    watch.line(TIME + f"Port scan detected: {source} -> {HOST6} on ports [\\d,]+")
    assert wire.knock(source, 80) == [SILENT]


def test_a_slow_nmap_is_not_stopped(watch, wire):
    source = wire.somebody()
    wire.nmap("-sS", "-e", "v1", "-S", source, "--scan-delay", "1100ms", "-r", "-p", "31,32,33,80", HOST4)
    assert wire.knock(source, 80) == [OPEN]
    assert source not in blocked(watch)


def test_unblocked_by_hand(watch, wire):
    source = wire.somebody()
    assert wire.knock(source, 5, 6, 7, 80)[-1] == SILENT
    assert "Removed 1 block" in watch.done("block", "remove", source)
    watch.line(TIME + f"Unblocked {re.escape(source)} \\(removed by hand\\)")
    assert wire.knock(source, 80) == [OPEN]


def test_the_status_says_that_it_works(watch):
    printed = watch.done("status")
    assert re.search(r"^Protection +working \(mode enforce", printed, re.M)
    assert re.search(r"^Interfaces +v0: watched, XDP mode native", printed, re.M)
    assert wait_for(lambda: watch.answer("status")["ledger"]["connections_dropped"] > 10, "drops")
