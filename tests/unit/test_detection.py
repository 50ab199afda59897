# SPDX-License-Identifier: Apache-2.0
"""The scan rule: window edges, repeated ports, many ports, and a naive implementation beside it."""

import random

import pytest

from packetwatch.address import parse, parse_prefix
from packetwatch.detection import DROP, PASS, SCAN, TICK_NS, WOULD_DROP, Detector, Guard, Verdict, in_force
from packetwatch.rules import Entry, effective

SECOND = 1_000_000_000
A, B = parse("192.0.2.1"), parse("2001:db8::1")
START = 1000 * SECOND // TICK_NS * TICK_NS
WINDOW = 60 * SECOND // TICK_NS * TICK_NS


def feed(detector, *syns, source=A):
    return [detector.syn(source, port, START + at) for port, at in syns]


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
    found = feed(Detector(2, WINDOW), (1, 0), (2, 1), (3, 2), (4, 3))
    assert found == [None, (1, 2), None, (3, 4)]


def test_sources_do_not_share_a_history():
    detector = Detector(2, WINDOW)
    assert [detector.syn(s, p, START) for s, p in [(A, 1), (B, 2), (A, 1), (B, 2)]] == [None] * 4
    assert detector.syn(B, 1, START) == (2, 1)


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


def naive_scan(history, ports, window_ns):
    """All SYNs of a source since it last started afresh, judged at the newest."""
    now = history[-1][1] // TICK_NS * TICK_NS
    last = {}
    for port, at in history:
        last.pop(port, None)
        last[port] = at // TICK_NS * TICK_NS
    inside = tuple(port for port, at in last.items() if now - at < window_ns)
    return inside if len(inside) >= ports else None


@pytest.mark.parametrize("ports", [2, 3, 5, 16, 64])
def test_random_sequences_give_what_a_naive_reading_of_the_rule_gives(ports):
    draw = random.Random(ports)
    scans = 0
    for _ in range(60):
        window = draw.choice([SECOND, WINDOW, 7 * TICK_NS + 5])
        detector, now, histories = Detector(ports, window), START, {A: [], B: []}
        for _ in range(6 * ports + 40):
            now += draw.choice([0, 1, TICK_NS - 1, window // ports, window // (ports - 1)])
            now += window if draw.random() < 0.2 / ports else 0
            source = draw.choice([A, A, A, B])
            histories[source].append((draw.randint(1, 2 * ports), now))
            expected = naive_scan(histories[source], ports, window)
            assert detector.syn(source, histories[source][-1][0], now) == expected
            if expected:
                scans += 1
                histories[source].clear()
    assert scans > 20


def scan(guard, now, source=A):
    return [guard.judge(source, port, now) for port in (1, 2, 3)]


def test_the_syn_that_completes_a_scan_goes_through_and_the_next_is_dropped_until_the_end():
    guard = Guard(Detector(3, WINDOW), 3600 * SECOND)
    end = START + 3600 * SECOND
    assert scan(guard, START) == [Verdict(PASS), Verdict(PASS), Verdict(SCAN, (1, 2, 3), end)]
    assert guard.judge(A, 80, START) == Verdict(DROP, (), end)
    assert guard.judge(A, 80, end - 1).action == DROP
    assert guard.judge(B, 80, START).action == PASS
    assert guard.judge(A, 80, end) == Verdict(PASS)
    assert [v.action for v in scan(guard, end + WINDOW)] == [PASS, PASS, SCAN]


def test_what_is_dropped_is_not_tracked():
    guard = Guard(Detector(3, WINDOW), SECOND)
    scan(guard, START)
    assert {guard.judge(A, port, START + SECOND - 1).action for port in range(10)} == {DROP}
    assert guard.judge(A, 80, START + SECOND).action == PASS
    assert guard.judge(A, 81, START + SECOND).action == PASS


def test_a_block_without_end_has_none():
    guard = Guard(Detector(3, WINDOW), 0)
    assert scan(guard, START)[-1] == Verdict(SCAN, (1, 2, 3), 0)
    assert guard.judge(A, 80, START + 10**18) == Verdict(DROP)


def test_observe_keeps_the_same_state_and_says_would():
    guard = Guard(Detector(3, WINDOW), SECOND, enforce=False)
    assert [v.action for v in scan(guard, START)] == [PASS, PASS, SCAN]
    assert guard.judge(A, 80, START) == Verdict(WOULD_DROP, (), START + SECOND)
    assert guard.judge(A, 80, START + SECOND).action == PASS


def test_lists_come_before_the_rule():
    allow = [Entry(parse_prefix("192.0.2.0/24"), "config")]
    block = [Entry(parse_prefix("2001:db8::/32"), "manual", until_ns=START + 5)]
    guard = Guard(Detector(3, WINDOW), SECOND, sources=effective([], allow, block))
    assert {guard.judge(A, port, START).action for port in range(10)} == {PASS}
    assert guard.judge(B, 80, START + 4) == Verdict(DROP, (), START + 5)
    assert [v.action for v in scan(guard, START + 5, B)] == [PASS, PASS, SCAN]


def test_in_force():
    assert in_force(0, 10**20) and in_force(10, 9)
    assert not in_force(10, 10)
