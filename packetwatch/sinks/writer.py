# SPDX-License-Identifier: Apache-2.0
"""Lines to standard output or a file, never waiting and never cutting a line; each record's fate is counted.

Not for what stands in a line, and not for the journal, which takes datagrams.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from packetwatch.event import IPV6, Notice

from .records import Record

PENDING = 2 << 20  #: bytes of lines that wait for a slow reader: a burst of log.fold_burst fits
OPEN = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
APPEND = OPEN | os.O_APPEND
FILE_MODE = 0o640
FILE_GROUP = "adm"


class Refused(NamedTuple):
    """What was refused since someone asked last."""

    records: int  #: of any kind but loss
    connections: Counter[tuple[int, int]]  #: by (attachment, IPV6 or 0)
    losses: Counter[str]  #: what refused loss records would have told, by where


class Tally:
    """The fate of what a writer was given. Reads as plain numbers; nothing here goes back."""

    def __init__(self) -> None:
        self.written = 0  #: records of any kind
        self.written_connections = 0
        self.refused = 0  #: records of any kind
        self.refused_connections = 0
        self.refused_folded = 0  #: connections that refused summaries told of
        self.refused_by: Counter[tuple[int, int]] = Counter()  #: connections, by (attachment, IPV6 or 0)
        self.refused_losses: Counter[str] = Counter()  #: what refused loss records told of, by where
        self.bytes_written = 0
        self.last_error = ""
        self._untold = 0  # loss records among the refused
        self._taken = Refused(0, Counter(), Counter())

    def wrote(self, records: Sequence[Record], size: int) -> None:
        self.written += len(records)
        self.written_connections += connections_in(records)
        self.bytes_written += size

    def refuse(self, records: Sequence[Record], error: OSError) -> None:
        if not records:
            return
        self.failed(error)
        self.refused += len(records)
        self.refused_connections += connections_in(records)
        for record in records:
            if not isinstance(record, Notice):
                self.refused_by[record[5], record[6] & IPV6] += 1
            elif record.event_type == "summary":
                self.refused_folded += record.count or 0
            elif record.event_type == "loss":
                self._untold += 1
                self.refused_losses[record.where or ""] += record.count or 0

    def take(self) -> Refused:
        """What has come since the last call."""
        now = Refused(self.refused - self._untold, Counter(self.refused_by), Counter(self.refused_losses))
        before, self._taken = self._taken, now
        return Refused(*(new - old for new, old in zip(now, before)))  # type: ignore[operator]

    def failed(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        self.last_error = f"{name}: {error.strerror}"


def connections_in(records: Sequence[Record]) -> int:
    return len(records) - list(map(type, records)).count(Notice)


class LineWriter:
    """Writes lines; what a slow reader leaves waits, up to PENDING bytes, and is refused beyond.

    Owns the descriptor, which must not block; ``shared``: it was made so for that and is made blocking again.
    """

    def __init__(self, name: str, descriptor: int, shared: bool = False) -> None:
        self.name = name
        self.tally = Tally()
        self._descriptor = descriptor
        self._shared = shared
        self._lines: deque[bytes] = deque()
        self._records: deque[Record] = deque()
        self._size = 0  # of _lines
        self._offset = 0  # bytes of the first line that are already out
        self.cause = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))  #: the last one met

    def fileno(self) -> int:
        """To wait on until it is writable; -1 when closed."""
        return self._descriptor

    @property
    def pending(self) -> Sequence[Record]:
        return self._records

    def write(self, lines: list[str], records: list[Record]) -> None:
        """Takes the lines, each ending in its only newline, and the records they tell of."""
        if not self.flush():
            self._keep([line.encode() for line in lines], records)
            return
        data = "".join(lines).encode()
        done = self._write(data)
        whole = len(lines) if done == len(data) else data.count(b"\n", 0, done)
        self.tally.wrote(records[:whole], done)
        if whole < len(lines):
            self._offset = done - data.rfind(b"\n", 0, done) - 1
            self._keep([line.encode() for line in lines[whole:]], records[whole:])

    def flush(self) -> bool:
        """Tries what waits; True when nothing does any more."""
        if not self._lines:
            return True
        done = self._write(b"".join(self._lines)[self._offset :])
        out, self._offset = done, self._offset + done
        records = []
        while self._lines and self._offset >= len(self._lines[0]):
            size = len(self._lines.popleft())
            self._offset -= size
            self._size -= size
            records.append(self._records.popleft())
        self.tally.wrote(records, out)
        self._keep([], [])
        return not self._lines

    def close(self) -> None:
        """What still waits is refused."""
        self.flush()
        self.tally.refuse(list(self._records), self.cause)
        self._forget()
        if self._shared:
            os.set_blocking(self._descriptor, True)
        self._release()
        self._descriptor = -1

    def _keep(self, lines: list[bytes], records: list[Record]) -> None:
        """Queues what fits. A line that is begun always stays: its rest goes out before anything else does."""
        self._lines.extend(lines)
        self._records.extend(records)
        self._size += sum(map(len, lines))
        limit = PENDING if self.cause.errno == errno.EAGAIN else 0
        refused: list[Record] = []
        while self._size > limit and len(self._lines) > (self._offset > 0):
            self._size -= len(self._lines.pop())
            refused.append(self._records.pop())
        self.tally.refuse(refused, self.cause)

    def _forget(self) -> None:
        self._lines.clear()
        self._records.clear()
        self._size = self._offset = 0

    def _write(self, data: bytes) -> int:
        view, done = memoryview(data), 0
        while done < len(data):
            try:
                done += self._put(view[done:])
            except OSError as error:
                self.cause = error.with_traceback(None)  # which would keep the batch, and with it the ring's memory
                self.tally.failed(error)
                break
        return done

    def _put(self, data: memoryview) -> int:
        return os.write(self._descriptor, data)

    def _release(self) -> None:
        os.close(self._descriptor)


class SocketWriter(LineWriter):
    """A socket is asked call by call not to wait, so that a shared file description keeps its flags."""

    def __init__(self, name: str, descriptor: int) -> None:
        super().__init__(name, descriptor)
        self._socket = socket.socket(fileno=descriptor)

    def _put(self, data: memoryview) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _release(self) -> None:
        self._socket.close()


class FileWriter(LineWriter):
    """Appends to a file that a rotation may move away: reopen() follows. Raises OSError only when (re)opened."""

    def __init__(self, path: str) -> None:
        super().__init__("file", open_file(path))
        self.path = path
        self._end_cut_line()

    def reopen(self) -> None:
        """Opens the path anew and only then lets go of the old file: an OSError leaves everything as it was."""
        self.flush()
        fresh, old = open_file(self.path), self._descriptor
        same = os.path.samestat(os.fstat(fresh), os.fstat(old))
        self._descriptor = fresh
        os.close(old)
        if not same:
            self._offset = 0  # a line begun in the old file stands whole in the new one
            self._end_cut_line()

    def _end_cut_line(self) -> None:
        """A file that a crash or a full disk left within a line must not swallow our first one."""
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return
        try:
            with open(self.path, "rb") as file:
                if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                    os.write(self._descriptor, b"\n")
        except OSError:  # not readable, or no space: then no more than that first line suffers
            pass


def open_file(path: str) -> int:
    """Opens for appending; a file that is made gets 0640 and, where permitted, the group adm."""
    try:
        descriptor = os.open(path, APPEND | os.O_CREAT | os.O_EXCL, FILE_MODE)
    except FileExistsError:
        return os.open(path, APPEND | os.O_CREAT, FILE_MODE)
    with contextlib.suppress(KeyError, OSError):
        os.fchmod(descriptor, FILE_MODE)  # whatever the umask
        os.fchown(descriptor, -1, grp.getgrnam(FILE_GROUP).gr_gid)
    return descriptor


def open_stream(descriptor: int = 1, name: str = "stdout") -> LineWriter:
    """A writer to an inherited descriptor. Others may share its file description, so its flags are left alone:
    a pipe or terminal is opened anew, a socket is asked call by call, a regular file never waits for a reader
    (and keeps the offset of its redirection). Raises OSError for a closed descriptor.
    """
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(mode):
        return SocketWriter(name, os.dup(descriptor))
    if stat.S_ISREG(mode):
        return LineWriter(name, os.dup(descriptor))
    try:
        return LineWriter(name, os.open(f"/proc/self/fd/{descriptor}", OPEN))
    except OSError:  # no /proc, or it belongs to another user: then the shared description must do
        shared = os.get_blocking(descriptor)
        os.set_blocking(descriptor, False)
        return LineWriter(name, os.dup(descriptor), shared)
