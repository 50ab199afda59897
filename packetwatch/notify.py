# SPDX-License-Identifier: Apache-2.0
"""Messages to systemd and the descriptors it keeps (sd_notify(3), sd_listen_fds(3)): mechanism only.

Every sender returns whether the message went out: False outside systemd, without python-systemd,
or when the socket refuses. None raises.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import re
import select
import time
from collections.abc import Sequence
from typing import Any, Optional

try:
    _systemd: Any = importlib.import_module("systemd.daemon")
except ImportError:  # without it Packetwatch runs, but systemd neither hears from it nor keeps its descriptors
    _systemd = None

AVAILABLE = _systemd is not None

_FIRST_FD = 3
_NAME = re.compile(r"[\x20-\x39\x3b-\x7e]{1,255}")  # what systemd accepts: printable ASCII, no colon


def ready(text: str = "") -> bool:
    return _send("READY=1", *_status(text))


def status(text: str) -> bool:
    return _send(*_status(text))


def reloading(text: str = "") -> bool:
    """To be followed by ready(); the time is what Type=notify-reload asks for."""
    return _send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}", *_status(text))


def stopping(text: str = "") -> bool:
    return _send("STOPPING=1", *_status(text))


def watchdog() -> bool:
    return _send("WATCHDOG=1")


def watchdog_interval_ns() -> Optional[int]:
    """How often systemd wants to hear watchdog() at the latest; None when it does not watch this process."""
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) * 1000 if pid == str(os.getpid()) and usec.isdigit() and int(usec) else None


def store(name: str, fd: int) -> bool:
    """Leave a descriptor with systemd until remove(name) or the unit's stop.

    FDPOLL=0: without it systemd drops a bpf map at once, since poll on one reports an error.
    The message is queued with a duplicate; ``fd`` may be closed after barrier() returned.
    """
    return _send("FDSTORE=1", f"FDNAME={_checked(name)}", "FDPOLL=0", fds=[fd])


def remove(name: str) -> bool:
    """Take back every stored descriptor of that name (two can be stored under one)."""
    return _send("FDSTOREREMOVE=1", f"FDNAME={_checked(name)}")


def barrier(timeout_ns: int = 5_000_000_000) -> bool:
    """Wait until systemd has worked off everything sent before; False when it has not in time."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        sent = _send("BARRIER=1", fds=[writer])
        os.close(writer)  # systemd's copy is now the last one: its close is the answer
        poll = select.poll()
        poll.register(reader, 0)  # POLLHUP is always reported
        return sent and bool(poll.poll(timeout_ns / 1e6))
    finally:
        os.close(reader)


def inherited() -> list[tuple[str, int]]:
    """The (name, descriptor) pairs systemd handed to this process; close-on-exec is set on them.

    The variables are removed, so a second call and every child find none.
    """
    pid, count, names = (os.environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    named = names.split(":") if names else []
    named += ["unknown"] * (len(fds) - len(named))
    for fd in fds:
        fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return list(zip(named, fds))


def _send(*assignments: str, fds: Sequence[int] = ()) -> bool:
    if _systemd is None or not assignments:
        return False
    try:
        return bool(_systemd.notify("\n".join(assignments), fds=list(fds)))
    except OSError:
        return False


def _status(text: str) -> list[str]:
    """One line: a newline in the text would start another assignment."""
    clean = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return [f"STATUS={clean}"] if clean else []


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name for a stored descriptor: {name!r}")
    return name
