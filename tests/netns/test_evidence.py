# SPDX-License-Identifier: Apache-2.0
"""What a block rests on: open and closed ports, rules, honeypots, repeated offences, probes, and storms of blocks."""

from __future__ import annotations

import datetime
import time

import pytest

from .conftest import call
from .resident import wait_for
from .traffic import CLOSED, HOST4, OPEN, SILENT, growing

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
        name = growing(source) if number else source
        scan, block = watch.record("scan", src_ip=source), watch.record("block", src_ip=name)
        assert scan["closed_ports"] == scan["ports"] == ports
        assert (block["rule"], length_s(block)) == ("scan:closed", seconds)
        watch.record("unblock", src_ip=name)
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


def test_who_is_allowed_at_an_upgrade_is_let_in(pins, wire, resident):
    """The new kernel half takes over the blocks of the old one, but not that one."""
    watch, source = resident(wire.host, QUIET, "--pin", str(pins)), wire.somebody()
    assert wire.knock(source, 5, 6, 7, 8) == [CLOSED] * 3 + [SILENT]
    watch.kill()
    watch.write(QUIET + f"ring.size = 1M\nallow = {source}\n")
    watch.start()
    assert wire.knock(source, 8) == [CLOSED] and not watch.answer("block", "list")
    assert watch.record("unblock", src_ip=source)["reason"] == "allowed"


def test_the_end_of_a_block_is_told_at_once(watched, wire):
    watch, source = watched("block.first = 1s"), wire.somebody()
    wire.knock(source, 5, 6, 7)
    ended = watch.record("unblock", src_ip=source)
    written = time.time()
    assert written - datetime.datetime.fromisoformat(ended["timestamp"][:26] + "+00:00").timestamp() < 0.5


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


def test_drops_over_blocks_that_follow_each_other_are_all_told(watched, wire):
    """The source goes on at the end of each block, and is blocked again before anybody has looked."""
    watch = watched("block.first = 2s\nblock.duration = 2s\nblock.storm = 0\nblock.proof = none")
    source, until = wire.somebody(), time.monotonic() + 9
    while time.monotonic() < until:
        wire.knock(source, 9, 10, 11, 12, wait_s=0.01)
    wait_for(lambda: not watch.status()["blocked_now"], "the end of the last block")
    watch.record("unblock", src_ip=source)
    assert len(watch.records("block", src_ip=source)) >= 3
    assert sum(each["count"] for each in watch.records("drop")) == watch.ledger()["connections_dropped"] > 20


HOPPED = "2001:db8:5:7::"
HOPS = "block.first = 20s\nblock.proof = none"


def hop(watch, wire):
    """Two sources of a network, one after the other: its block, and somebody else in there."""
    wire.knock(HOPPED + "1", 5, 6, 7)
    assert length_s(watch.record("block", src_ip=HOPPED + "1")) == 20
    wire.knock(HOPPED + "2", 8, 9, 10)
    block = watch.record("block", src_ip=HOPPED + "/64")
    assert watch.record("scan", src_ip=HOPPED + "2") and wire.knock(HOPPED + "3", 11) == [SILENT]
    return block, HOPPED + "3"


def listed(watch):
    return {row["prefix"] for row in watch.answer("block", "list")}


def test_who_hops_within_an_ipv6_network_is_blocked_with_it(watched, wire):
    watch = watched(HOPS)
    block, other = hop(watch, wire)
    assert (length_s(block), block["rule"], block["reason"]) == (40, "scan:closed", "port scan")
    assert listed(watch) == {HOPPED + "1", HOPPED + "/64"}
    answer = watch.answer("why", other)
    assert answer["verdict"] == "blocked" and [row["prefix"] for row in answer["blocked_by"]] == [HOPPED + "/64"]
    assert (answer["offences"]["count"], answer["blocked_by"][0]["dropped"]) == (2, 1)
    assert [record["src_ip"] for record in answer["history"]] == [HOPPED + "/64"]
    assert wire.knock("2001:db8:5:8::1", 9) == [CLOSED]
    assert watch.command("block", "remove", other).returncode != 0
    assert "Removed 1 block" in watch.done("block", "remove", HOPPED + "/64")
    assert watch.record("unblock", src_ip=HOPPED + "/64")["reason"] == "removed by hand"
    assert watch.record("drop", src_ip=HOPPED + "/64")["count"] == 1
    assert wire.knock(other, 9) == [CLOSED] and listed(watch) == {HOPPED + "1"}


def test_an_ipv6_network_is_let_in_with_who_is_allowed_there_and_spared_from_then_on(watched, wire):
    watch = watched(HOPS)
    _, other = hop(watch, wire)
    watch.done("allow", "add", HOPPED + "a")
    assert watch.record("unblock", src_ip=HOPPED + "/64")["reason"] == "allowed"
    assert wire.knock(other, 12, 13, 14, 15) == [CLOSED] * 3 + [SILENT]
    assert length_s(watch.record("block", src_ip=other)) == 80
    assert wire.knock(HOPPED + "a", *range(20, 30)) == [CLOSED] * 10
    assert listed(watch) == {HOPPED + "1", other}


def test_whoever_shares_the_network_of_this_host_is_blocked_alone(watched, wire):
    watch = watched(HOPS)
    for last in (0xAA, 0xAB):
        wire.outside.ip(f"address add 2001:db8::{last:x}/64 dev v1 nodad")
        wire.knock(f"2001:db8::{last:x}", last, last + 10, last + 20)
        watch.record("block", src_ip=f"2001:db8::{last:x}")
    assert listed(watch) == {"2001:db8::aa", "2001:db8::ab"}


def test_a_network_is_blocked_for_what_one_does_who_has_answered_a_challenge(watched, wire):
    watch = watched("block.first = 2s\nxdp.mode = generic")  # out of a native veth no challenge comes
    one, two, three = (f"{HOPPED}{number}" for number in (1, 2, 3))
    for number, source in enumerate((one, two), 1):
        wire.knock(source, *range(10 * number, 10 * number + 3))
        assert length_s(watch.record("block", src_ip=source)) == 2
    wire.knock(two, 30)
    wait_for(lambda: watch.answer("why", two)["evidence"] == "proven", "the answer")
    wire.knock(three, 40, 41, 42)
    assert length_s(watch.record("block", src_ip=three)) == 2 and watch.answer("why", three)["evidence"] == "seen"
    watch.record("unblock", src_ip=two)
    wire.knock(two, 50, 51, 52)
    assert length_s(watch.record("block", src_ip=HOPPED + "/64")) == 16


def test_blocks_of_networks_outlast_a_stop_and_end_with_another_length(watched, wire):
    watch = watched(HOPS)
    _, other = hop(watch, wire)
    assert watch.stop() == 0
    watch.lines.clear()
    watch.start()
    assert HOPPED + "/64" in listed(watch) and wire.knock(other, 9) == [SILENT]
    watch.write(QUIET + HOPS + "\nblock.ipv6_prefix = 56")
    watch.done("reload")
    assert watch.record("unblock", src_ip=HOPPED + "/64")["reason"] == "block.ipv6_prefix has changed"
    assert wire.knock(other, 9) == [CLOSED] and listed(watch) == {HOPPED + "1"}


def count(records):
    return sum(each.get("count", 1) for each in records)


def test_probes_are_no_term_of_the_ledger(watched, wire):
    watch = watched()
    wire.nmap("-sN", "-e", "v1", "-S", wire.somebody(), "-p", "1000-1001", HOST4)
    assert watch.record("probe") and watch.ledger()["syns"] == 0
