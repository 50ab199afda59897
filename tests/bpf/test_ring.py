# SPDX-License-Identifier: Apache-2.0
"""The reader of the rings: on the kernel's ring, and on a copy of its layout whose records are unfinished."""

from __future__ import annotations

import mmap
import os
import struct

import pytest

from packetwatch import event
from packetwatch.ring import Ring
from tests.bpf import harness, traffic

PAGE = mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30


@pytest.fixture
def host(clocked):
    return traffic.prepare(clocked)


def push(host, numbers):
    """One connection for each number, which is its source port."""
    for number in numbers:
        host.run(traffic.frame(traffic.A, 80, number))


def sports(frames):
    return [int.from_bytes(record[3], "big") for record in event.connections(frames)]


def test_records_come_in_order_over_many_rounds_of_the_ring(host):
    ring, sent = host.kernel.connections, 0
    room = ring.size // ring.frame
    for size in (1, 7, room, room - 1, room // 2, 3, room, 1) * 2:
        push(host, range(sent, sent + size))
        frames = ring.peek(1 << 20)
        assert sports(frames) == list(range(sent, sent + size))
        host.seen += event.connections(frames)
        ring.advance(frames)
        assert ring.backlog() == 0 and not ring.peek(10)
        sent += size
    assert sent * ring.frame > 5 * ring.size


def test_a_limit_cuts_and_peeking_takes_nothing(host):
    ring = host.kernel.connections
    push(host, range(10))
    assert sports(ring.peek(4)) == sports(ring.peek(4)) == [0, 1, 2, 3]
    frames = ring.peek(4)
    host.seen += event.connections(frames)
    ring.advance(frames)
    assert sports(ring.peek(4)) == [4, 5, 6, 7]
    assert ring.backlog() == 6 * ring.frame
    assert sports(ring.peek(100)) == [4, 5, 6, 7, 8, 9]


def test_a_new_reader_goes_on_where_the_last_one_stopped(host):
    push(host, range(5))
    first = host.kernel.connections
    frames = first.peek(2)
    host.seen += event.connections(frames)
    first.advance(frames)
    second = Ring(first.fd, first.size, event.CONNECTION.size - 8)
    assert sports(second.peek(100)) == [2, 3, 4]
    second.close()


def test_frames_have_the_size_of_the_record_and_its_header(host):
    assert host.kernel.connections.frame == event.CONNECTION.size == 56
    assert host.kernel.probes.frame == event.PROBE.size == 56
    assert host.kernel.alerts.frame == event.ALERT.size == 200


class Copy:
    """The layout of the kernel's ring in memory: positions a page each, and the data twice in a row."""

    def __init__(self, size=PAGE, record=48):
        self.size, self.record, self.produced = size, record, 0
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * size)

    def put(self, number, flags=0):
        at = self.produced % self.size
        data = struct.pack("=IIQ", self.record | flags, 0, number).ljust(self.record + 8, b"\0")
        for half in (0, self.size):
            for place, byte in enumerate(data, at):
                os.pwrite(self.fd, bytes([byte]), 2 * PAGE + half + place % self.size)
        self.produced += len(data)
        os.pwrite(self.fd, struct.pack("=Q", self.produced), PAGE)

    def finish(self, index):
        at = index * (self.record + 8) % self.size
        for half in (0, self.size):
            os.pwrite(self.fd, struct.pack("=I", self.record), 2 * PAGE + half + at)


@pytest.fixture
def copy():
    made = Copy()
    yield made, Ring(made.fd, made.size, made.record)
    os.close(made.fd)


def numbers(frames):
    return [number for number, in struct.iter_unpack("=8xQ40x", frames)]


def test_an_unfinished_record_holds_up_those_behind_it(copy):
    memory, ring = copy
    for number, flags in ((1, 0), (2, 0), (3, BUSY), (4, 0)):
        memory.put(number, flags)
    assert numbers(ring.peek(10)) == [1, 2]
    ring.advance(ring.peek(10))
    assert numbers(ring.peek(10)) == []
    memory.finish(2)
    assert numbers(ring.peek(10)) == [3, 4]


def test_a_record_over_the_end_is_read_whole(copy):
    memory, ring = copy
    for number in range(500):
        memory.put(number)
        frames = ring.peek(10)
        assert numbers(frames) == [number]
        ring.advance(frames)
    assert memory.produced > 6 * memory.size and memory.size % ring.frame


def test_positions_beyond_32_bits_are_no_trouble(copy):
    memory, ring = copy
    start = (1 << 33) // (memory.size * ring.frame) * memory.size * ring.frame
    memory.produced = start
    os.pwrite(memory.fd, struct.pack("=Q", start), 0)
    for number in range(3):
        memory.put(number)
    assert numbers(ring.peek(10)) == [0, 1, 2] and ring.backlog() == 3 * ring.frame


def test_the_reader_never_writes_the_producers_position(host):
    with pytest.raises(TypeError):
        host.kernel.connections._producer[0] = 0
    assert harness.drain(host.kernel.connections, event.connections) == []
