# SPDX-License-Identifier: Apache-2.0
"""Scans of many sources in one moment are one event: none is lost, none told twice, a few do not wait."""

from __future__ import annotations

import random
import sys

from packetwatch import decoys
from packetwatch.decoys import MOMENT_NS, NAMED, SINGLY, Decoys
from packetwatch.event import Notice

SECOND = 1_000_000_000
PORTS = (80, 81, 82)


def scan(number, at_ns=0, ports=PORTS, destination="10.0.0.5", **fields):
    return Notice(at_ns, "scan", "eth0", f"s{number}", destination, ports=ports, closed_ports=ports, **fields)


def alert(number, at_ns=0, length_ns=60 * SECOND, rule="scan:closed", **fields):
    """A scan, and the block that came with it."""
    found = scan(number, at_ns, **fields)
    until = at_ns + length_ns if length_ns else 0
    return [found, Notice(at_ns, "block", "eth0", found.source, until_ns=until, reason="port scan", rule=rule)]


def alerts(numbers, at_ns=0, **fields):
    return [notice for number in numbers for notice in alert(number, at_ns + number, **fields)]


def whom(notices, kind="scan"):
    """Whom each record of a kind is of."""
    return [each.sources or each.source for each in notices if each.event_type == kind]


def names(numbers):
    return tuple(f"s{number}" for number in numbers)


def stands_for(notices, kind="scan"):
    return sum(each.count or 1 for each in notices if each.event_type == kind)


def test_a_few_are_told_at_once_and_as_they_are():
    kept, given = Decoys(), alerts(range(SINGLY))
    assert kept.take(given, 10) == given
    assert not kept.is_due(MOMENT_NS - 1) and kept.is_due(MOMENT_NS)
    assert kept.take([], MOMENT_NS) == [] and not kept.is_due(MOMENT_NS)


def test_each_alone_is_told_at_once_till_they_are_many():
    kept = Decoys()
    for number in range(SINGLY):
        assert kept.take(alert(number), 1) == alert(number)
    assert kept.take(alert(SINGLY), 1) == []
    assert whom(kept.take([], MOMENT_NS)) == [names(range(SINGLY + 1))]


def test_many_in_one_batch_are_one_scan_and_one_block():
    kept = Decoys()
    assert kept.take(alerts(range(21)), 30) == []
    one, block = kept.take([], MOMENT_NS)
    assert (one.event_type, one.sources, one.source, one.count) == ("scan", names(range(21)), None, 21)
    assert (one.ports, one.destination, one.since_ns, one.boot_ns) == (PORTS, "10.0.0.5", 0, 20)
    assert (block.event_type, block.sources, block.count) == ("block", names(range(21)), 21)
    assert (block.until_ns, block.rule, block.reason) == (20 + 60 * SECOND, "scan:closed", "port scan")
    assert kept.close() == []


def test_those_told_before_are_named_again_and_not_counted():
    kept = Decoys()
    assert len(kept.take(alerts(range(2)), 5)) == 4
    assert kept.take(alerts(range(2, 6)), 10) == []
    one, block = kept.take([], MOMENT_NS)
    assert one.sources == names(range(6)) and one.count == 4
    assert block.sources == names(range(2, 6)) and block.count == 4


def test_the_moment_goes_on_while_more_follow():
    kept = Decoys()
    kept.take(alerts(range(5)), 5)
    assert whom(kept.take([], MOMENT_NS)) == [names(range(5))]
    assert kept.take(alert(7, MOMENT_NS + 5), MOMENT_NS + 6) == []
    assert whom(kept.take([], 2 * MOMENT_NS)) == ["s7"]
    assert kept.take([], 3 * MOMENT_NS) == []
    assert kept.take(alert(8, 3 * MOMENT_NS + 1), 3 * MOMENT_NS + 2) == alert(8, 3 * MOMENT_NS + 1)


def test_the_time_is_that_of_the_scans_also_in_a_batch_of_hours():
    given = [notice for number in range(10) for notice in alert(number, number * 600 * SECOND)]
    assert Decoys().take(given, 6000 * SECOND) == given


def test_a_moment_that_ends_within_a_batch_is_told_with_it():
    given = alerts(range(6)) + alert(9, 5 * SECOND)
    told = Decoys().take(given, 5 * SECOND)
    assert whom(told) == [names(range(6)), "s9"]


def test_other_ports_another_host_and_another_mode_are_others():
    given = [
        *alerts(range(3)), *alerts(range(3, 6), ports=(80, 81, 83)), *alerts(range(6, 9), destination="10.0.0.6"),
        *alerts(range(9, 12), mode="observe"),
    ]
    assert Decoys().take(given, 20) == given


def test_the_order_of_the_ports_does_not_matter():
    kept = Decoys()
    kept.take([scan(number, ports=ports) for number, ports in enumerate([(1, 2, 3), (3, 2, 1)] * 4)], 1)
    assert whom(kept.close()) == [names(range(8))]


