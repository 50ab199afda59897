# SPDX-License-Identifier: Apache-2.0
"""A storm of forged scanners under the settings as shipped: what is frozen, who is told, and when it is over."""

from __future__ import annotations

import pytest

from tests import captures, frames
from tests.replays import replay

from .resident import wait_for
from .segment import NEIGHBOUR4
from .test_evidence import length_s
from .test_shipped import SETTINGS, is_documented
from .traffic import CLOSED, HOST4, OPEN

SECOND = 1_000_000_000
SCANNER = "192.0.2.66"
PORTS = 5, 6, 7
#: Forged sources, each with a scan of its own: the same ports would look like decoys of one scan.
STORM = {f"198.51.100.{number}": range(1000 + 3 * number, 1003 + 3 * number) for number in range(150)}
SOURCES = list(STORM)


@pytest.fixture(scope="module")
def storm(shared, segment, tmp_path_factory):
    """What a resident does in one, what it has captured, and who was a real scanner in it."""
    segment.host.ip(f"route add default via {NEIGHBOUR4}")
    segment.neighbours(SCANNER)
    watch = shared(segment.host, SETTINGS)
    path = tmp_path_factory.mktemp("storm") / "storm.pcap"
    with captures.tcpdump(segment.host, "v0", path, (len(STORM) + 1) * 2 * len(PORTS)):
        for source, ports in STORM.items():
            segment.forge(source, *ports)
        assert segment.knock(SCANNER, *PORTS) == [CLOSED] * 3
    return watch, captures.read(path)


def test_a_storm_of_forged_sources_freezes_new_blocks_and_says_so(storm, segment):
    watch, _ = storm
    told_of = watch.record("storm")
    assert "block.storm" in told_of["message"] and len(watch.records("storm")) == 1
    wait_for(lambda: len(watch.records("scan")) == len(STORM) + 1, "a scan of each")
    assert [record["src_ip"] for record in watch.records("block")] == SOURCES[:100]
    assert {length_s(record) for record in watch.records("block")} == {60}
    assert {row["prefix"] for row in watch.answer("block", "list")} == set(SOURCES[:100])
    assert watch.status()["blocks_frozen"] == len(STORM) + 1 - 100
    with segment.listen(80):
        assert segment.knock(SCANNER, 8, 80) == [CLOSED, OPEN]  # who scans in it goes on
    is_documented(f"| {len(STORM)} addresses at once | yes | 60 s, the first 100 of them | 3 | scan:closed |")


def test_a_storm_is_over_by_itself_when_its_minute_is(storm, tmp_path):
    """The same frames, and the real scanner again: still within the minute, and after it."""
    _, caught = storm
    begin_ns = next(ns for ns, frame in caught if frames.tcp_of(frame)[3] == STORM[SOURCES[0]][-1])  # blocks
    assert blocked(tmp_path, caught, begin_ns + 59 * SECOND) == SOURCES[:100]
    assert blocked(tmp_path, caught, begin_ns + 61 * SECOND) == [*SOURCES[:100], SCANNER]


def blocked(folder, caught, again_ns):
    """Whom replay blocks of a storm, where the scanner begins anew at that time."""
    theirs = [(ns, frame) for ns, frame in caught if frames.packed(SCANNER) in frames.tcp_of(frame)[:2]]
    shift_ns = again_ns - theirs[0][0]
    path = folder / "again.pcap"
    path.write_bytes(captures.pcap([*caught, *((ns + shift_ns, frame) for ns, frame in theirs)], digits=captures.NANO))
    done = replay("--config", "/dev/null", "--local", HOST4, path)
    assert (done.status, done.errors) == (0, "")
    return [block["src_ip"] for block in done.of("block")]
