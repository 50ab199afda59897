# SPDX-License-Identifier: Apache-2.0
"""The summaries of log.connections = summary: bounded, and nothing unseen."""

from __future__ import annotations

import random

from packetwatch import address
from packetwatch.sinks.fold import Fold

SECOND = 1_000_000_000


def connection(source, port=80, attachment=1, boot_ns=0):
    packed = address.MAPPED + source.to_bytes(4, "big")
    return boot_ns, packed, address.MAPPED + bytes(4), b"\0\1", port.to_bytes(2, "big"), attachment, 0


def test_equal_source_and_port_make_one_summary():
    fold = Fold()
    fold.add([connection(1, boot_ns=5), connection(1, boot_ns=7), connection(2, boot_ns=9)], {1: "eth0"}, 10)
    first, second = fold.take()
    assert (first.source, first.dest_port, first.count, first.level) == ("0.0.0.1", 80, 2, "source_port")
    assert (first.in_iface, first.since_ns, first.boot_ns, first.event_type) == ("eth0", 5, 9, "summary")
    assert (second.source, second.count) == ("0.0.0.2", 1)


def test_the_rows_kept_are_the_largest_and_the_remainder_goes_by_interface():
    fold = Fold(rows=2)
    counts = {1: 5, 2: 9, 3: 2, 4: 7, 5: 1}
    singles = [connection(source, attachment=1 + source % 2) for source, n in counts.items() for _ in range(n)]
    fold.add(singles, {1: "eth0", 2: "eth1"}, 0)
    told = [(n.level, n.source, n.in_iface, n.count) for n in fold.take()]
    assert told == [
        ("source_port", "0.0.0.2", "eth0", 9),
        ("source_port", "0.0.0.4", "eth0", 7),
        ("interface", None, "eth1", 8),
    ]


def test_a_flood_of_forged_sources_is_bounded_and_counted_to_the_last():
    fold = Fold(rows=32, keys=100)
    rng = random.Random(1)
    singles = [connection(rng.randrange(1 << 32)) for _ in range(5000)] + [connection(7) for _ in range(3)]
    fold.add(singles, {1: "eth0"}, 0)
    assert len(fold._counts) == 100
    assert len(fold) == len(singles)
    notices = fold.take()
    assert len(notices) == 33
    assert sum(notice.count for notice in notices) == len(singles)
    assert len(fold) == 0 and fold.take() == []


def test_due_after_the_interval_and_only_with_something_to_tell():
    fold = Fold(SECOND)
    assert not fold.due(10 * SECOND)
    fold.add([], {}, 10 * SECOND)
    assert not fold.due(20 * SECOND)
    fold.add([connection(1)], {1: "eth0"}, 20 * SECOND)
    fold.add([connection(1)], {1: "eth0"}, 20 * SECOND + 900_000_000)
    assert not fold.due(21 * SECOND - 1)
    assert fold.due(21 * SECOND)
    fold.take()
    assert not fold.due(99 * SECOND)


def test_an_attachment_without_a_name_is_told_as_unknown():
    fold = Fold()
    fold.add([connection(1)], {}, 0)
    assert fold.take()[0].in_iface == "unknown"
