# SPDX-License-Identifier: Apache-2.0
"""The same stories as test_e2e_black.py, seen from within: trackers, blocks and lists in the maps, counters."""

from __future__ import annotations

import os
import time

import pytest

from packetwatch import address, event, libbpf, program, rules
from packetwatch.kernel import BlockTable, SourceTable

from .traffic import CLOSED, HOST4, HOST6, OPEN, SILENT

SETTINGS = """
interface = v0
log.format = json
metrics.listen = off
scan.window = 2s
block.duration = 10m
allow = 198.51.100.200
table.trackers = 4096
table.blocks = 1024
"""
SECOND = 1_000_000_000
TRACKERS = 4096


class Maps:
    """The tables of a running resident, through descriptors of their own."""

    def __init__(self, resident):
        self.fds = resident.maps()
        self.blocks = BlockTable(self.fds["blocks"], self.fds["wide_blocks"])
        self.sources = SourceTable(self.fds["sources"], self.fds["marks"])

    def close(self):
        for fd in self.fds.values():
            os.close(fd)

    def ports(self, source):
        """Of the source's tracker, newest first; None where it has none."""
        head = program.TRACKER_HEAD
        wanted, way = address.parse(source), head.size + 8 * event.SCAN_SLOTS
        for _, value in libbpf.items_array(self.fds["trackers"], range(TRACKERS // 4), 8 + 4 * way):
            at = value.find(wanted)
            if at > 0 and (at - 8) % way == 0:
                count = head.unpack_from(value, at)[-1]
                slots = memoryview(value[at + head.size : at + way]).cast("Q").tolist()
                return [slot & 0xFFFF for slot in slots[:count]]
        return None

    def block(self, source):
        return self.blocks.get(address.parse(source))


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS)


@pytest.fixture(scope="module")
def maps(watch):
    maps = Maps(watch)
    yield maps
    maps.close()


@pytest.fixture(scope="module", autouse=True)
def web(wire):
    with wire.listen(80), wire.listen(80, ipv6=True):
        yield


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    return wire.somebody(ipv6=request.param == "IPv6")


@pytest.fixture
def counted(watch):
    """What the terms of the ledger have grown by since the test began."""
    before = watch.ledger()
    return lambda: {name: value - before[name] for name, value in watch.ledger().items() if value != before[name]}


def now_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_the_maps_are_those_of_the_contract(maps):
    assert set(maps.fds) == {name[:15] for name in program.MAPS}


def test_a_fast_scan_leaves_a_block_of_a_minute(watch, wire, maps, source, counted):
    begun = now_ns()
    assert wire.knock(source, 1, 2, 80, 80) == [CLOSED, CLOSED, OPEN, SILENT]
    block = maps.block(source)
    assert begun < block.since_ns < now_ns() and block.until_ns - block.since_ns == 60 * SECOND
    assert block.dropped == 1
    assert maps.ports(source) == [80, 2, 1]
    assert counted() == {"syns": 4, "connections": 3, "connections_dropped": 1}
    (scan,) = watch.records("scan", src_ip=source)
    assert (scan["ports"], scan["closed_ports"]) == ([1, 2, 80], [1, 2])
    assert scan["dest_ip"] == (HOST6 if ":" in source else HOST4)


def test_a_slow_scan_keeps_only_what_the_window_holds(wire, maps, source):
    for port in (21, 22, 23):
        assert wire.knock(source, port) == [CLOSED]
        time.sleep(1.05)
    assert maps.ports(source) in ([23], [23, 22])
    assert maps.block(source) is None


def test_hammering_one_port_is_one_entry(wire, maps, source, counted):
    assert wire.knock(source, *[80] * 40) == [OPEN] * 40
    assert maps.ports(source) == [80]
    assert maps.block(source) is None
    assert counted() == {"syns": 40, "connections": 40}


def test_an_allowed_source_has_no_tracker(watch, wire, maps, counted):
    assert set(wire.knock("198.51.100.200", *range(1, 20))) == {CLOSED}
    assert maps.ports("198.51.100.200") is None and maps.block("198.51.100.200") is None
    assert maps.sources.read()[address.parse_prefix("198.51.100.200")].flags == rules.ALLOW
    assert counted() == {"syns": 19, "connections": 19}
    assert all(record["allowed"] for record in watch.records("connection", src_ip="198.51.100.200"))


def test_own_addresses_are_local_and_own(maps):
    local = set(libbpf.keys(maps.fds["local"], program.PREFIX_KEY.size))
    for own in (HOST4, HOST6):
        prefix = address.parse_prefix(own)
        assert program.PREFIX_KEY.pack(prefix.length, prefix.network) in local
        assert maps.sources.read()[prefix].flags & rules.OWN


def test_nmap_costs_a_block_and_every_probe_is_counted(watch, wire, maps, counted):
    source = wire.somebody()
    wire.nmap("-sS", "-e", "v1", "-S", source, "-p", "2001-2050", HOST4)
    block = maps.block(source)
    terms = counted()
    assert terms["connections"] == 3
    assert terms["connections_dropped"] == block.dropped == terms["syns"] - 3 >= 47


def test_the_numbers_are_those_of_the_commands(watch, wire, maps):
    source = wire.somebody()
    wire.knock(source, 5, 6, 7, 8, 9)
    watch.record("block", src_ip=source)
    status = watch.answer("status")
    entries = watch.answer("block", "list")
    in_kernel = {address.text(block.address): block.dropped for block in maps.blocks.read()}
    assert {entry["prefix"]: entry["dropped"] for entry in entries} == in_kernel
    assert status["blocked_now"] == status["tables"]["blocks"]["entries"] == len(in_kernel)
    assert status["scans"] == len(watch.records("scan")) <= len(watch.records("block"))
    assert status["tables"]["blocks"]["capacity"] == 1024
    assert status["ledger"]["connections"] == len(watch.records("connection"))


def test_a_block_by_hand_stands_beside_the_scanners(watch, wire, maps):
    source = wire.somebody()
    watch.done("block", "add", source, "--duration", "forever")
    prefix = address.parse_prefix(source)
    assert maps.sources.read()[prefix] == rules.Source(rules.BLOCK, 0)
    assert wire.knock(source, 80) == [SILENT]
    assert maps.sources.dropped(prefix) == 1 and maps.block(source) is None
    watch.done("block", "remove", source)
    assert prefix not in maps.sources.read()
    assert wire.knock(source, 80) == [OPEN]
