# SPDX-License-Identifier: Apache-2.0
"""The control socket, the resident's end: who may ask for what, within bounds and without ever waiting.

Not for what a request does: a handler is given for that.
"""

from __future__ import annotations

import grp
import itertools
import json
import os
import selectors
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, Optional

from packetwatch.client import Client, ControlError
from packetwatch.operations import (
    MOST_REQUEST, NOT_PERMITTED, OPERATIONS, USAGE, Refused, Request, changes, decode,
)
from packetwatch.peer import Peer

__all__ = ["Client", "ControlError", "Handler", "InUse", "OPERATIONS", "Refused", "Server"]

MOST_CLIENTS, RESERVED = 32, 8  #: the last places are for those who may change
MOST_TAILS = 8
MOST_ACCEPTED = 8  #: in one turn: whoever connects in a loop takes no more of it
ITEMS = 128  #: of a list encoded at a time
SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module does not name it
NOBODY, READER, CHANGER = range(3)

Handler = Callable[[Request], Any]


class InUse(Refused):
    """Another resident answers on this socket, or something else is in its place."""


class Server:
    """Listens on ``path``. The handler gets a checked request and returns what JSON can say, or raises Refused.

    A list or an iterator is written piece by piece as the client takes it, so that a long answer
    neither fills memory nor delays the loop.
    """

    def __init__(self, path: str, handler: Handler, group: str = "packetwatch", readers: str = "adm") -> None:
        """Root, this user and members of ``group`` may change, members of ``readers`` read. Raises InUse, OSError."""
        self.path, self.handler = path, handler
        self.lost = 0  #: records left out for tails that were too slow
        self._groups = _gids(group), _gids(readers)
        self._not_permitted = f"root and members of {group} may change, members of {readers} may read"
        self._selector: Optional[selectors.BaseSelector] = None
        self._peers: set[Peer] = set()
        self._resting = False  # no descriptor was left for a client
        self._made_directory = _make_directory(path)
        self._listener = _listen(path)
        found = os.lstat(path)
        self._identity = found.st_dev, found.st_ino

    @property
    def tails(self) -> int:
        """How many follow the records; with none there is nothing to publish."""
        return sum(peer.streaming for peer in self._peers)

    def register(self, selector: selectors.BaseSelector) -> None:
        """From now on its descriptors are in the selector, each with ``data(events)`` to be called when ready."""
        self._selector = selector
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def publish(self, lines: bytes) -> None:
        """Records, as whole lines, for every tail."""
        for peer in list(self._peers):
            if peer.streaming:
                self.lost += peer.feed(lines)

    def expire(self, now_ns: int) -> None:
        """To be called about every second, with CLOCK_BOOTTIME: ends clients that take too long."""
        for peer in list(self._peers):
            peer.tick(now_ns)
        if self._resting and self._selector is not None:
            self._resting = False
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Ends every client with what it can still take at once, and removes the socket if it is still ours."""
        for peer in list(self._peers):
            peer.finish()
        if self._selector is not None and not self._resting:
            self._selector.unregister(self._listener)
        self._selector = None
        self._listener.close()
        try:
            found = os.lstat(self.path)
            if (found.st_dev, found.st_ino) == self._identity:
                os.unlink(self.path)
            if self._made_directory:
                os.rmdir(os.path.dirname(self.path))
        except OSError:
            pass  # gone already, or the directory holds more

    def _accept(self, events: int) -> None:
        for _ in range(MOST_ACCEPTED):
            try:
                link, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor left: the listener would stay ready and the loop spin
                self._rest()
                return
            link.setblocking(False)
            self._admit(link)

    def _rest(self) -> None:
        if self._selector is not None:
            self._selector.unregister(self._listener)
            self._resting = True

    def _admit(self, link: socket.socket) -> None:
        """Whoever may nothing gets the answer at once, and never holds a place."""
        rights, user = self._rights(link)
        room = MOST_CLIENTS - (0 if rights == CHANGER else RESERVED)
        if rights == NOBODY:
            _dismiss(link, self._refuse(user, "use"))
        elif self._selector is None or len(self._peers) >= room:
            _dismiss(link, Refused("too many clients are connected", "try again, or end some of them"))
        else:
            self._peers.add(
                Peer(
                    self._selector,
                    link,
                    lambda peer, line: self._begin(peer, line, rights, user),
                    _encode(Refused("the request is too long", f"at most {MOST_REQUEST} bytes", USAGE)),
                    _loss,
                    self._peers.discard,
                )
            )

    def _rights(self, link: socket.socket) -> tuple[int, int]:
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, user, group = struct.unpack("=iII", credentials)
        groups = {group, *_supplementary(link)}
        changers, readers = self._groups
        if user in (0, os.geteuid()) or groups & changers:
            return CHANGER, user
        return (READER if groups & readers else NOBODY), user

    def _refuse(self, user: int, verb: str) -> Refused:
        return Refused(f"user {user} is not permitted to {verb} packetwatch", self._not_permitted, NOT_PERMITTED)

    def _begin(self, peer: Peer, line: bytes, rights: int, user: int) -> Iterator[bytes]:
        try:
            request = decode(line)
            if changes(request) and rights != CHANGER:
                raise self._refuse(user, "change")
            if request["do"] != "tail":
                return _pieces(self.handler(request))
            if self.tails >= MOST_TAILS:
                raise Refused(f"{MOST_TAILS} clients follow the records already", "end one of them")
            peer.streaming = True
            return _pieces(None)
        except Refused as refused:
            return iter([_encode(refused)])
        except Exception as error:  # a fault in one answer is no reason to stop watching
            return iter([_encode(Refused(f"internal error: {type(error).__name__}: {error}"))])


def _gids(group: str) -> set[int]:
    try:
        return {grp.getgrnam(group).gr_gid}
    except KeyError:
        return set()


def _supplementary(link: socket.socket) -> tuple[int, ...]:
    """The peer's groups when it connected; none if there are more than the 256 that getsockopt() has room for."""
    try:
        groups = link.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:
        return ()
    return struct.unpack(f"={len(groups) // 4}I", groups)


