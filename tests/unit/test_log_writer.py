# SPDX-License-Identifier: Apache-2.0
"""Lines to pipes, terminals, sockets and files: whole or not at all, never waiting, each accounted for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pty
import signal
import socket
import stat

import pytest

from packetwatch.event import IPV6, Notice
from packetwatch.sinks import writer
from packetwatch.sinks.writer import FileWriter, LineWriter, open_stream

SINGLE = (1, bytes(16), bytes(16), b"\0\1", b"\0\2", 4, 0)
SIX = (1, bytes(16), bytes(16), b"\0\1", b"\0\2", 4, IPV6)
SUMMARY = Notice(1, "summary", count=100)


@pytest.fixture(autouse=True)
def nothing_waits():
    """A write that blocks ends the test, not the run."""
    old = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a write has blocked"))
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def pipe():
    ends = list(os.pipe())
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def drain(descriptor):
    data = b""
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(descriptor, 1 << 16):
            data += chunk
    return data


def numbered(start, count, width=100):
    return [f"{number:0{width}d}\n" for number in range(start, start + count)]


def balanced(out, handed):
    tally = out.tally
    return handed == tally.written + tally.refused + len(out.pending)


class Failing(LineWriter):
    """Takes `room` bytes, then fails with `error`."""

    def __init__(self, room, error):
        super().__init__("stdout", os.open("/dev/null", os.O_WRONLY))
        self.room, self.error, self.out = room, error, b""

    def _put(self, data):
        if not self.room:
            raise OSError(self.error, os.strerror(self.error))
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.out += taken
        return len(taken)


def test_a_fast_reader_gets_everything():
    with pipe() as (read, write):
        out = open_stream(write)
        out.write(numbered(0, 10), [SINGLE] * 9 + [SUMMARY])
        assert drain(read) == "".join(numbered(0, 10)).encode()
        assert (out.tally.written, out.tally.written_connections, out.tally.bytes_written) == (10, 9, 1010)
        out.close()


def test_a_pipe_nobody_reads_never_blocks_and_loses_only_whole_lines():
    with pipe() as (read, write):
        out, handed, got = open_stream(write), 0, b""
        for _ in range(30):
            out.write(numbered(handed, 1000), [SINGLE] * 1000)
            handed += 1000
            assert balanced(out, handed)
            assert sum(map(len, out._lines)) <= writer.PENDING
        assert out.tally.refused and out.tally.last_error.startswith("EAGAIN: ")
        while out.pending:
            got += drain(read)
            out.flush()
        got += drain(read)
        assert balanced(out, handed)
        lines = got.decode().splitlines(keepends=True)
        assert len(lines) == out.tally.written == handed - out.tally.refused
        assert all(len(line) == 101 for line in lines)
        assert [int(line) for line in lines] == sorted({int(line) for line in lines})
        assert out.tally.bytes_written == len(got)
        out.close()


def test_the_shared_description_of_a_pipe_keeps_its_flags():
    with pipe() as (_, write):
        out = open_stream(write)
        assert os.get_blocking(write) and not os.get_blocking(out.fileno())
        out.close()
        os.write(write, b"still open")


def test_order_is_kept_while_lines_wait():
    out = Failing(150, errno.EAGAIN)
    out.write(numbered(0, 3), [SINGLE] * 3)
    out.write(numbered(3, 2), [SINGLE] * 2)
    assert out.out == "".join(numbered(0, 3)).encode()[:150]
    out.room = 10_000
    out.write(numbered(5, 1), [SINGLE])
    assert out.out == "".join(numbered(0, 6)).encode()
    assert out.tally.written == 6 and not out.pending


@pytest.mark.parametrize("room", range(0, 13))
def test_a_stop_at_any_byte_leaves_whole_lines(room):
    out = Failing(room, errno.EAGAIN)
    out.write(["abc\n", "de\n", "fghi\n"], [SINGLE, SUMMARY, SINGLE])
    assert balanced(out, 3) and out.tally.written == "abc\nde\nfghi\n"[:room].count("\n")
    out.room = 100
    assert out.flush()
    assert out.out == b"abc\nde\nfghi\n" and out.tally.bytes_written == 12 and out.tally.written == 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EDQUOT])
def test_a_hard_error_refuses_all_but_the_line_begun(code):
    out = Failing(6, code)
    out.write(["abc\n", "def\n", "ghi\n"], [SINGLE, SINGLE, SUMMARY])
    assert (out.tally.written, out.tally.refused, len(out.pending)) == (1, 1, 1)
    assert (out.tally.refused_connections, out.tally.refused_folded) == (0, 100)
    assert out.tally.last_error == f"{errno.errorcode[code]}: {os.strerror(code)}"
    out.write(["jkl\n"], [SIX])
    assert (out.tally.refused, out.tally.refused_connections, dict(out.tally.refused_by)) == (2, 1, {(4, IPV6): 1})
    out.room = 100
    out.write(["mno\n"], [SINGLE])
    assert out.out == b"abc\ndef\nmno\n"
    assert balanced(out, 5) and not out.pending


def test_a_hard_error_at_a_line_end_keeps_nothing():
    out = Failing(4, errno.ENOSPC)
    out.write(["abc\n", "def\n"], [SINGLE, SINGLE])
    assert (out.tally.written, out.tally.refused, len(out.pending)) == (1, 1, 0)


def test_lines_that_wait_are_refused_when_the_reader_goes():
    out = Failing(2, errno.EAGAIN)
    out.write(["abc\n", "def\n"], [SINGLE, SINGLE])
    out.error = errno.EPIPE
    out.flush()
    assert (out.tally.refused, len(out.pending)) == (1, 1)


def test_a_real_full_device():
    out = LineWriter("stdout", os.open("/dev/full", os.O_WRONLY))
    out.write(["abc\n"], [SINGLE])
    assert (out.tally.refused, out.tally.last_error) == (1, "ENOSPC: No space left on device")
    out.close()


def test_a_broken_pipe():
    with pipe() as (read, write):
        out = open_stream(write)
        os.close(read)
        for _ in range(3):
            out.write(["abc\n"], [SINGLE])
        assert out.tally.refused == 3 and out.tally.last_error.startswith("EPIPE: ")
        out.close()


def test_close_refuses_what_waits():
    out = Failing(2, errno.EAGAIN)
    out.write(["abc\n", "def\n"], [SINGLE, SUMMARY])
    out.close()
    assert (out.tally.refused, out.fileno()) == (2, -1) and balanced(out, 2)


def test_a_terminal_that_is_stopped_does_not_block():
    leader, follower = pty.openpty()
    out = open_stream(follower)
    for number in range(30):
        out.write(numbered(number * 1000, 1000), [SINGLE] * 1000)
    assert balanced(out, 30_000) and out.pending and out.tally.refused
    assert os.get_blocking(follower)
    out.close()
    os.close(leader)
    os.close(follower)


@pytest.mark.parametrize("peer_read", [True, False])
def test_a_socket_does_not_block_and_keeps_its_flags(peer_read):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        out = open_stream(ours.fileno())
        for number in range(30):
            out.write(numbered(number * 1000, 1000), [SINGLE] * 1000)
        assert balanced(out, 30_000) and out.pending and out.tally.refused
        assert os.get_blocking(ours.fileno())
        if peer_read:
            theirs.setblocking(False)
            assert drain(theirs.fileno()).startswith(numbered(0, 1)[0].encode())
        else:
            theirs.close()
            out.flush()
            assert len(out.pending) <= 1 and out.tally.last_error.startswith("EPIPE: ")
        out.close()
        assert stat.S_ISSOCK(os.fstat(ours.fileno()).st_mode)


def test_a_redirection_is_followed_from_its_offset(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"a header of the shell\n")
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        out = open_stream(file.fileno())
        out.write(["abc\n"], [SINGLE])
        os.write(file.fileno(), b"the shell again\n")
        out.write(["def\n"], [SINGLE])
        out.close()
    assert path.read_bytes() == b"a header of the shell\nabc\nthe shell again\ndef\n"


def test_where_nothing_can_be_opened_anew_the_shared_description_is_lent(monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "no")

    with pipe() as (read, write):
        monkeypatch.setattr(writer.os, "open", refuse)
        out = open_stream(write)
        assert not os.get_blocking(write)
        out.write(["abc\n"], [SINGLE])
        out.close()
        assert os.get_blocking(write) and drain(read) == b"abc\n"


def test_a_closed_descriptor_is_told_at_the_start():
    with pipe() as (_, write):
        os.close(write)
        with pytest.raises(OSError):
            open_stream(write)


def test_a_new_file_has_its_mode_and_group(tmp_path):
    old = os.umask(0o077)
    try:
        FileWriter(str(tmp_path / "log")).close()
    finally:
        os.umask(old)
    status = os.stat(tmp_path / "log")
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert os.geteuid() or status.st_gid == grp.getgrnam("adm").gr_gid


def test_an_existing_file_is_appended_to_and_keeps_its_mode(tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    path.chmod(0o600)
    out = FileWriter(str(path))
    out.write(["abc\n"], [SINGLE])
    out.close()
    assert path.read_text() == "before\nabc\n" and stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_cut_last_line_does_not_swallow_ours(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"timest')
    out = FileWriter(str(path))
    out.write(["abc\n"], [SINGLE])
    out.close()
    assert path.read_text() == '{"timest\nabc\n'


def test_reopen_follows_a_rotation(tmp_path):
    path = tmp_path / "log"
    out = FileWriter(str(path))
    out.write(["abc\n"], [SINGLE])
    path.rename(tmp_path / "log.1")
    out.write(["def\n"], [SINGLE])
    out.reopen()
    out.write(["ghi\n"], [SINGLE])
    out.close()
    assert (tmp_path / "log.1").read_text() == "abc\ndef\n" and path.read_text() == "ghi\n"


def test_a_reopen_that_fails_keeps_the_old_file(tmp_path):
    path = tmp_path / "dir" / "log"
    path.parent.mkdir()
    out = FileWriter(str(path))
    path.parent.rename(tmp_path / "gone")
    with pytest.raises(OSError):
        out.reopen()
    out.write(["abc\n"], [SINGLE])
    out.close()
    assert (tmp_path / "gone/log").read_text() == "abc\n"


@pytest.mark.parametrize("rotated", [True, False])
def test_a_line_begun_before_a_reopen_is_whole_afterwards(tmp_path, rotated):
    path = tmp_path / "log"
    out = FileWriter(str(path))
    os.write(out.fileno(), b"ab")  # what a full disk let through
    out._lines.append(b"abc\n")
    out._records.append(SINGLE)
    out._size, out._offset = 4, 2
    put, out._put = out._put, lambda data: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    if rotated:
        path.rename(tmp_path / "log.1")
    out.reopen()
    out._put = put
    out.write(["def\n"], [SINGLE])
    out.close()
    assert path.read_text() == "abc\ndef\n"


def test_descriptors_are_not_inherited(tmp_path):
    with pipe() as (_, write):
        for out in (open_stream(write), FileWriter(str(tmp_path / "log"))):
            assert fcntl.fcntl(out.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            out.close()
