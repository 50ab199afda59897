# SPDX-License-Identifier: Apache-2.0
"""Scans and rules: window edges, repeated ports, many ports, lengths of blocks, and a naive reading beside it."""

import random

import pytest

from packetwatch.address import parse, parse_prefix
from packetwatch.detection import DROP, PASS, SCAN, TICK_NS, WOULD_DROP
from packetwatch.detection import (
    Blocks, Detector, Finding, Guard, Rule, Verdict, block_length, in_force, which_ports, windows,
)
from packetwatch.rules import Entry, effective

SECOND = 1_000_000_000
A, B = parse("192.0.2.1"), parse("2001:db8::1")
START = 1000 * SECOND // TICK_NS * TICK_NS
WINDOW = 60 * SECOND // TICK_NS * TICK_NS


ONE_LENGTH = Blocks(SECOND, SECOND, SECOND)


def feed(detector, *syns, source=A):
    """The ports of what each SYN completes."""
    found = [detector.syn(source, port, START + at) for port, at in syns]
    return [each and each.ports for each in found]


def test_the_third_port_completes_a_scan_and_the_ports_come_oldest_first():
    assert feed(Detector(3, WINDOW), (80, 0), (81, 1), (82, 2)) == [None, None, (80, 81, 82)]


def test_a_repeated_port_counts_once_and_as_late_as_its_last_syn():
    assert feed(Detector(3, WINDOW), (80, 0), (81, 0), (80, 0), (81, 0), (80, 5), (82, 9)) == [None] * 5 + [
        (81, 80, 82)
    ]


@pytest.mark.parametrize("late, found", [(WINDOW - TICK_NS, True), (WINDOW - 1, True), (WINDOW, False)])
def test_a_port_leaves_the_window_exactly_when_it_is_over(late, found):
    last = feed(Detector(2, WINDOW), (80, 0), (81, late))[-1]
    assert last == ((80, 81) if found else None)


def test_times_are_cut_to_ticks_before_they_are_compared():
    assert feed(Detector(2, WINDOW), (80, TICK_NS - 1), (81, WINDOW)) == [None, None]
    assert feed(Detector(2, WINDOW), (80, TICK_NS), (81, WINDOW + TICK_NS - 1)) == [None, (80, 81)]


def test_the_window_slides_with_each_port():
    step = WINDOW // 2
    assert feed(Detector(3, WINDOW), *((port, port * step) for port in range(100))) == [None] * 100
    step = WINDOW // 2 - TICK_NS
    assert feed(Detector(3, WINDOW), (1, 0), (2, step), (3, 2 * step))[-1] == (1, 2, 3)


def test_hammering_one_port_is_no_scan():
    assert feed(Detector(2, WINDOW), *((80, at) for at in range(500))) == [None] * 500


def test_after_a_scan_the_source_starts_afresh():
    later = TICK_NS
    found = feed(Detector(2, WINDOW), (1, 0), (2, 1), (3, later), (4, later))
    assert found == [None, (1, 2), None, (3, 4)]
    assert feed(Detector(2, WINDOW), (1, 0), (2, 1), (1, later), (3, later))[-1] == (1, 3)


def test_sources_do_not_share_a_history():
    detector = Detector(2, WINDOW)
    assert [detector.syn(s, p, START) for s, p in [(A, 1), (B, 2), (A, 1), (B, 2)]] == [None] * 4
    assert detector.syn(B, 1, START).ports == (2, 1)


def test_sixty_four_ports():
    found = feed(Detector(64, WINDOW), *((port, 0) for port in range(64)))
    assert found == [None] * 63 + [tuple(range(64))]


def test_port_0_and_port_65535_are_ports():
    assert feed(Detector(2, WINDOW), (0, 0), (65535, 0)) == [None, (0, 65535)]


@pytest.mark.parametrize("ports", [-1, 0, 1, 65])
def test_a_number_of_ports_that_cannot_be_held_is_refused(ports):
    with pytest.raises(ValueError, match="2 to 64"):
        Detector(ports, WINDOW)


def test_a_clock_that_runs_back_counts_as_standing_still():
    detector = Detector(2, WINDOW)
    assert feed(detector, (80, 2 * WINDOW), (80, 0)) == [None, None]
    assert feed(detector, (81, 3 * WINDOW - 1))[0] == (80, 81)
    assert feed(detector, (1, 0), (2, 4 * WINDOW - TICK_NS)) == [None, None]
    assert feed(detector, (3, 0)) == [(2, 3)]


