# SPDX-License-Identifier: Apache-2.0
"""packetwatch.notify against a socket that plays systemd."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from packetwatch import notify


class Manager:
    """systemd's end of the notify socket."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)

    def receive(self):
        """(assignments, descriptors) of one message."""
        data, fds, _, _ = socket.recv_fds(self.socket, 4096, 4)
        return data.decode().split("\n"), fds


@pytest.fixture
def manager(tmp_path, monkeypatch):
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    yield manager
    manager.socket.close()


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda: notify.ready(), ["READY=1"]),
        (lambda: notify.ready("Watching eth0"), ["READY=1", "STATUS=Watching eth0"]),
        (lambda: notify.status("3 blocked"), ["STATUS=3 blocked"]),
        (lambda: notify.stopping(), ["STOPPING=1"]),
        (lambda: notify.watchdog(), ["WATCHDOG=1"]),
        (lambda: notify.remove("map.blocks"), ["FDSTOREREMOVE=1", "FDNAME=map.blocks"]),
        (lambda: notify.status("a\nREADY=1\r\n\x00b\x1b[1m"), ["STATUS=a READY=1 b [1m"]),
    ],
)
def test_messages(manager, call, expected):
    assert call() is True
    assert manager.receive() == (expected, [])


def test_reloading_carries_the_monotonic_time(manager):
    before = int(open("/proc/uptime").read().split(".")[0]) * 10**6
    assert notify.reloading("Reading settings")
    (first, second, third), _ = manager.receive()
    assert (first, third) == ("RELOADING=1", "STATUS=Reading settings")
    key, value = second.split("=")
    assert key == "MONOTONIC_USEC" and before <= int(value) < before + 60 * 10**6


def test_an_empty_status_sends_nothing(manager):
    assert notify.status(" \n ") is False
    assert notify.watchdog()
    assert manager.receive() == (["WATCHDOG=1"], [])


def test_store_hands_the_descriptor_over_without_polling(manager):
    reader, writer = os.pipe()
    assert notify.store("ring.alerts", reader)
    assignments, (copy,) = manager.receive()
    assert assignments == ["FDSTORE=1", "FDNAME=ring.alerts", "FDPOLL=0"]
    os.write(writer, b"x")
    assert os.read(copy, 1) == b"x"
    for fd in (reader, writer, copy):
        os.close(fd)


@pytest.mark.parametrize("name", ["", "a:b", "a\nREADY=1", "ä", "x" * 256])
def test_bad_names_are_refused_before_sending(name):
    with pytest.raises(ValueError):
        notify.store(name, 0)
    with pytest.raises(ValueError):
        notify.remove(name)


def test_barrier_waits_for_the_close(manager):
    held = []

    def answer():
        assignments, fds = manager.receive()
        held.append(assignments)
        os.close(fds[0])

    thread = threading.Thread(target=answer)
    thread.start()
    assert notify.barrier() is True
    thread.join()
    assert held == [["BARRIER=1"]]


def test_barrier_gives_up(manager):
    assert notify.barrier(timeout_ns=20_000_000) is False
    _, fds = manager.receive()
    os.close(fds[0])


def test_barrier_leaks_no_descriptor(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    before = os.listdir("/proc/self/fd")
    assert notify.barrier() is False
    assert os.listdir("/proc/self/fd") == before


def test_outside_systemd_nothing_is_sent(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.AVAILABLE
    assert not any([notify.ready("x"), notify.status("x"), notify.reloading(), notify.stopping(), notify.watchdog()])
    assert not any([notify.store("x", 0), notify.remove("x")])


def test_a_vanished_socket_is_false_not_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert notify.ready() is False


def test_without_python_systemd_it_says_so(manager):
    hide = "import sys; sys.modules['systemd'] = None; "
    code = hide + "from packetwatch import notify; print(notify.AVAILABLE, notify.ready())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("False False\n", "")


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        ({"WATCHDOG_USEC": "10000000"}, 10_000_000_000),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 10_000_000_000),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(monkeypatch, environment, expected):
    for key in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    assert notify.watchdog_interval_ns() == expected


#: Puts two descriptors at 3 and 4 in a process of its own, then asks twice.
INHERIT = """
import os
for fd in (3, 4):
    os.dup2(0, fd, inheritable=True)
os.environ["LISTEN_PID"] = {pid}
os.environ["LISTEN_FDS"] = "2"
os.environ.update({names})
from packetwatch import notify
print(notify.inherited(), os.get_inheritable(3), notify.inherited(), sorted(k for k in os.environ if "LISTEN" in k))
"""


@pytest.mark.parametrize(
    "pid, names, expected",
    [
        ("str(os.getpid())", "link:map.blocks", "[('link', 3), ('map.blocks', 4)] False [] []"),
        ("str(os.getpid())", "link", "[('link', 3), ('unknown', 4)] False [] []"),
        ("str(os.getpid())", None, "[('unknown', 3), ('unknown', 4)] False [] []"),
        ("'1'", "link:map.blocks", "[] True [] []"),
    ],
)
def test_inherited(pid, names, expected):
    code = INHERIT.format(pid=pid, names={"LISTEN_FDNAMES": names} if names else {})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.stdout.strip(), done.stderr) == (expected, "")
