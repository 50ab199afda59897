# SPDX-License-Identifier: Apache-2.0
"""What a block rests on: open and closed ports, rules, honeypots, repeated offences, probes, and storms of blocks."""

from __future__ import annotations

import datetime

import pytest

from .conftest import call
from .resident import wait_for
from .traffic import CLOSED, HOST4, OPEN, SILENT

QUIET = "interface = v0\nlog.format = json\nmetrics.listen = off\n"


@pytest.fixture
def watched(resident, wire):
    """Starts one with settings of its own."""
    return lambda settings="": resident(wire.host, QUIET + settings)


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    return wire.somebody(ipv6=request.param == "IPv6")


@pytest.fixture
def services(wire):
    """ssh, http and https."""
    with wire.listen(22), wire.listen(80), wire.listen(443):
        yield 22, 80, 443


def length_s(block):
    """How long a block lasts."""
    begin, end = (datetime.datetime.fromisoformat(block[name][:26]) for name in ("timestamp", "until"))
    return round((end - begin).total_seconds())


def test_an_administrator_is_blocked_for_a_minute_at_most_however_often(watched, wire, services):
    watch, source = watched("block.first = 1s\nblock.duration = 1h"), wire.somebody()
    for _ in range(2):
        assert wire.knock(source, *services) == [OPEN] * 3
        scan, block = watch.record("scan", src_ip=source), watch.record("block", src_ip=source)
        assert "closed_ports" not in scan and "rule" not in block and length_s(block) == 1
        watch.record("unblock", src_ip=source)
        watch.lines.clear()
    assert watch.running


def test_closed_ports_are_an_offence_that_doubles_the_next_block(watched, wire, source):
    watch = watched("block.first = 1s\nblock.duration = 3s\nblock.proof = none")
    for number, seconds in enumerate((1, 2, 3, 3)):
        ports = list(range(10 * number + 1, 10 * number + 4))
        assert wire.knock(source, *ports, 9) == [CLOSED] * 3 + [SILENT]
        scan, block = watch.record("scan", src_ip=source), watch.record("block", src_ip=source)
        assert scan["closed_ports"] == scan["ports"] == ports
        assert (block["rule"], length_s(block)) == ("scan:closed", seconds)
        watch.record("unblock", src_ip=source)
        watch.lines.clear()


def test_a_rule_blocks_without_a_scan_and_names_its_ports(watched, wire):
    watch, source = watched("scan.ports = 9\nblock.rules = 2:closed:1h 4:all:10s"), wire.somebody()
    with wire.listen(22), wire.listen(80):
        assert wire.knock(source, 5, 22, 80, 6, 7) == [CLOSED, OPEN, OPEN, CLOSED, SILENT]
    block = watch.record("block", src_ip=source)
    assert (block["rule"], block["ports"], block["reason"]) == ("2:closed:1h", [5, 6], "slow scan")
    other = wire.somebody()
    with wire.listen(22), wire.listen(80), wire.listen(443):
        assert wire.knock(other, 5, 22, 80, 443, 443) == [CLOSED, OPEN, OPEN, OPEN, SILENT]
    assert watch.record("block", src_ip=other)["rule"] == "4:all:10s"
    assert not watch.records("scan")


def test_a_rule_that_is_gone_at_the_next_start_is_told_all_the_same(tmp_path, watched, wire, resident):
    """Its alert waits in the ring while nobody is there."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    call("mount", "-t", "bpf", "none", str(folder))
    try:
        watch = resident(wire.host, QUIET + "block.rules = 1:closed:10m", "--pin", str(folder / "pins"))
        watch.kill()
        source = wire.somebody()
        assert wire.knock(source, 5, 6) == [CLOSED, SILENT]
        watch.write(QUIET + "block.rules = off")
        watch.start()
        assert watch.record("block", src_ip=source)["rule"] == "1:closed:10m"
        assert watch.stop() == 0
    finally:
        call("umount", str(folder))


def test_a_honeypot_port_blocks_at_once(watched, wire):
    watch, source = watched("block.honeypot_ports = 23 2000-2100"), wire.somebody()
    assert wire.knock(source, 2050, 80) == [CLOSED, SILENT]
    block = watch.record("block", src_ip=source)
    assert (block["rule"], block["reason"], block["ports"]) == ("honeypot", "honeypot", [2050])


def test_where_closed_ports_alone_count_open_ones_are_no_scan(watched, wire, services):
    watch, source = watched("scan.count = closed"), wire.somebody()
    assert wire.knock(source, *services, *services) == [OPEN] * 6
    assert wire.knock(source, 5, 6, 7, 22) == [CLOSED] * 3 + [SILENT]
    assert watch.record("scan", src_ip=source)["ports"] == [5, 6, 7]


def test_ports_that_others_serve_are_said_to_be_open(watched, wire):
    watch, source = watched("open_ports = 5-7"), wire.somebody()
    wire.knock(source, 5, 6, 7)
    assert "rule" not in watch.record("block", src_ip=source)
    watch.write(QUIET + "open_ports = 5-6")
    watch.done("reload")
    source = wire.somebody()
    wire.knock(source, 5, 6, 7)
    assert watch.record("scan", src_ip=source)["closed_ports"] == [7]


def test_a_storm_of_blocks_is_told_and_stopped(watched, wire):
    watch = watched("block.storm = 3")
    sources = [wire.somebody() for _ in range(5)]
    for port, source in enumerate(sources, 7):  # with a port of its own: else they are one event
        wire.knock(source, 5, 6, port)
    storm = watch.record("storm")
    assert "block.storm" in storm["message"]
    assert {row["prefix"] for row in watch.answer("block", "list")} == set(sources[:3])
    assert watch.record("scan", src_ip=sources[4]) and wire.knock(sources[4], 8) == [CLOSED]


def test_what_waits_for_others_like_it_is_told_at_the_stop(watched, wire):
    watch = watched()
    wire.nmap("-sS", "-D", "RND:10", "-e", "v1", "-S", wire.somebody(), "-p", "1000-1002", HOST4)
    assert watch.status()["blocked_now"] == 11 and watch.stop() == 0
    wait_for(lambda: watch.records("stop"), "the end")
    for kind in ("scan", "block"):
        assert count(watch.records(kind)) == 11


def test_decoys_end_together_as_they_began(watched, wire):
    watch = watched("block.first = 1s")
    wire.nmap("-sS", "-D", "RND:20", "-e", "v1", "-S", wire.somebody(), "-p", "1000-1010", HOST4)
    ends = wait_for(lambda: (found := watch.records("unblock")) and count(found) == 21 and found, "the ends")
    assert len(ends) <= 6 and count(watch.records("block")) == 21 and watch.status()["blocked_now"] == 0
    drops = watch.records("drop")
    assert len(drops) <= 6 and sum(each["count"] for each in drops) == watch.ledger()["connections_dropped"] == 21 * 8


def count(records):
    return sum(each.get("count", 1) for each in records)


def test_probes_are_no_term_of_the_ledger(watched, wire):
    watch = watched()
    wire.nmap("-sN", "-e", "v1", "-S", wire.somebody(), "-p", "1000-1001", HOST4)
    assert watch.record("probe") and watch.ledger()["syns"] == 0
