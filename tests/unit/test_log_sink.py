# SPDX-License-Identifier: Apache-2.0
"""The log sink as a whole: what it writes at each detail, and that its balance is exact."""

from __future__ import annotations

import errno
import json
import os
import pty
import random

import pytest

from packetwatch import address
from packetwatch.event import Batch, Notice
from packetwatch.sinks.log import LogSink, choose_form
from packetwatch.sinks.writer import FileWriter, LineWriter

SECOND = 1_000_000_000


class Memory(LineWriter):
    """Takes `room` bytes in all, then fails with `error`."""

    def __init__(self, room=1 << 40, error=errno.EAGAIN):
        super().__init__("stdout", os.open("/dev/null", os.O_WRONLY))
        self.room, self.error, self.out = room, error, b""

    def _put(self, data):
        if not self.room:
            raise OSError(self.error, os.strerror(self.error))
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.out += taken
        return len(taken)

    def objects(self):
        return [json.loads(line) for line in self.out.splitlines()]


def connection(number, boot_ns=0):
    source = address.MAPPED + number.to_bytes(4, "big")
    return boot_ns, source, address.MAPPED + bytes(4), b"\0\1", b"\0\x50", 1, 0


def batch(count, *notices, start=0):
    return Batch([connection(start + n, n) for n in range(count)], notices, 0, {1: "eth0"})


def balanced(sink):
    return all(b.handed == b.written + b.refused + b.set_aside + b.pending for b in sink.balance())


def test_each_writes_each():
    out = Memory()
    sink = LogSink("json", out)
    outcome = sink.consume(batch(3, Notice(1, "stop")), 0)
    assert outcome == ("stdout", 3, 0, 4, 0, "")
    assert [o["event_type"] for o in out.objects()] == ["connection", "connection", "stop", "connection"]
    assert (sink.name, sink.written, sink.refused, sink.pending) == ("stdout", 4, 0, 0)
    assert sink.bytes_written == len(out.out) and balanced(sink)


def test_a_refusal_is_an_outcome_with_its_place_and_error():
    sink = LogSink("json", Memory(0, errno.ENOSPC))
    outcome = sink.consume(batch(3, Notice(1, "summary", count=50)), 0)
    assert outcome == ("stdout", 0, 3, 0, 4, "ENOSPC: No space left on device")
    assert (sink.refused_connections, sink.refused_folded, dict(sink.refused_by)) == (3, 50, {(1, 0): 3})
    assert sink.last_error == outcome.error and balanced(sink)
    assert sink.consume(batch(0), 0).error == ""


def test_what_waited_is_told_by_the_call_that_wrote_it():
    out = Memory(10)
    sink = LogSink("json", out)
    assert sink.consume(batch(2), 0)[1:5] == (0, 0, 0, 0)
    assert sink.pending == 2 and balanced(sink)
    out.room = 1 << 20
    assert sink.flush(1)[1:5] == (2, 0, 2, 0)
    assert balanced(sink)


def test_only_what_polling_helps_is_waited_on():
    out = Memory(10)
    sink = LogSink("json", out)
    assert sink.waits_on() == -1
    sink.consume(batch(2), 0)
    assert sink.waits_on() == out.fileno()
    out.error = errno.EPIPE  # poll would return at once, for ever
    sink.flush(0)
    assert sink.pending == 1 and sink.waits_on() == -1


def test_summary_counts_what_it_does_not_write():
    out = Memory()
    sink = LogSink("json", out, connections="summary")
    kernel = Notice(1, "summary", in_iface="eth0", level="port", dest_port=80, count=9)
    sink.consume(batch(100, kernel), 5 * SECOND)
    sink.consume(batch(100, Notice(1, "block", source="192.0.2.1"), start=50), 5 * SECOND + 1)
    assert [o["event_type"] for o in out.objects()] == ["summary", "block"]
    sink.flush(6 * SECOND)
    told = out.objects()[2:]
    assert sum(o["count"] for o in told) == 200 and {o["event_type"] for o in told} == {"summary"}
    assert [o["level"] for o in told] == ["source_port"] * 32 + ["interface"]
    singles, others = sink.balance()
    assert singles == (200, 0, 0, 200, 0) and others == (35, 35, 0, 0, 0)


def test_summaries_that_are_not_due_come_at_the_close():
    out = Memory()
    sink = LogSink("json", out, connections="summary")
    sink.consume(batch(1), 5 * SECOND)
    sink.flush(5 * SECOND + 1)
    assert out.out == b""
    sink.close(5 * SECOND + 2)
    assert [o["count"] for o in out.objects()] == [1] and balanced(sink)


def test_off_writes_neither_connections_nor_summaries():
    out = Memory()
    sink = LogSink("json", out, connections="off")
    notices = [Notice(1, kind) for kind in ("scan", "block", "unblock", "drop", "summary", "loss", "start", "stop")]
    sink.consume(batch(5, *notices), 0)
    sink.close(9 * SECOND)
    assert [o["event_type"] for o in out.objects()] == [n.event_type for n in notices if n.event_type != "summary"]
    assert sink.balance()[0].set_aside == 5 and balanced(sink)


def test_reload_changes_detail_and_cutting():
    out = Memory()
    sink = LogSink("json", out, connections="summary")
    sink.consume(batch(1, start=0xC0000238), SECOND)
    sink.configure("each", True)
    sink.consume(batch(1, start=0xC0000238), SECOND)
    sink.flush(2 * SECOND)
    assert [(o["event_type"], o["src_ip"]) for o in out.objects()] == [
        ("connection", "192.0.2.0"),
        ("summary", "192.0.2.0"),
    ]
    with pytest.raises(ValueError, match="each, summary or off"):
        sink.configure("some", False)


def test_the_balance_holds_whatever_comes():
    rng = random.Random(3)
    out = Memory(0)
    sink = LogSink("json", out)
    for step in range(300):
        out.room = rng.choice([0, 0, 7, 5_000, 400_000])
        out.error = rng.choice([errno.EAGAIN, errno.EAGAIN, errno.EPIPE, errno.ENOSPC])
        sink.configure(rng.choice(["each", "each", "summary", "off"]), rng.random() < 0.2)
        notices = [Notice(rng.randrange(50), rng.choice(["scan", "summary", "stop"]), count=3) for _ in range(2)]
        sink.consume(batch(rng.choice([0, 1, 50, 3000]), *notices), step * SECOND // 3)
        assert balanced(sink)
    out.room = 1 << 30
    sink.close(1000 * SECOND)
    assert balanced(sink) and sink.pending == 0 and sink.refused
    assert len(out.objects()) == sink.written  # every line that came out is whole
    assert sink.bytes_written == len(out.out)


def test_the_file_holds_json_lines(tmp_path):
    sink = LogSink("json", FileWriter(str(tmp_path / "log")))
    sink.consume(batch(2), 0)
    sink.close(0)
    found = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(found) == 2 and sink.name == "file"


def test_the_form_chosen_by_auto(tmp_path):
    leader, follower = pty.openpty()
    with open(tmp_path / "out", "w") as file:
        status = os.fstat(file.fileno())
        stream = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert choose_form("auto", {}, follower) == "text"
        assert choose_form("auto", stream, file.fileno()) == "journal"
        assert choose_form("auto", {"JOURNAL_STREAM": "1:2"}, file.fileno()) == "json"
        assert choose_form("auto", {}, file.fileno()) == "json"
        assert choose_form("text", stream, file.fileno()) == "text"
    os.close(leader)
    os.close(follower)
    assert choose_form("auto", {}, follower) == "json"
