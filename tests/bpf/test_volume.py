# SPDX-License-Identifier: Apache-2.0
"""Many SYNs: folding and its levels, full rings, wakeups. The ledger is checked after each test (conftest)."""

from __future__ import annotations

import contextlib
import select
import threading

import pytest

from packetwatch import event, program, rules
from packetwatch.address import parse
from packetwatch.kernel import ZERO
from packetwatch.metricnames import FAMILIES
from packetwatch.summary import Fold
from tests.bpf import harness, traffic
from tests.bpf.harness import DROP, PASS, SECOND
from tests.bpf.traffic import A, C, frame, send

START = 1000 * SECOND
RATE = SECOND // 100
BURST = 10
FRAME = 56  # bytes of a record in the ring
QUIET_NS = SECOND // 4


@pytest.fixture
def host(clocked):
    traffic.prepare(clocked)
    clocked.at(START)
    return clocked


@pytest.fixture
def folding(host):
    """One single record in 10 ms after a burst of 10; no IPv4 source is ever a scanner."""
    host.settings(fold_interval_ns=RATE, fold_burst_ns=BURST * RATE)
    host.source("0.0.0.0/0", rules.ALLOW)
    return host


@pytest.fixture
def spent(folding):
    """The same with the burst used up."""
    folding.run(frame(A, 80), repeat=BURST)
    assert len(folding.records()) == BURST
    return folding


def test_after_the_burst_single_records_come_at_the_rate(folding):
    folding.run(frame(A, 80), repeat=100)
    assert len(folding.records()) == BURST
    for number in range(1, 6):
        folding.at(START + number * RATE)
        folding.run(frame(A, 80), repeat=100)
        assert len(folding.records()) == 1
    folding.at(START + 2 * RATE * BURST)
    folding.run(frame(A, 80), repeat=100)
    assert len(folding.records()) == BURST, "after a pause there is the whole burst again, and no more"
    assert folding.counters().folded == (700 - 2 * BURST - 5, 0)


def test_a_rate_of_0_never_folds(host):
    host.run(frame(A, 80), repeat=1000)
    assert len(host.records()) == 1000


def test_each_attachment_has_a_burst_of_its_own(spent):
    spent.attach(1)
    spent.run(frame(A, 80), repeat=100)
    assert len(spent.records()) == BURST
    assert spent.folds(0) == [Fold("source_port", 1, parse(A), 80, 100 - BURST, START)]


def test_a_fold_tells_source_port_count_and_start(spent):
    spent.run(frame(A, 80), repeat=3)
    spent.at(START + 1)
    spent.run(frame(A, 81), repeat=2)
    spent.run(frame(C, 80), repeat=4)
    spent.run(frame(A, 80), repeat=5)
    assert set(spent.folds(0)) == {
        Fold("source_port", 0, parse(A), 80, 8, START),
        Fold("source_port", 0, parse(A), 81, 2, START + 1),
        Fold("source_port", 0, parse(C), 80, 4, START + 1),
    }
    assert spent.folds(0) == []


def test_what_finds_no_room_folds_by_port_and_last_by_interface(spent):
    forged = [traffic.source(number) for number in range(program.FOLDS)]
    for source in forged:
        send(spent, source, 80)
    for source in ("203.0.113.1", "203.0.113.2", C):
        send(spent, source, 443)
    send(spent, forged[0], 80)
    for port in range(1000, 1000 + program.FOLDS + 50):
        send(spent, "203.0.113.3", port)
    send(spent, "203.0.113.9", 443)
    folds = spent.folds(0)
    levels = {level: [fold for fold in folds if fold.level == level] for level in ("source_port", "port", "interface")}
    assert len(levels["source_port"]) == len(levels["port"]) == program.FOLDS
    assert [fold.count for fold in levels["source_port"] if fold.source == parse(forged[0])] == [2]
    assert [fold for fold in levels["port"] if fold.dport == 443] == [Fold("port", 0, None, 443, 4, START)]
    assert levels["interface"] == [Fold("interface", 0, None, None, 51, START)]
    assert sum(fold.count for fold in folds) == sum(spent.counters().folded)


def test_a_generation_is_taken_while_the_next_one_is_written(spent):
    spent.run(frame(A, 80), repeat=3)
    spent.change(generation=1)
    spent.run(frame(A, 80), repeat=5)
    assert spent.folds(0) == [Fold("source_port", 0, parse(A), 80, 3, START)]
    spent.change(generation=0)
    spent.run(frame(A, 80), repeat=7)
    assert spent.folds(1) == [Fold("source_port", 0, parse(A), 80, 5, START)]
    assert spent.folds(0) == [Fold("source_port", 0, parse(A), 80, 7, START)]


