# SPDX-License-Identifier: Apache-2.0
"""Session files as logind writes them, and as it never would; the watch on their directory."""

from __future__ import annotations

import errno
import os
import select

import pytest

from packetwatch import sessions
from packetwatch.address import parse

REMOTE = """\
# This is private data. Do not parse.
UID=1000
USER=admin
ACTIVE=1
IS_DISPLAY=0
STATE=active
REMOTE=1
LEADER_PIDFD=0
TYPE=tty
CLASS=user
SCOPE=session-4.scope
FIFO=/run/systemd/sessions/4.ref
REMOTE_HOST=192.0.2.56
SERVICE=sshd
LEADER=812
AUDIT=4
"""


def hosts(directory, content, name="4"):
    (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return sessions.remote_hosts(directory)


def from_host(text, state="active", remote="1"):
    return f"STATE={state}\nREMOTE={remote}\nREMOTE_HOST={text}\n"


def test_a_session_as_logind_writes_it(tmp_path):
    assert hosts(tmp_path, REMOTE) == {parse("192.0.2.56")}


def test_several_sessions_and_the_fifos_beside_them(tmp_path):
    hosts(tmp_path, REMOTE)
    hosts(tmp_path, from_host("2001:db8::5"), "c1")
    os.mkfifo(tmp_path / "4.ref")
    (tmp_path / "directory").mkdir()
    assert sessions.remote_hosts(tmp_path) == {parse("192.0.2.56"), parse("2001:db8::5")}


@pytest.mark.parametrize(
    "content, expected",
    [
        (from_host("192.0.2.1", state="online"), "192.0.2.1"),
        (from_host("192.0.2.1", state="opening"), "192.0.2.1"),
        ("REMOTE=1\nREMOTE_HOST=192.0.2.1\n", "192.0.2.1"),
        (from_host('"192.0.2.1"'), "192.0.2.1"),
        (from_host("fe80::1%eth0"), "fe80::1"),
        (from_host("::ffff:192.0.2.1"), "192.0.2.1"),
        (from_host("192.0.2.1", state="closing"), None),
        (from_host("192.0.2.1", remote="0"), None),
        ("REMOTE_HOST=192.0.2.1\n", None),
        (from_host("bastion.example.org"), None),
        (from_host("localhost"), None),
        (from_host(""), None),
        (from_host("0.0.0.0"), None),
        (from_host("::"), None),
        (from_host("192.0.2.1/24"), None),
        (from_host("192.0.2.1 198.51.100.1"), None),
        (from_host("1" * 100_000), None),
        (from_host("192.0.2.1\0x"), None),
        (b"REMOTE=1\nREMOTE_HOST=\xff\xfe\n", None),
        (b"\0" * 5000, None),
        (b"A" * 200_000 + from_host("192.0.2.1").encode(), None),
        ("", None),
        ("=\n==\nREMOTE\n", None),
    ],
)
def test_content(tmp_path, content, expected):
    assert hosts(tmp_path, content) == ({parse(expected)} if expected else set())


def test_half_written_and_linked_files_are_left_out(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(REMOTE)
    directory = tmp_path / "sessions"
    directory.mkdir()
    hosts(directory, REMOTE, ".#sessions4aXbYcZ")
    (directory / "5").symlink_to(elsewhere)
    assert sessions.remote_hosts(directory) == set()


def test_the_number_of_sessions_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "_SESSION_LIMIT", 2)
    for number in range(4):
        hosts(tmp_path, from_host(f"192.0.2.{number + 1}"), str(number))
    assert len(sessions.remote_hosts(tmp_path)) == 2


@pytest.fixture
def watch(tmp_path):
    made = sessions.Sessions(tmp_path)
    yield made
    made.close()


def readable(watch):
    return bool(select.select([watch.fileno()], [], [], 0.5)[0])


def test_a_login_and_a_logout_are_told(tmp_path, watch):
    assert watch.drain() is False
    assert watch.hosts() == set()
    (tmp_path / ".#4").write_text(REMOTE)
    (tmp_path / ".#4").rename(tmp_path / "4")
    assert readable(watch) and watch.drain() is True
    assert watch.hosts() == {parse("192.0.2.56")}
    assert watch.drain() is False
    (tmp_path / "4").unlink()
    assert readable(watch) and watch.drain() is True
    assert watch.hosts() == set()


def test_reading_the_files_tells_nothing(tmp_path):
    hosts(tmp_path, REMOTE)
    watch = sessions.Sessions(tmp_path)
    watch.hosts()
    assert watch.drain() is False
    watch.close()


def test_without_logind_there_is_nothing_to_wait_for(tmp_path):
    watch = sessions.Sessions(tmp_path / "missing")
    assert (watch.fileno(), watch.drain(), watch.hosts()) == (None, False, set())
    watch.close()


@pytest.mark.parametrize("away", [lambda path: path.rmdir(), lambda path: path.rename(path.with_name("moved"))])
def test_a_directory_that_goes_ends_the_watch(tmp_path, away):
    directory = tmp_path / "sessions"
    directory.mkdir()
    watch = sessions.Sessions(directory)
    away(directory)
    directory.mkdir()
    assert readable(watch) and watch.drain() is True
    assert watch.fileno() is None
    assert watch.drain() is False


def test_a_refused_watch_is_an_error_that_names_it(tmp_path, monkeypatch):
    class Libc:
        def inotify_init1(self, flags):
            sessions.ctypes.set_errno(errno.EMFILE)
            return -1

    monkeypatch.setattr(sessions.ctypes, "CDLL", lambda *_, **__: Libc())
    with pytest.raises(OSError, match="cannot watch for sessions: Too many open files"):
        sessions.Sessions(tmp_path)


def test_closing_gives_the_descriptor_back(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path, tmp_path / "missing"):
        sessions.Sessions(path).close()
    assert len(os.listdir("/proc/self/fd")) == before
