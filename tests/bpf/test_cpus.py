# SPDX-License-Identifier: Apache-2.0
"""One source on two CPUs at once: exactly one scan, exactly as many ports let through, an exact ledger.

The order is that of the source's lock; which CPU is first is left to the machine, over many rounds.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os

import pytest

from packetwatch import clock, event, rules
from packetwatch.address import parse, single
from packetwatch.kernel import Block
from tests.bpf import traffic
from tests.bpf.harness import DROP, PASS, SECOND
from tests.bpf.traffic import A, send

FORK = multiprocessing.get_context("fork")
ROUNDS = 60


@pytest.fixture
def host(rig):
    return traffic.prepare(rig)


class Cpu:
    """A process on a CPU of its own that sends what it is told, when all are ready."""

    def __init__(self, number, rig, barrier):
        cpus = sorted(os.sched_getaffinity(0))
        self.pipe, theirs = FORK.Pipe()
        arguments = (cpus[number % len(cpus)], rig, barrier, theirs)
        self.process = FORK.Process(target=self.work, args=arguments, daemon=True)
        self.process.start()

    @staticmethod
    def work(cpu, rig, barrier, pipe):
        os.sched_setaffinity(0, {cpu})
        while True:
            frames, repeat = pipe.recv()
            barrier.wait()
            pipe.send([rig.run(frame, repeat=repeat) for frame in frames])

    def stop(self):
        self.process.terminate()
        self.process.join()


@contextlib.contextmanager
def two_cpus(rig):
    barrier = FORK.Barrier(2)
    cpus = [Cpu(number, rig, barrier) for number in range(2)]
    try:
        yield cpus
    finally:
        for cpu in cpus:
            cpu.stop()


def at_once(cpus, halves, repeat=1):
    """The verdicts on each half, sent by two CPUs at the same time."""
    for cpu, frames in zip(cpus, halves):
        cpu.pipe.send((frames, repeat))
    return [cpu.pipe.recv() for cpu in cpus]


@pytest.mark.parametrize("ports", (2, 3, 10, 64))
def test_distinct_ports_from_two_cpus_make_one_scan(host, ports):
    host.settings(ports=ports, window_ns=60 * SECOND)
    with two_cpus(host) as cpus:
        for number in range(ROUNDS):
            source = traffic.source(number + (1 << 16) * (number % 2))
            halves = [[traffic.frame(source, port) for port in range(first, 2 * ports + 2, 2)] for first in (1, 2)]
            verdicts = sum(at_once(cpus, halves), [])
            assert verdicts.count(PASS) == ports and verdicts.count(DROP) == ports + 1
            scan, = host.scans()
            passed = traffic.ports(host.records())
            assert (scan.saddr, scan.block) == (parse(source), event.BLOCKED)
            assert sorted(scan.ports) == sorted(passed) and len(set(passed)) == ports
            assert host.kernel.blocks.remove(single(parse(source))).dropped == ports + 1
    assert sum(host.counters().scans) == ROUNDS


@pytest.mark.parametrize("ports", (2, 5))
def test_ports_hammered_from_two_cpus_make_one_scan(host, ports):
    """Under the heaviest strife for the lock: each SYN repeated 100 times."""
    host.settings(ports=ports)
    dropped = 0
    with two_cpus(host) as cpus:
        for number in range(ROUNDS):
            source = traffic.source(number)
            halves = [[traffic.frame(source, port) for port in range(first, 2 * ports, 2)] for first in (1, 2)]
            at_once(cpus, halves, repeat=100)
            scan, = host.scans()
            passed = set(traffic.ports(host.records()))
            assert set(scan.ports) == passed and len(passed) == ports
            block = host.kernel.blocks.remove(single(parse(source)))
            assert block.until_ns == scan.until_ns
            dropped += block.dropped
    assert host.counters().dropped[0] == dropped


def test_two_cpus_on_many_sources_keep_every_count(host):
    """Trackers replaced, blocks made and folds counted by both at once; the ledger is checked after the test."""
    host.settings(ports=2, fold_interval_ns=SECOND // 100, fold_burst_ns=SECOND)
    host.source("198.18.3.0/24", rules.BLOCK)
    sources = [traffic.source(number) for number in range(512, 1024)]
    with two_cpus(host) as cpus:
        for _ in range(4):
            pairs = ((1, 2), (2, 3))
            at_once(cpus, [[traffic.frame(source, port) for source in sources for port in pair] for pair in pairs])
            host.records()
            host.scans()
    counted = host.counters()
    assert counted.syns == (4 * 4 * len(sources), 0)
    assert sum(counted.scans) == 256 == len(host.seen_scans)
    assert counted.dropped[2] == 4 * 4 * 256 == host.kernel.sources.dropped(rules.Prefix(parse("198.18.3.0"), 120))
    assert {scan.saddr for scan in host.seen_scans} == {parse(source) for source in sources[:256]}


def test_a_block_counts_the_drops_of_both_cpus(host):
    source = traffic.source(1)
    traffic.send(host, source, 80, 81, 82)
    with two_cpus(host) as cpus:
        at_once(cpus, [[traffic.frame(source, 80)]] * 2, repeat=20000)
    assert traffic.block(host, source).dropped == 40000 == host.counters().dropped[0]


def test_a_block_ends_in_time_though_its_drops_hardly_ask_the_clock(host):
    """Till a second before the end a CPU asks once in a tick of the kernel, then for each SYN."""
    begin = clock.boot_ns()
    end = begin + 3 * SECOND // 2
    host.kernel.blocks.put(Block(parse(A), end, begin, 0, 0))
    dropped = 0
    while True:
        before = clock.boot_ns()
        verdict, = send(host, A, 80)
        if before >= end:
            break
        assert verdict == DROP or clock.boot_ns() >= end
        dropped += verdict == DROP
    assert verdict == PASS and host.counters().dropped[0] == dropped == traffic.block(host, A).dropped > 100
