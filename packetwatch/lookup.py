# SPDX-License-Identifier: Apache-2.0
"""A thread that keeps the addresses of this host's servers: it reads the files and looks names up, off the loop.

A look-up may take minutes, so nobody waits for one. The thread holds no capability: what it parses comes from outside.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from packetwatch import address, privileges, serverfiles, servers
from packetwatch.servers import Server

LOOK_EVERY_S = 10  #: at whether a file has changed
LOOK_UP_EVERY_S = 300
RETRY_S = 30  #: after a look-up that failed; doubled each time, up to LOOK_UP_EVERY_S
_NEWS_MAX = 64


class Name(NamedTuple):
    """A name, and what came of its last look-up."""

    due_s: float = 0  #: CLOCK_MONOTONIC of the next one
    failures: int = 0  #: in a row
    error: str = ""


class Lookup:
    """Owns the thread, and a descriptor for the loop. Everything public is for the loop's thread."""

    def __init__(self, answers: Mapping[str, tuple[bytes, ...]], root: str = "") -> None:
        """answers: the last good ones of the process before. root: before every path of a file that is read."""
        self._answers = dict(answers)  # every value here is replaced, never changed: others may be reading it
        self._root = root
        self._reasons: frozenset[str] = frozenset()
        self._servers: frozenset[Server] = frozenset()
        self._reading = serverfiles.Reading()
        self._names: dict[str, Name] = {}
        self._told: set[tuple[str, str]] = set()
        self._news: deque[str] = deque(maxlen=_NEWS_MAX)
        self._stopping = self._again = False
        self._turn_now, self._has_read = threading.Event(), threading.Event()
        self._readable, self._told_loop = socket.socketpair()
        for end in (self._readable, self._told_loop):
            end.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="look-up", daemon=True)

    # for the loop

    def start(self, wait_s: float) -> None:
        """Waits a moment for the files, and never for a name."""
        self._thread.start()
        if self._reasons:
            self._has_read.wait(wait_s)

    def want(self, reasons: frozenset[str], again: bool = False) -> None:
        """For which reasons of servers.SWITCHES; again: read and look up everything now."""
        if reasons != self._reasons or again:
            self._reasons, self._again = reasons, True
            self._turn_now.set()

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._readable.fileno()

    def drain(self) -> None:
        try:
            while self._readable.recv(64):
                pass
        except BlockingIOError:
            pass

    def servers(self) -> frozenset[Server]:
        return self._servers

    def answers(self) -> dict[str, tuple[bytes, ...]]:
        """The last good ones, for the next process."""
        return self._answers

    def names(self) -> list[dict[str, Any]]:
        """Every name with what it stands for now, and why the last look-up failed."""
        answers, states = self._answers, self._names
        return [
            {
                "name": each.host,
                "reason": each.reason,
                "file": each.file,
                "addresses": [address.text(found) for found in answers.get(each.host, ())],
                "error": states.get(each.host, Name()).error or None,
            }
            for each in servers.names(self._reading.named)
        ]

    def news(self) -> list[str]:
        """Sentences that nobody has been told yet."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def close(self) -> None:
        """Lets the thread end by itself: it may be in a look-up, and ends with the process at the latest."""
        self._stopping = True
        self._turn_now.set()

    # the thread

    def _run(self) -> None:
        try:
            privileges.keep(frozenset())
        except OSError as fault:
            self._tell(f"names of servers are not looked up: {fault.filename}: {fault.strerror}")
            self._has_read.set()
            return
        while not self._stopping:
            self._turn()
            self._turn_now.wait(LOOK_EVERY_S if self._reasons else None)
            self._turn_now.clear()

    def _turn(self) -> None:
        if self._is_outdated():
            self._read()
        for name in list(self._names):
            if self._stopping or self._is_outdated():
                self._turn_now.set()
                return
            if time.monotonic() >= self._names[name].due_s:
                self._look_up(name)
                self._publish()

    def _is_outdated(self) -> bool:
        return self._again or serverfiles.changed(self._reading, self._root)

    def _read(self) -> None:
        self._again = False  # before the reasons are read: they may change meanwhile
        self._reading = serverfiles.read(self._reasons, self._root)
        wanted = [each.host for each in servers.names(self._reading.named)]
        self._names = {name: self._names.get(name, Name())._replace(due_s=0) for name in wanted}
        kept = list(dict.fromkeys([*self._names, *self._answers]))[: servers.NAMES_MAX]  # a file may come back
        self._answers = {name: self._answers[name] for name in kept if name in self._answers}
        for path, reason, fault in self._reading.unread:
            self._tell_unread(path, reason, fault)
        self._publish()
        self._has_read.set()

    def _tell_unread(self, path: str, reason: str, fault: str) -> None:
        if (path, fault) not in self._told and len(self._told) < _NEWS_MAX:
            self._told.add((path, fault))
            key = servers.setting(reason)
            self._tell(f"{key}: {path} cannot be read: {fault}; make it readable, or allow by hand whom it names")

    def _look_up(self, name: str) -> None:
        """The last good answer stays where there is no better one."""
        before, error = self._names[name], ""
        try:
            texts = addresses(name)
        except OSError as fault:
            texts, error = [], fault.strerror or str(fault)
        found = servers.answer(texts)
        if found:
            self._answers = {**self._answers, name: found}
        elif texts and not all(map(servers.is_loopback, texts)):  # loopback: this host is its own server
            error = "the answer holds no address of a host"
        failures = before.failures + 1 if error else 0
        pause = min(LOOK_UP_EVERY_S, RETRY_S << min(failures - 1, 8)) if error else LOOK_UP_EVERY_S
        self._names = {**self._names, name: Name(time.monotonic() + pause, failures, error)}

    def _publish(self) -> None:
        found = servers.servers(self._reading.named, self._answers)
        if found != self._servers:
            self._servers = found
            self._wake_loop()

    def _tell(self, text: str) -> None:
        self._news.append(text)
        self._wake_loop()

    def _wake_loop(self) -> None:
        try:
            self._told_loop.send(b"\0")
        except OSError:
            pass  # full: it is awake; or gone


def addresses(name: str) -> list[str]:
    """What a name stands for, IPv4 and IPv6. Blocks as long as the resolver likes. Raises OSError.

    As bytes: for text, Python would import the encoding of international names first, beneath a running service.
    """
    found = socket.getaddrinfo(name.encode(), None, type=socket.SOCK_STREAM)
    return [str(each[4][0]) for each in found]