def test_one_source_again_and_again_is_not_many():
    given = [scan(1, number) for number in range(50)]
    assert Decoys().take(given, 50) == given


def test_blocks_of_another_length_or_rule_and_scans_without_one_are_records_of_their_own():
    kept = Decoys()
    given = alerts(range(4)) + alerts(range(4, 6), length_ns=120 * SECOND) + alerts(range(6, 8), rule=None)
    given += alerts(range(8, 10), length_ns=0) + [scan(number, number, reason="full") for number in range(10, 12)]
    assert kept.take(given, 50) == []
    told = kept.close()
    assert whom(told) == [names(range(10)), names(range(10, 12))]
    assert whom(told, "block") == [names(range(4)), names(range(4, 6)), names(range(6, 8)), names(range(8, 10))]
    assert [each.until_ns for each in told if each.event_type == "block"][-1] == 0


def test_what_is_no_scan_and_no_block_of_one_passes():
    given = [Notice(1, "storm", count=3), Notice(2, "block", None, "s1", reason="slow scan"), Notice(3, "stop")]
    given += [Notice(4 + n, "unblock", None, f"s{n}") for n in range(9)] + [Notice(20, "scan", sources=("a", "b"))]
    assert Decoys().take(given, 30) == given


def test_a_block_that_came_later_is_not_that_of_the_scan():
    late = Notice(9, "block", "eth0", "s1", reason="by hand")
    kept = Decoys()
    assert kept.take([*alerts([0]), scan(1, 1), *alerts(range(2, 6)), late], 10) == [late]


def test_drops_and_ends_of_many_are_told_together():
    kept = Decoys()
    kept.take(alerts(range(6)), 6)
    kept.close()
    drops = [Notice(60 + n, "drop", "eth0", f"s{n}", count=10, since_ns=n) for n in range(6)]
    ends = [Notice(60 + n, "unblock", None, f"s{n}", reason="expired") for n in range(6)]
    other = Notice(61, "unblock", None, "another", reason="expired")
    told = kept.take(sorted([*drops, *ends, other], key=lambda each: each.boot_ns), 99)
    assert other in told and len(told) == 3
    drop, end = sorted((each for each in told if each.sources), key=lambda each: each.event_type)
    assert (drop.sources, drop.count, drop.since_ns) == (names(range(6)), 60, 0)
    assert (end.sources, end.count, end.reason) == (names(range(6)), 6, "expired")


def test_a_record_names_a_bounded_number_and_the_rest_has_one_of_its_own():
    kept = Decoys()
    told = kept.take(alerts(range(200)), 300) + kept.close()
    named = whom(told)
    assert all(len(sources) <= NAMED for sources in named) and sum(named, ()) == names(range(200))
    assert stands_for(told) == stands_for(told, "block") == 200


def test_a_hundred_thousand_forged_scanners_take_no_memory_and_are_all_named():
    kept, told = Decoys(), []
    for start in range(0, 100_000, 500):
        told += kept.take(alerts(range(start, start + 500)), start + 500)
    held = sum(len(moment._held) for moment in kept._moments.values())
    assert held <= 2 * NAMED and len(kept._members) <= decoys.MEMBERS
    told += kept.close()
    assert sum(whom(told), ()) == names(range(100_000)) and len(told) < 2 * 100_000 / NAMED + 4
    assert stands_for(told) == 100_000


def test_as_many_sets_of_ports_take_no_more():
    kept, told = Decoys(), []
    for start in range(0, 20_000, 500):
        given = [scan(number, number, ports=(number % 500, 600, 700)) for number in range(start, start + 500)]
        told += kept.take(given, start + 500)
    assert len(kept._moments) <= decoys.MOMENTS
    assert sum(sys.getsizeof(moment._held) for moment in kept._moments.values()) < 1 << 20
    assert stands_for(told + kept.close()) == 20_000


def test_whatever_comes_every_scan_and_block_is_told_once():
    for seed in range(200):
        chance = random.Random(seed)
        kept, told, given, now = Decoys(), [], [], 0
        for _ in range(chance.randrange(1, 8)):
            batch = []
            for _ in range(chance.choice([0, 1, 3, 5, 80])):
                now += chance.choice([1, 1, 1000, MOMENT_NS // 3, 2 * MOMENT_NS] if seed % 2 else [1, 1000])
                ports = chance.choice([PORTS, (1, 2, 3)])
                length_ns = chance.choice([60, 120]) * SECOND
                made = alert(chance.randrange(chance.choice([2, 200])), now, length_ns, ports=ports)
                batch += made if chance.random() < 0.8 else made[:1]
            given += batch
            told += kept.take(batch, now)
        told += kept.close()
        for kind in ("scan", "block"):
            wanted = [each for each in given if each.event_type == kind]
            assert stands_for(told, kind) == len(wanted)
            named = {name for each in whom(told, kind) for name in ([each] if isinstance(each, str) else each)}
            assert named == {each.source for each in wanted}
