# SPDX-License-Identifier: Apache-2.0
"""Datagrams to a stand-in for journald that is slow, absent, restarted or gone."""

from __future__ import annotations

import mmap
import os
import select
import socket

import pytest

from packetwatch.event import Batch, Notice
from packetwatch.sinks import journal
from packetwatch.sinks.journal import JournalWriter
from packetwatch.sinks.log import LogSink

SINGLE = (1, bytes(16), bytes(16), b"\0\1", b"\0\2", 1, 0)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "socket")


def serve(path):
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    server.bind(path)
    return server


def read(server):
    found = []
    while True:
        try:
            found.append(server.recv(1 << 20))
        except BlockingIOError:
            return found


def entries(start, count):
    return [b"X=%d\n" % number for number in range(start, start + count)]


def balanced(out, handed):
    return handed == out.tally.written + out.tally.refused + len(out.pending)


def test_each_record_is_a_datagram(path):
    with serve(path) as server:
        out = JournalWriter(path)
        out.write(entries(0, 3), [SINGLE, SINGLE, Notice(1, "stop")])
        assert read(server) == entries(0, 3)
        assert (out.tally.written, out.tally.written_connections, out.tally.bytes_written) == (3, 2, 12)
        out.close()


def test_a_slow_journal_gets_everything_in_order(path):
    with serve(path) as server:
        out, got = JournalWriter(path), []
        out.write(entries(0, 2000), [SINGLE] * 2000)
        assert out.pending and balanced(out, 2000)
        assert select.select([], [out], [], 0)[1] == []  # waiting on it means waiting for journald
        while out.pending:
            got += read(server)
            out.flush()
        assert got + read(server) == entries(0, 2000) and out.tally.refused == 0
        assert out.tally.bytes_written == sum(map(len, entries(0, 2000)))
        out.close()


def test_what_waits_is_bounded_by_records_and_bytes(path, monkeypatch):
    out = JournalWriter(path)
    out.write(entries(0, 20_000), [SINGLE] * 20_000)
    assert len(out.pending) == journal.PENDING_RECORDS
    assert (out.tally.refused, out.tally.refused_connections) == (3616, 3616)
    assert out.tally.last_error.startswith("ENOENT: ")
    monkeypatch.setattr(journal, "PENDING_BYTES", 1000)
    out.write(entries(20_000, 1), [SINGLE])
    assert sum(map(len, out._entries)) == out._size <= 1000 and balanced(out, 20_001)
    out.close()
    assert out.tally.refused == 20_001 and not out.pending


def test_single_connections_do_not_crowd_out_what_is_always_told(path):
    out, scan = JournalWriter(path), Notice(1, "scan")
    out.write(entries(0, 20_000), [SINGLE] * 20_000)
    for number in range(3):
        out.write(entries(20_000 + 2 * number, 2), [scan, SINGLE])
    assert list(out.pending)[journal.PENDING_RECORDS :] == [scan] * 3
    assert out.tally.refused == out.tally.refused_connections == 3616 + 3 and balanced(out, 20_006)
    out.write(entries(30_000, 5000), [scan] * 5000)
    assert len(out.pending) == journal.PENDING_RECORDS + journal.RESERVED_RECORDS and balanced(out, 25_006)


def test_a_journal_that_comes_later_gets_what_waited(path):
    out = JournalWriter(path)
    out.write(entries(0, 2), [SINGLE] * 2)
    assert out.fileno() == -1 and len(out.pending) == 2
    with serve(path) as server:
        assert out.flush()
        assert read(server) == entries(0, 2)
    out.close()


def test_what_is_known_of_a_fault_does_not_keep_the_memory_of_the_ring(path):
    """The mapping could not be closed then, and a start that takes over from another kernel half failed."""
    out, page = JournalWriter(path), mmap.mmap(-1, mmap.PAGESIZE)

    def hand_over():
        frames = memoryview(page)
        out.write(entries(0, len(frames[:1])), [SINGLE])

    hand_over()
    assert len(out.pending) == 1
    page.close()
    out.close()


def test_a_restart_of_the_journal_costs_nothing(path):
    out = JournalWriter(path)
    with serve(path) as server:
        out.write(entries(0, 1), [SINGLE])
        assert read(server) == entries(0, 1)
    out.write(entries(1, 1), [SINGLE])
    assert len(out.pending) == 1 and out.tally.last_error.startswith("ECONNREFUSED: ")
    os.unlink(path)
    with serve(path) as server:
        out.write(entries(2, 1), [SINGLE])
        assert read(server) == entries(1, 2)
    assert out.tally.written == 3 and out.tally.refused == 0
    out.close()


def test_a_record_too_long_for_a_datagram_does_not_hold_up_the_others(path, monkeypatch):
    monkeypatch.setattr(journal, "PENDING_BYTES", 1 << 16)  # asked for as the socket's buffer, too
    with serve(path) as server:
        out = JournalWriter(path)
        long = b"X=" + b"y" * (1 << 20) + b"\n"
        out.write([*entries(0, 1), long, *entries(1, 1)], [SINGLE] * 3)
        assert read(server) == entries(0, 2)
        assert (out.tally.written, out.tally.refused) == (2, 1) and out.tally.last_error.startswith("EMSGSIZE: ")
        assert out.tally.bytes_written == 8 and out._size == 0
        out.close()


def test_the_sink_as_a_whole(path):
    with serve(path) as server:
        sink = LogSink("journal", JournalWriter(path))
        outcome = sink.consume(Batch([SINGLE], [Notice(5, "stop")], 0, {1: "eth0"}), 9)
        assert (outcome.where, outcome.written, outcome.written_connections, outcome.refused) == ("journal", 2, 1, 0)
        first, second = read(server)
        assert b"\nPACKETWATCH_IN_IFACE=eth0\n" in first and first.startswith(b"MESSAGE=New connection: ")
        assert b"\nPACKETWATCH_EVENT_TYPE=stop\n" in second
        sink.close(9)
