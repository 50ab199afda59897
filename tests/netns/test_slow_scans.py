# SPDX-License-Identifier: Apache-2.0
"""Scans that take hours: nmap's own frames at the pace of its slow options, judged by replay with what is shipped.

tests/slow scans as slowly as some of these for real.
"""

from __future__ import annotations

import datetime
from typing import NamedTuple

import pytest

from tests import captures, frames
from tests.replays import replay

from .test_evidence import length_s
from .test_shipped import is_documented
from .traffic import HOST4, HOST6, OUT4, OUT6

SECOND = 1_000_000_000
MINUTE, DAY = 60 * SECOND, 86_400 * SECOND
NOW = 1_700_000_000 * SECOND
APART = 100 * DAY  # from scan to scan of one source: all is forgotten
PORTS = 100
#: One probe after the answer to the other, as nmap does it when it is to be slow.
SERIALLY = ("--max-parallelism", "1", "--max-retries", "0", "-r", "-p", f"1000-{999 + PORTS}")

#: Words of nmap, and the time from probe to probe that they stand for (nmap(1): timing and performance).
PACES = {
    "-T1": 15 * SECOND,
    "--scan-delay 25s": 25 * SECOND,
    "--scan-delay 31s": 31 * SECOND,
    "--scan-delay 149s": 149 * SECOND,
    "--scan-delay 151s": 151 * SECOND,
    "-T0": 5 * MINUTE,
    "--scan-delay 8m": 8 * MINUTE,
    "--scan-delay 159m": 159 * MINUTE,
    "--scan-delay 161m": 161 * MINUTE,
}
KINDS = {"-sS": HOST4, "-sT": HOST4, "-sX": HOST4, "-6 -sS": HOST6}


class Scan(NamedTuple):
    """A scan of closed ports by one source."""

    kind: str
    pace: str

    @property
    def file(self):
        return f"{self.kind} {self.pace}.pcap".replace(" ", "_")


SCANS = [*(Scan("-sS", pace) for pace in PACES), *(Scan(kind, "-T0") for kind in KINDS if kind != "-sS")]


def is_probe(frame):
    return frames.tcp_of(frame)[0] in map(frames.packed, (OUT4, OUT6))


@pytest.fixture(scope="module")
def quick(wire, tmp_path_factory):
    """The frames of each kind of scan, as fast as nmap is."""
    folder, found = tmp_path_factory.mktemp("quick"), {}
    for kind, destination in KINDS.items():
        path = folder / "scan.pcap"
        with captures.tcpdump(wire.host, "v0", path, 2 * PORTS):
            wire.nmap(*kind.split(), *SERIALLY, destination)
        found[kind] = captures.read(path)
        assert [is_probe(frame) for _, frame in found[kind]] == [True, False] * PORTS
    return found


@pytest.fixture(scope="module")
def told(quick, tmp_path_factory):
    """What replay says of all of them, each a file."""
    folder = tmp_path_factory.mktemp("slow")
    for number, scan in enumerate(SCANS):
        slow = captures.stretched(quick[scan.kind], PACES[scan.pace], NOW + number * APART, is_probe)
        (folder / scan.file).write_bytes(captures.pcap(slow, digits=captures.NANO))
    done = replay("--config", "/dev/null", *(folder / scan.file for scan in SCANS))
    assert (done.status, done.errors) == (0, "")
    return done


def seconds(record):
    return datetime.datetime.fromisoformat(record["timestamp"][:26]).timestamp()


def row(told, scan):
    """The row of the document that says what becomes of a scan: the first block, if there is one."""
    probes, blocks = (
        [record for record in told.of(*kinds) if record["in_iface"] == scan.file]
        for kinds in (("connection", "probe"), ("block",))
    )
    name = f"| nmap {scan.kind} {scan.pace} | "
    if not blocks:
        assert len(probes) == PORTS
        return name + "no | no | | | |"
    block, first = blocks[0], seconds(probes[0])
    packets = sum(seconds(probe) <= seconds(block) for probe in probes)
    after = datetime.timedelta(seconds=round(seconds(block) - first))
    return name + f"yes | {length_s(block)} s | {packets} | {after} | {block['rule']} |"


@pytest.mark.parametrize("scan", SCANS, ids=" ".join)
def test_a_slow_scan_is_found_by_the_rule_for_its_pace(told, scan):
    is_documented(row(told, scan))


def test_a_slow_scanner_that_goes_on_is_shut_out_longer_each_time(told):
    """Five minutes a port: three blocks are over before the next probe comes."""
    file = Scan("-sS", "-T0").file
    blocks, drops = ([each for each in told.of(kind) if each["in_iface"] == file] for kind in ("block", "drop"))
    assert [length_s(block) for block in blocks] == [60, 120, 240, 480, 960, 1920, 3600]
    assert [drop["count"] for drop in drops] == [1 + 3 + 6 + 11]