def test_generations_of_the_last_level_are_kept_apart(spent):
    for number in range(program.FOLDS):
        send(spent, traffic.source(number), number)
    send(spent, "203.0.113.1", *range(10000, 10000 + program.FOLDS + 3))
    spent.change(generation=1)
    send(spent, "203.0.113.1", 20000, 20001)
    rest = [fold.count for generation in (0, 1) for fold in spent.folds(generation) if fold.level == "interface"]
    assert rest == [3, 2]


def test_detection_and_blocking_do_not_depend_on_folding(spent):
    assert send(spent, C, 80, 81, 82, 83) == [PASS, PASS, PASS, DROP]
    assert not spent.records()
    assert [scan.ports for scan in spent.scans()] == [(80, 81, 82)]
    assert spent.counters().folded == (0, 3) and spent.counters().dropped == (0, 1, 0, 0, 0, 0)


def test_a_full_ring_loses_records_and_counts_them(host):
    room = (harness.CLOCKED.ring_bytes - 1) // FRAME
    host.run(frame(A, 80), repeat=room)
    assert host.counters().lost == (0, 0)
    host.run(frame(A, 80), repeat=100)
    host.run(frame(C, 80), repeat=10)
    assert host.counters().lost == (100, 10) and host.counters().recorded == (room, 0)
    assert len(host.records()) == room
    send(host, A, 80)
    assert len(host.records()) == 1


def test_a_full_ring_of_records_leaves_scans_their_place(host):
    host.run(frame(A, 80), repeat=2000)
    assert send(host, C, 80, 81, 82, 83) == [PASS, PASS, PASS, DROP]
    assert [scan.ports for scan in host.scans()] == [(80, 81, 82)]


def test_a_full_ring_of_scans_is_counted_and_the_block_stands(host):
    host.settings(ports=2)
    room = program.ALERTS_BYTES // event.ALERT.size
    for number in range(room + 20):
        send(host, traffic.source(number), 80, 81)
    host.records()
    found = len(host.scans())
    assert room - 2 <= found <= room
    assert host.counters().alerts_lost == room + 20 - found
    send(host, C, 80, 81)
    assert len(host.scans()) == 1


def test_a_cpu_wakes_the_reader_only_when_its_count_says_so(host):
    host.settings(wakeup_mask=63)
    with harness.one_cpu(), waiting(host) as woken:
        host.run(frame(A, 80))
        assert woken.wait(5), "the first one is told at once"
    host.records()
    with harness.one_cpu(), waiting(host) as woken:
        host.run(frame(A, 80), repeat=62)
        assert not woken.wait(0.2), "62 more are no reason"
        host.run(frame(A, 80))
        assert woken.wait(5), "the 64th is"


@pytest.mark.parametrize("quiet_ns, wakes", ((QUIET_NS - 1, False), (QUIET_NS, True)))
def test_the_first_record_after_a_quiet_time_wakes_the_reader(host, quiet_ns, wakes):
    host.settings(wakeup_mask=(1 << 64) - 1)
    host.run(frame(A, 80))
    host.records()
    host.at(host.time_ns + quiet_ns)
    with waiting(host) as woken:
        host.run(frame(A, 80))
        assert woken.wait(5 if wakes else 0.2) == wakes
        host.at(host.time_ns + SECOND)
        host.run(frame(A, 80))  # so that nobody waits on


@contextlib.contextmanager
def waiting(host):
    """Somebody waits for records; the event is set when he is woken."""
    woken = threading.Event()
    with select.epoll() as poll:
        poll.register(host.kernel.connections.fd, select.EPOLLIN)
        waiter = threading.Thread(target=lambda: poll.poll(10) and woken.set())
        waiter.start()
        try:
            yield woken
        finally:
            waiter.join()


def test_the_ledgers_check_finds_what_is_missing():
    assert harness.imbalance(ZERO) == {}
    balanced = ZERO._replace(syns=(5, 7), recorded=(1, 2), folded=(1, 2), dropped=(1, 1, 1, 1), lost=(1, 1))
    assert harness.imbalance(balanced) == {}
    for field in ("syns", "recorded", "folded", "lost"):
        for family, name in enumerate(FAMILIES):
            off = tuple(int(i == family) for i in range(2))
            assert list(harness.imbalance(ZERO._replace(**{field: off}))) == [name]
    assert harness.imbalance(ZERO._replace(dropped=(0, 0, 0, 1))) == {"ipv6": -1}


def test_the_ledgers_check_wants_the_records_themselves(host):
    send(host, A, 80)
    harness.drain(host.kernel.connections, list)
    with pytest.raises(AssertionError):
        host.check_ledger()
    host.reset()