class Naive:
    """The rules as one reads them: all SYNs of one source since what they counted for last, judged at the newest."""

    def __init__(self, ports, window_ns, block_rules, count_closed):
        self.scan = ports, window_ns
        self.rules = block_rules
        self.count_closed = count_closed
        self.all, self.closed, self.scan_tick = [], [], 0

    def syn(self, port, now, closed):
        if self.count_closed and not closed:
            return None
        tick = now // TICK_NS * TICK_NS
        self.all.append((port, tick, closed))
        scan = self.reached([syn for syn in self.all if syn[1] > self.scan_tick], *self.scan, tick)
        found = None
        for number, rule in enumerate(self.rules, 1):
            ports = self.reached(self.all, rule.ports, rule.window_ns, tick)
            if ports and not rule.closed:
                found, self.all = self.finding(ports, bool(scan), number), []
                break
        if scan:
            self.scan_tick = tick
            found = self.finding(scan, True, found.rule if found else 0)
        if closed:
            self.closed.append((port, tick, closed))
        for number, rule in enumerate(self.rules, 1) if closed else ():
            ports = self.reached(self.closed, rule.ports, rule.window_ns, tick)
            if ports and rule.closed:
                self.closed = []
                return found._replace(rule=number) if found and found.scan else self.finding(ports, False, number)
        return found

    @staticmethod
    def reached(syns, ports, window_ns, tick):
        last = {}
        for port, at, closed in syns:
            last.pop(port, None)
            last[port] = at, closed
        inside = [(port, closed) for port, (at, closed) in last.items() if tick - at < window_ns]
        return inside[-ports:] if len(inside) >= ports else None

    @staticmethod
    def finding(ports, scan, rule):
        return Finding(tuple(p for p, _ in ports), tuple(p for p, closed in ports if closed), scan, rule)


