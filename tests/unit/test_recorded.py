# SPDX-License-Identifier: Apache-2.0
"""Lines of a log as frames again: what was recorded comes back, and no line does harm."""

from __future__ import annotations

import json
import random

import pytest

from packetwatch import address, event, recorded, sieve
from packetwatch.event import Batch
from packetwatch.sinks.jsonlines import JsonForm
from tests import frames as f

NOW = 1_700_000_000_123_456_000
GOOD = {
    "timestamp": "2026-11-24T14:28:05.123456Z", "event_type": "connection", "in_iface": "eth0", "src_ip": "192.0.2.1",
    "src_port": 1, "dest_ip": "192.0.2.2", "dest_port": 65535, "proto": "TCP",
}


def line(**changes):
    return json.dumps({**GOOD, **changes}).encode()


@pytest.mark.parametrize("ends", [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")])
def test_what_was_written_comes_back(ends):
    source, destination = map(address.parse, ends)
    connection = (NOW, source, destination, b"\x9c\x40", b"\0\x50", 0, event.IPV6 if ":" in ends[0] else 0)
    written = JsonForm().encode(Batch([connection], [], 0, {0: "eth0"}))
    syn = recorded.read(written)
    assert (syn.ns, syn.port_state) == (NOW, sieve.UNKNOWN)
    assert f.tcp_of(syn.data) == (f.packed(ends[0]), f.packed(ends[1]), 40000, 80, f.SYN, 0)
    assert sieve.look(syn.data)[0] == sieve.SYN


def test_entries_of_the_journal():
    entry = {"PACKETWATCH_" + name.upper(): str(value) for name, value in GOOD.items()}
    entry.update({"MESSAGE": "New connection", "PRIORITY": "6", "_PID": "1"})
    assert recorded.read(json.dumps(entry).encode()) == recorded.read(line())
    assert recorded.read(json.dumps({**entry, "PACKETWATCH_EVENT_TYPE": "scan"}).encode()) is None
    for value in ("65536", "-1", "1e3", "٣", "", "999999", [1], None):
        with pytest.raises(ValueError, match="src_port is no port"):
            recorded.read(json.dumps({**entry, "PACKETWATCH_SRC_PORT": value}).encode())


@pytest.mark.parametrize(
    "state, expected",
    [("open", event.OPEN), ("closed", event.CLOSED), ("unknown", 0), (None, 0), (1, 0), ([], 0), ({}, 0)],
)
def test_port_states(state, expected):
    assert recorded.read(line(port_state=state)).port_state == expected


@pytest.mark.parametrize(
    "flags, expected", [("FIN,PSH,URG", f.FIN | f.PSH | f.URG), ("", 0), ("SYN,FIN", f.SYN | f.FIN)]
)
def test_probes_come_back_with_their_flags(flags, expected):
    probe = recorded.read(line(event_type="probe", tcp_flags=flags))
    assert f.tcp_of(probe.data)[4] == expected and sieve.look(probe.data)[0] == sieve.PROBE
    with pytest.raises(ValueError, match="no flags of TCP"):
        recorded.read(line(event_type="probe", tcp_flags="FIN,EVIL"))


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z"])
def test_times_that_no_clock_of_a_kernel_tells_are_refused(time):
    with pytest.raises(ValueError, match="of another age"):
        recorded.read(line(timestamp=time))


def test_what_is_wrong_is_told_without_the_value():
    """Else each line of a hostile file would be remembered."""
    with pytest.raises(ValueError, match="^src_ip is no address$"):
        recorded.read(line(src_ip="bad1"))


@pytest.mark.parametrize("kind", ["scan", "block", "summary", "start", "flow", ""])
def test_other_records_are_none(kind):
    assert recorded.read(line(event_type=kind)) is None


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "too long"),
        (b"[" * 60_000, "not JSON"),
        (b"1e999", "no record"),
        (b"null", "no record"),
        (b"[]", "no record"),
        (b"{}", "no record"),
        (b'{"event_type": 3}', "no record"),
        (b'{"event_type": "connection"}', "src_ip is missing"),
        (line(src_ip=7), "src_ip"),
        (line(src_ip="host"), "src_ip is no address"),
        (line(src_ip="fe80::1%eth0"), "src_ip is no address"),
        (line(src_ip="1" * 60_000), "src_ip is no address"),
        (line(dest_ip="2001:db8::1"), "two families"),
        (line(src_port="80"), "src_port is no port"),
        (line(src_port=True), "src_port is no port"),
        (line(dest_port=65536), "dest_port is no port"),
        (line(dest_port=-1), "dest_port is no port"),
        (line(dest_port=1.5), "dest_port is no port"),
        (line(timestamp=None), "timestamp"),
        (line(timestamp="yesterday"), "timestamp"),
        (line(timestamp="2026-11-24T14:28:05"), "timestamp"),
        (line(timestamp=["Z"]), "timestamp"),
    ],
)
def test_lines_that_tell_of_no_connection(content, reason):
    with pytest.raises(ValueError, match=reason):
        recorded.read(content)


def test_lines_changed_at_random():
    chance, refused = random.Random(1), 0
    for _ in range(3000):
        content = bytearray(line())
        content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            recorded.read(bytes(content))
        except ValueError:
            refused += 1
    assert refused > 500
