# SPDX-License-Identifier: Apache-2.0
"""Every row of the table of frames through the program: verdict, the counters that move, the record."""

from __future__ import annotations

import pytest

from packetwatch import address, event, rules
from tests import frames as f
from tests.bpf import harness, rows

CLIENT_MAC = bytes.fromhex("020000000002")
ENDS = rows.Ends(CLIENT_MAC, harness.MAC, "10.9.0.2", "10.9.0.1", "fd00:9::2", "fd00:9::1", 40000, 80)
PROBES = (rows.PROBE, rows.TINY)
LOCAL = (ENDS.server4, ENDS.server6, "127.0.0.0/8", "::1")


@pytest.fixture
def host(rig):
    rig.local(*LOCAL)
    for own in LOCAL:
        rig.source(own, rules.OWN)
    return rig


def expected_changes(word, family):
    if word == rows.OTHER:
        return {}
    if word == rows.SYN:
        return {f"syns[{family}]": 1, f"recorded[{family}]": 1}
    if word in PROBES:
        return {f"probes[{family}]": 1, **({"fragment": 1} if word == rows.TINY else {})}
    return {word: 1}


def is_ipv6(frame):
    return bytes(f.packed(ENDS.server6)) in frame


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.description)
def test_row(host, row):
    ends = ENDS if row.sport is None else ENDS._replace(sport=row.sport)
    built = row.build(ends)
    expected = row.expected * len(built) if len(row.expected) == 1 else row.expected
    assert len(built) == len(expected)
    for frame, word in zip(built, expected):
        before = host.counters(0)
        assert host.run(frame) == (harness.DROP if word in PROBES else harness.PASS)
        assert harness.changes(before, host.counters(0)) == expected_changes(word, int(is_ipv6(frame)))
        records, probes = host.records(), host.probes()
        assert len(records) == (word == rows.SYN) and len(probes) == (word in PROBES)
        for boot_ns, saddr, daddr, sport, dport, attachment, flags in records + [probe[:-1] for probe in probes]:
            assert boot_ns > 0 and attachment == 0
            assert (sport, dport) == (ends.sport.to_bytes(2, "big"), ends.dport.to_bytes(2, "big"))
            assert daddr == address.parse(ends.server6 if is_ipv6(frame) else ends.server4)
            assert flags == event.CLOSED | (event.IPV6 if is_ipv6(frame) else 0)
            if "source" not in row.description or row.sport is not None:
                assert saddr == address.parse(ends.client6 if is_ipv6(frame) else ends.client4)
