# SPDX-License-Identifier: Apache-2.0
"""One client of the control socket: sends a line, gets an answer in pieces, or a stream from then on. Never waits.

Mechanism only: who may ask for what, and what is answered, is control.py's.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Iterator
from typing import Optional

from packetwatch import clock

SECOND = 1_000_000_000
REQUEST_NS, ANSWER_NS = 5 * SECOND, 60 * SECOND
REQUEST_BYTES = 64 << 10
PIECE_BYTES = 64 << 10  #: of an answer made at a time
STREAM_BYTES = 2 << 20  #: that wait for one client; a default burst of log.fold_burst fits

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Peer:
    """Owns the socket. What it calls is given: ``begin`` makes a request line an answer (pieces of any size),
    ``too_long`` is the answer to one beyond REQUEST_BYTES, ``loss`` the line that tells of records left out,
    ``forget`` is called when it has closed.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        link: socket.socket,
        begin: Callable[[Peer, bytes], Iterator[bytes]],
        too_long: bytes,
        loss: Callable[[int], bytes],
        forget: Callable[[Peer], None],
    ) -> None:
        self.streaming = False  #: set by ``begin``: after the answer the client stays for what is fed
        self._selector, self._link = selector, link
        self._begin, self._too_long, self._loss, self._forget = begin, too_long, loss, forget
        self._line, self._out = bytearray(), bytearray()
        self._pieces: Optional[Iterator[bytes]] = None
        self._lost = 0
        self._deadline_ns = clock.boot_ns() + REQUEST_NS
        self._step = self._read_request
        self._wanted = READ
        selector.register(link, READ, self.ready)

    def ready(self, events: int) -> None:
        """The socket is ready for these events of the selector."""
        try:
            if self._link.fileno() >= 0:  # else closed earlier in the same turn
                self._step(events)
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def feed(self, lines: bytes) -> int:
        """Whole lines for a streaming client; returns how many found no place."""
        self._tell_loss()
        room = 0 if self._lost else STREAM_BYTES - len(self._out)
        end = len(lines) if len(lines) <= room else lines.rfind(b"\n", 0, max(0, room)) + 1
        self._out += lines[:end]
        lost = lines.count(b"\n", end)
        self._lost += lost
        if self._step == self._stream:
            self.ready(WRITE)
        return lost

    def tick(self, now_ns: int) -> None:
        """Time has passed: a client that is too slow with its request or answer ends."""
        if not self.streaming and now_ns > self._deadline_ns:
            self.close()
        elif self._step == self._stream:
            self._tell_loss()
            self.ready(WRITE)

    def finish(self) -> None:
        """Closes, after what the client can still take at once."""
        if self._step != self._read_request:
            self.ready(WRITE)
        self.close()

    def close(self) -> None:
        """Without another word."""
        if self._link.fileno() >= 0:
            self._selector.unregister(self._link)
            self._link.close()
            self._forget(self)

    def _read_request(self, events: int) -> None:
        data = self._link.recv(PIECE_BYTES)
        self._line += data
        line, newline, _ = self._line.partition(b"\n")
        if len(line) > REQUEST_BYTES:
            self._pieces = iter([self._too_long])
        elif newline:
            self._pieces = self._begin(self, bytes(line))
        elif data:
            return
        else:
            self.close()
            return
        self._line.clear()
        self._deadline_ns = clock.boot_ns() + ANSWER_NS
        self._step = self._answer
        self._want(WRITE)
        self._answer(WRITE)

    def _answer(self, events: int) -> None:
        self._fill()
        self._send()
        if self._out or self._pieces is not None:
            return
        if self.streaming:
            self._step = self._stream
            self._want(READ)
        else:
            self.close()

    def _stream(self, events: int) -> None:
        if events & READ and not self._link.recv(PIECE_BYTES):
            self.close()
            return
        try:
            self._send()
        finally:
            self._want(READ | WRITE if self._out else READ)

    def _fill(self) -> None:
        """Some more of the answer. An iterator that fails cuts it, which the client notices."""
        while self._pieces is not None and len(self._out) < PIECE_BYTES:
            try:
                self._out += next(self._pieces)
            except StopIteration:
                self._pieces = None
            except Exception as error:
                raise OSError(str(error)) from error

    def _send(self) -> None:
        if self._out:
            sent = self._link.send(self._out)
            del self._out[:sent]

    def _tell_loss(self) -> None:
        if self._lost and len(self._out) <= STREAM_BYTES // 2:
            self._out += self._loss(self._lost)
            self._lost = 0

    def _want(self, events: int) -> None:
        if events != self._wanted and self._link.fileno() >= 0:
            self._selector.modify(self._link, events, self.ready)
            self._wanted = events
