# SPDX-License-Identifier: Apache-2.0
"""From where people are logged in, as logind's session files say, and a watch that tells when they change.

Reads files only: no D-Bus, and nothing that merely connects to a port.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from pathlib import Path
from typing import Optional, Union

from packetwatch import address

PATH = "/run/systemd/sessions"

_FILE_LIMIT = 64 * 1024
_SESSION_LIMIT = 4096
_ADDRESS_LIMIT = 64
_LOGGED_IN = ("active", "online", "opening")  # "closing" is one whose user is gone but whose processes linger
_NOWHERE = (bytes(16), address.MAPPED + bytes(4))

# linux/inotify.h
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x8, 0x40, 0x80, 0x200, 0x400, 0x800
_IGNORED, _ONLYDIR = 0x8000, 0x01000000
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_EVENTS = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR


def remote_hosts(path: Union[str, Path] = PATH) -> set[bytes]:
    """The addresses (16 bytes) remote sessions come from; what is no address (a host name) is left out."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return set()
    # systemd writes a file under a name with a dot in front and then renames it
    found = (_remote_host(os.path.join(path, name)) for name in names[:_SESSION_LIMIT] if not name.startswith("."))
    return {host for host in found if host is not None}


def _remote_host(path: str) -> Optional[bytes]:
    fields = dict(line.split("=", 1) for line in _read(path).splitlines() if "=" in line)
    if fields.get("REMOTE") != "1" or fields.get("STATE", "active") not in _LOGGED_IN:
        return None
    text = fields.get("REMOTE_HOST", "").strip("\"'").partition("%")[0]  # sshd adds the scope of a link-local one
    if len(text) > _ADDRESS_LIMIT:
        return None
    try:
        host = address.parse(text)
    except ValueError:
        return None
    return None if host in _NOWHERE else host


def _read(path: str) -> str:
    """The head of a regular file, else nothing: the fifos beside the session files must not block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, _FILE_LIMIT).decode(errors="replace") if regular else ""
    finally:
        os.close(descriptor)


class Sessions:
    """The remote hosts of a directory of session files, with an inotify descriptor for the loop.

    Raises OSError where inotify is refused. Where the directory is missing (no logind), there is nothing to wait for.
    """

    def __init__(self, path: Union[str, Path] = PATH) -> None:
        self._path = str(path)
        self._fd = _watch(self._path)

    def fileno(self) -> Optional[int]:
        """Readable when sessions may have changed; None if the directory is missing, or has gone (after ``drain``)."""
        return self._fd

    def hosts(self) -> set[bytes]:
        return remote_hosts(self._path)

    def drain(self) -> bool:
        """Whether something has changed since the last call. Never blocks; closes itself if the directory goes."""
        if self._fd is None:
            return False
        try:
            events = os.read(self._fd, _FILE_LIMIT)
        except BlockingIOError:
            return False
        if _ends(events):
            self.close()
        return True

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _ends(events: bytes) -> bool:
    """Whether the directory itself was removed or moved away."""
    offset = 0
    while offset < len(events):
        _, mask, _, length = _EVENT.unpack_from(events, offset)
        if mask & (_DELETE_SELF | _MOVE_SELF | _IGNORED):
            return True
        offset += _EVENT.size + length
    return False


def _watch(path: str) -> Optional[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise _error(path)
    if libc.inotify_add_watch(descriptor, os.fsencode(path), ctypes.c_uint32(_EVENTS)) >= 0:
        return descriptor
    error = _error(path)
    os.close(descriptor)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return None
    raise error


def _error(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"cannot watch for sessions: {os.strerror(code)}", path)