def _make_directory(path: str) -> bool:
    """Whether it had to be made: a start without systemd. Those above it are not ours to make."""
    try:
        os.mkdir(os.path.dirname(path), 0o755)
    except FileExistsError:
        return False
    return True


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    mask = os.umask(0o111)  # all may connect: who may do what is told by SO_PEERCRED
    try:
        try:
            listener.bind(path)
        except OSError:
            _remove_dead(path)
            listener.bind(path)
        listener.listen(16)
    except (OSError, InUse) as error:
        listener.close()
        if isinstance(error, OSError):
            error.filename = path
        raise
    finally:
        os.umask(mask)
    return listener


def _remove_dead(path: str) -> None:
    """Removes the socket that a killed resident left; raises InUse if it lives or is no socket."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise InUse(f"{path} exists and is no socket", "remove it, or name another: --socket PATH")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its queue is full: it lives
    hint = "stop the other one, or give this one its own: --socket PATH --state DIR"
    raise InUse(f"packetwatch is running already: the socket {path} is in use", hint)


def _dismiss(link: socket.socket, refused: Refused) -> None:
    with link:
        try:
            link.send(_encode(refused))
        except OSError:
            pass


def _encode(refused: Refused) -> bytes:
    return _line(
        {
            "ok": False,
            "error": refused.error,
            "hint": refused.hint,
            "exit": refused.exit_status,
            "details": list(refused.details),
        }
    )


def _pieces(result: Any) -> Iterator[bytes]:
    if isinstance(result, (list, tuple, Iterator)):
        return _list_pieces(iter(result))
    return iter([_line({"ok": True, "result": result})])


def _list_pieces(items: Iterator[Any]) -> Iterator[bytes]:
    yield b'{"ok": true, "result": ['
    comma = b""
    while True:
        some = list(itertools.islice(items, ITEMS))
        if not some:
            break
        yield comma + ", ".join(map(json.dumps, some)).encode()
        comma = b", "
    yield b"]}\n"


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _loss(count: int) -> bytes:
    """As in the log; the time is that of the telling."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    message = "this client takes records more slowly than they come"
    return _line({"timestamp": when, "event_type": "loss", "where": "tail", "count": count, "message": message})
