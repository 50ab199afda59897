# SPDX-License-Identifier: Apache-2.0
"""What is remembered of sources: the last records of each, and no more sources than there is room for."""

from packetwatch import history
from packetwatch.event import Notice


def notice(source, event_type="block", boot_ns=0, **fields):
    return Notice(boot_ns, event_type, None, source, **fields)


def test_scans_blocks_and_their_ends_are_kept_in_order():
    kept = history.History()
    kept.take([notice("a", "scan", 1), notice("b", "block", 2), notice("a", "block", 3), notice("a", "unblock", 4)])
    assert [(each.event_type, each.boot_ns) for each in kept.of("a")] == [("scan", 1), ("block", 3), ("unblock", 4)]
    assert kept.block("a") is None and kept.block("c") is None and kept.of("c") == []


def test_a_block_by_hand_is_none_that_was_earned():
    kept = history.History()
    kept.take([notice("a", reason="port scan", rule="scan:closed"), notice("a", reason="by hand")])
    assert kept.block("a").rule == "scan:closed"


def test_other_records_are_not():
    kept = history.History()
    kept.take([notice("a", kind) for kind in ("probe", "drop", "summary", "loss")] + [notice(None, "scan")])
    assert kept.of("a") == []


def test_memory_is_bounded_by_records_and_by_sources():
    kept = history.History()
    kept.take(notice("a", boot_ns=number) for number in range(history.RECORDS + 5))
    assert [each.boot_ns for each in kept.of("a")] == list(range(5, history.RECORDS + 5))
    kept.take(notice(str(number)) for number in range(history.SOURCES - 1))
    assert kept.of("a")
    kept.take([notice("0"), notice("new")])
    assert not kept.of("a") and kept.of("0") and kept.of("new")
