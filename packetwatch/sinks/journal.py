# SPDX-License-Identifier: Apache-2.0
"""Records to journald by its native protocol (systemd's JOURNAL_NATIVE_PROTOCOL), one datagram each.

Not by python-systemd: its journal.send() waits while journald hangs, and the drain of the rings with it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from packetwatch.event import ALLOWED, CLOSED, OPEN, WOULD_DROP, Batch, Connection, Notice

from .records import KINDS, SECOND, UNKNOWN, Form, Record, clean, fields, port_state, rfc3339
from .text import NEW, WOULD, host, sentence
from .writer import Tally

SOCKET = "/run/systemd/journal/socket"
PREFIX = "PACKETWATCH_"
PENDING_RECORDS = 16_384
PENDING_BYTES = 8 << 20
RESERVED_RECORDS = 2048  #: places beyond those that single connections cannot take: for scans, blocks, losses
#: journald is busy, restarting or not there yet: worth another try.
LATER = frozenset(
    {
        errno.EAGAIN,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOENT,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ENOTCONN,
        errno.EPIPE,
    }
)
#: The socket at the other end is not the one we connected to.
STALE = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EPIPE})


class JournalForm(Form):
    """The JSON fields in upper case behind PREFIX, with the sentence of the text form as MESSAGE."""

    def connections(self, connections: Sequence[Connection], batch: Batch) -> list[bytes]:
        interfaces = {number: clean(name) for number, name in batch.interfaces.items()}
        clock_ns, number = batch.clock_ns, int.from_bytes
        start = end = 0
        when, entries = "", []
        for boot_ns, saddr, daddr, sport, dport, attachment, flags in connections:
            ns = boot_ns + clock_ns
            if not start <= ns < end:
                start = ns - ns % SECOND
                end, when = start + SECOND, rfc3339(start)[:20]
            source, destination = self.sources[saddr], self.destinations[daddr]
            sender, port = number(sport, "big"), self.ports[dport]
            entries.append(
                (
                    f"MESSAGE={WOULD if flags & WOULD_DROP else NEW}{host(source)}:{sender}"
                    f" -> {host(destination)}:{port}\n{_FIXED}"
                    f"PACKETWATCH_TIMESTAMP={when}{(ns - start) // 1000:06d}Z\n"
                    f"PACKETWATCH_IN_IFACE={interfaces.get(attachment, UNKNOWN)}\n"
                    f"PACKETWATCH_SRC_IP={source}\nPACKETWATCH_SRC_PORT={sender}\n"
                    f"PACKETWATCH_DEST_IP={destination}\nPACKETWATCH_DEST_PORT={port}\n{TAILS[flags]}"
                ).encode()
            )
        return entries

    def notice(self, notice: Notice, clock_ns: int) -> bytes:
        own = ((PREFIX + name.upper(), clean(plain(value))) for name, value in fields(notice, clock_ns).items())
        return entry([("MESSAGE", sentence(notice, clock_ns)), *_head(notice.event_type), *own])


def _head(event_type: str) -> list[tuple[str, str]]:
    kind = KINDS[event_type]
    return [
        ("PRIORITY", str(kind.priority)),
        ("MESSAGE_ID", kind.message_id),
        ("SYSLOG_IDENTIFIER", "packetwatch"),
    ]


def _tail(flags: int) -> str:
    allowed = "PACKETWATCH_ALLOWED=true\n" if flags & ALLOWED else ""
    state = f"PACKETWATCH_PORT_STATE={port_state(flags)}\n" if flags & (OPEN | CLOSED) else ""
    return "PACKETWATCH_PROTO=TCP\n" + state + allowed + ("PACKETWATCH_MODE=observe\n" if flags & WOULD_DROP else "")


def plain(value: Any) -> str:
    """The value of a JSON field as a journal field."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def entry(pairs: Iterable[tuple[str, str]]) -> bytes:
    """One datagram. A value with a newline goes with its length, so that it cannot become a field of its own."""
    parts = []
    for name, value in pairs:
        data = value.encode("utf-8", "surrogateescape")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)


_FIXED = entry([*_head("connection"), (PREFIX + "EVENT_TYPE", "connection")]).decode()
TAILS = tuple(map(_tail, range(256)))


class JournalWriter:
    """Sends datagrams without ever waiting; while journald does not take them they wait here, bounded."""

    name = "journal"

    def __init__(self, path: str = SOCKET) -> None:
        self.path = path
        self.tally = Tally()
        self._socket: Optional[socket.socket] = None
        self._entries: deque[bytes] = deque()
        self._records: deque[Record] = deque()
        self._size = 0
        self.cause = OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))  #: the last one met

    def fileno(self) -> int:
        """To wait on until journald has room again; -1 while there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def pending(self) -> Sequence[Record]:
        return self._records

    def write(self, entries: list[bytes], records: list[Record]) -> None:
        """Takes the datagrams and the records they tell of."""
        self._entries.extend(entries)
        self._records.extend(records)
        self._size += sum(map(len, entries))
        self.flush()
        self._bound()

    def _bound(self) -> None:
        """The newest are refused, single connections before all others."""
        kept: list[tuple[bytes, Record]] = []
        refused: list[Record] = []
        while len(self._entries) > PENDING_RECORDS or self._size > PENDING_BYTES:
            data, record = self._entries.pop(), self._records.pop()
            self._size -= len(data)
            if isinstance(record, Notice) and len(kept) < RESERVED_RECORDS:
                kept.append((data, record))
            else:
                refused.append(record)
        for data, record in reversed(kept):
            self._entries.append(data)
            self._records.append(record)
            self._size += len(data)
        self.tally.refuse(refused, self.cause)

    def flush(self) -> bool:
        """Tries what waits; True when nothing does any more."""
        sent: list[Record] = []
        size = 0
        while self._entries:
            error = self._send(self._entries[0])
            if error is not None and error.errno in LATER:
                self.cause = error.with_traceback(None)  # as in writer.py
                self.tally.failed(error)
                break
            data, record = self._entries.popleft(), self._records.popleft()
            self._size -= len(data)
            if error is None:
                sent.append(record)
                size += len(data)
            else:  # it will never go: too long, perhaps
                self.tally.refuse([record], error)
        self.tally.wrote(sent, size)
        return not self._entries

    def close(self) -> None:
        """What still waits is refused."""
        self.flush()
        self.tally.refuse(list(self._records), self.cause)
        self._entries.clear()
        self._records.clear()
        self._size = 0
        self._disconnect()

    def _send(self, data: bytes) -> Optional[OSError]:
        """None, or why it did not go. After a restart of journald the first try may fail: hence a second."""
        try:
            self._connected().sendmsg([data])
            return None
        except OSError as error:
            if self._socket is None or error.errno not in STALE:
                return error
        self._disconnect()
        try:
            self._connected().sendmsg([data])
            return None
        except OSError as error:
            return error

    def _connected(self) -> socket.socket:
        if self._socket is None:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PENDING_BYTES)
                link.connect(self.path)
            except OSError:
                link.close()
                raise
            self._socket = link
        return self._socket

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