def some_rules(draw, window):
    """Rules around the window of the scan, whose ports fit into what is remembered."""
    return [
        Rule(draw.randint(1, 16 if closed else 40), closed, draw.choice([window // 2, window, 3 * window]))
        for closed in draw.choices([False, True], k=draw.choice([0, 1, 3, 8]))
    ]


@pytest.mark.parametrize("count_closed", [False, True])
@pytest.mark.parametrize("ports", [2, 3, 5, 16])
def test_random_sequences_give_what_a_naive_reading_of_the_rules_gives(ports, count_closed):
    draw = random.Random(f"{ports} {count_closed}")
    found = {"scan": 0, "closed": 0, "all": 0}
    for _ in range(80):
        window = draw.choice([SECOND, WINDOW, 7 * TICK_NS + 5])
        block_rules = some_rules(draw, window)
        detector, now = Detector(ports, window, 64, block_rules, count_closed), START
        naive = {source: Naive(ports, window, block_rules, count_closed) for source in (A, B)}
        for _ in range(6 * ports + 40):
            now += draw.choice([0, 1, TICK_NS - 1, window // ports, window // (ports - 1)])
            now += window if draw.random() < 0.2 / ports else 0
            source, port, closed = draw.choice([A, A, A, B]), draw.randint(1, 2 * ports), draw.random() < 0.7
            expected = naive[source].syn(port, now, closed)
            assert detector.syn(source, port, now, closed) == expected
            if expected:
                found["scan"] += expected.scan
                found["closed" if expected.rule and block_rules[expected.rule - 1].closed else "all"] += 1
    assert min(found.values()) > 20, found


def test_a_rule_of_closed_ports_counts_no_open_ones():
    detector = Detector(9, WINDOW, block_rules=[Rule(2, True, 10 * WINDOW)])
    assert [detector.syn(A, port, START, closed=False) for port in range(5)] == [None] * 5
    assert detector.syn(A, 80, START) is None
    assert detector.syn(A, 81, START + 10 * WINDOW - 1) == Finding((80, 81), (80, 81), False, 1)
    assert detector.syn(A, 82, START + 10 * WINDOW - 1) is None, "it starts afresh"


def test_a_scan_and_a_rule_at_once_are_told_with_the_ports_of_the_scan():
    detector = Detector(3, WINDOW, block_rules=[Rule(2, True, WINDOW)])
    detector.syn(A, 22, START, closed=False)
    detector.syn(A, 80, START)
    assert detector.syn(A, 81, START) == Finding((22, 80, 81), (80, 81), True, 1)


def test_where_closed_ports_alone_count_an_open_one_leaves_no_trace():
    detector = Detector(2, WINDOW, count_closed=True)
    assert [detector.syn(A, port, START, closed=False) for port in (22, 80, 443)] == [None] * 3
    assert detector.syn(A, 81, START) is None
    assert detector.syn(A, 82, START).ports == (81, 82)


def test_windows():
    assert windows(5, []) == (5, 0)
    assert windows(5, [Rule(3, True, 9), Rule(3, True, 7), Rule(3, False, 6)]) == (6, 9)


def scan(guard, now, source=A, ports=(1, 2, 3)):
    return [guard.judge(source, port, now) for port in ports]


def test_the_syn_that_completes_a_scan_goes_through_and_the_next_is_dropped_until_the_end():
    guard = Guard(Detector(3, WINDOW), Blocks(*[3600 * SECOND] * 3))
    end = START + 3600 * SECOND
    assert scan(guard, START) == [Verdict(PASS), Verdict(PASS), Verdict(SCAN, (1, 2, 3), end)]
    assert guard.judge(A, 80, START) == Verdict(DROP, (), end)
    assert guard.judge(A, 80, end - 1).action == DROP
    assert guard.judge(B, 80, START).action == PASS
    assert guard.judge(A, 80, end) == Verdict(PASS)
    assert [v.action for v in scan(guard, end + WINDOW)] == [PASS, PASS, SCAN]


def test_what_is_dropped_is_not_tracked():
    guard = Guard(Detector(3, WINDOW), ONE_LENGTH)
    scan(guard, START)
    assert {guard.judge(A, port, START + SECOND - 1).action for port in range(10)} == {DROP}
    assert guard.judge(A, 80, START + SECOND).action == PASS
    assert guard.judge(A, 81, START + SECOND).action == PASS


def test_a_block_without_end_has_none():
    guard = Guard(Detector(3, WINDOW), Blocks(0, 0, 0))
    assert scan(guard, START)[-1] == Verdict(SCAN, (1, 2, 3), 0)
    assert guard.judge(A, 80, START + 10**18) == Verdict(DROP)


def test_observe_keeps_the_same_state_and_says_would():
    guard = Guard(Detector(3, WINDOW), ONE_LENGTH, enforce=False)
    assert [v.action for v in scan(guard, START)] == [PASS, PASS, SCAN]
    assert guard.judge(A, 80, START) == Verdict(WOULD_DROP, (), START + SECOND)
    assert guard.judge(A, 80, START + SECOND).action == PASS


def test_lists_come_before_the_rule():
    allow = [Entry(parse_prefix("192.0.2.0/24"), "config")]
    block = [Entry(parse_prefix("2001:db8::/32"), "manual", until_ns=START + 5)]
    guard = Guard(Detector(3, WINDOW), ONE_LENGTH, sources=effective([], allow, block))
    assert {guard.judge(A, port, START).action for port in range(10)} == {PASS}
    assert guard.judge(B, 80, START + 4) == Verdict(DROP, (), START + 5)
    assert [v.action for v in scan(guard, START + 5, B)] == [PASS, PASS, SCAN]


def lengths(guard, now, times, quiet_ns=0, again=False):
    """How long each of so many blocks in turn lasts, the next one's scan `quiet_ns` after the end, of ports of its own
    or of the same again.
    """
    found = []
    for number in range(times):
        ports = range(1, 4) if again else range(3 * number + 1, 3 * number + 4)
        end = scan(guard, now, ports=ports)[-1].until_ns
        found.append(end - now if end else 0)
        now = end + quiet_ns
    return found


CLOSED_3 = [Rule(3, True, WINDOW)]
GROWING = Blocks(3600 * SECOND, 60 * SECOND, SECOND, WINDOW)


def guard_of(blocks):
    return Guard(Detector(3, WINDOW, block_rules=CLOSED_3), blocks)


def test_blocks_by_a_rule_double_up_to_the_longest():
    minutes = [length / (60 * SECOND) for length in lengths(guard_of(GROWING), START, 9)]
    assert minutes == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_same_ports_again_make_no_block_longer():
    assert lengths(guard_of(GROWING), START, 5, again=True) == [60 * SECOND] * 5


def test_one_new_port_makes_a_block_longer_and_none_that_any_offence_had_before():
    guard, now, found = guard_of(GROWING), START, []
    for ports in ((1, 2, 3), (2, 3, 4), (4, 3, 2), (1, 2, 4), (5, 1, 2)):
        end = scan(guard, now, ports=ports)[-1].until_ns
        found.append((end - now) // SECOND)
        now = end
    assert found == [60, 120, 120, 120, 240]


def test_which_ports_has_a_bit_for_each_that_few_share():
    assert which_ports(()) == 0
    bits = [which_ports([port]) for port in range(65536)]
    assert all(bit & bit - 1 == 0 < bit < 1 << 64 for bit in bits)
    assert {bits.count(bit) for bit in set(bits)} == {1024} and len(set(bits)) == 64
    assert which_ports((80, 443, 80)) == bits[80] | bits[443]


@pytest.mark.parametrize("step", (1, 10, 100))
def test_ports_beside_each_other_have_different_bits(step):
    for first in range(1, 65000 - 3 * step, 97):
        assert bin(which_ports(range(first, first + 3 * step, step))).count("1") == 3, first


def test_a_block_of_an_unproven_source_is_as_long_each_time_and_grows_from_the_proof_on():
    guard = guard_of(GROWING._replace(forget_ns=10**18, proof=True))
    assert lengths(guard, START, 4) == [60 * SECOND] * 4
    guard.prove(A)
    assert scan(guard, START + WINDOW * 10, ports=(101, 102, 103))[-1].until_ns == START + WINDOW * 10 + 960 * SECOND
    assert lengths(guard_of(GROWING._replace(proof=True)), START, 2) == [60 * SECOND] * 2


def test_a_proof_is_its_sources_own_and_forgotten_with_the_offences():
    guard = guard_of(GROWING._replace(proof=True))
    for source in (A, B):
        scan(guard, START, source)
    guard.prove(A)
    later = START + 61 * SECOND
    ends = [scan(guard, later, source, (4, 5, 6))[-1].until_ns - later for source in (A, B)]
    assert ends == [120 * SECOND, 60 * SECOND]
    later += 120 * SECOND + WINDOW
    for ports in ((7, 8, 9), (10, 11, 12)):
        assert scan(guard, later, ports=ports)[-1].until_ns == later + 60 * SECOND
        later += 60 * SECOND


@pytest.mark.parametrize(
    "longest_ns, first_ns, wanted",
    [(0, 0, 60 * SECOND), (3600 * SECOND, 600 * SECOND, 60 * SECOND), (9 * SECOND, 5 * SECOND, 5 * SECOND),
     (4 * SECOND, 5 * SECOND, 4 * SECOND), (0, 5 * SECOND, 5 * SECOND)],
)
def test_no_setting_makes_a_block_of_an_unproven_source_last(longest_ns, first_ns, wanted):
    assert {block_length(longest_ns, first_ns, doublings, proven=False) for doublings in range(20)} == {wanted}


def test_a_source_that_was_quiet_for_long_enough_is_new_again():
    rest = 2 * WINDOW
    blocks = Blocks(0, SECOND, SECOND, rest)
    assert lengths(guard_of(blocks), START, 4, rest - 1) == [SECOND, 2 * SECOND, 4 * SECOND, 8 * SECOND]
    assert lengths(guard_of(blocks), START, 4, rest) == [SECOND] * 4


def test_where_a_block_may_last_for_ever_the_eleventh_does():
    blocks = Blocks(0, SECOND, SECOND, 10**18)
    assert lengths(guard_of(blocks), START, 11) == [*(SECOND << n for n in range(10)), 0]


def test_a_scan_that_no_rule_matches_is_blocked_as_long_each_time():
    guard = Guard(Detector(3, WINDOW), Blocks(3600 * SECOND, 1800 * SECOND, 60 * SECOND, 10**18))
    assert lengths(guard, START, 4) == [60 * SECOND] * 4


def test_in_force():
    assert in_force(0, 10**20) and in_force(10, 9)
    assert not in_force(10, 10)
