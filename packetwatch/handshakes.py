# SPDX-License-Identifier: Apache-2.0
"""The program that sees completed handshakes, on the root cgroup: adopted, attached and let go.

Nothing else needs it: where it cannot be, `fault` says why, and no source counts as established.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import sys
from typing import Optional

from packetwatch import libbpf
from packetwatch.kernel import Kernel
from packetwatch.store import Store

_NAME = "handshakes"
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
_REFUSED = "the kernel has refused the program for the root cgroup"


class Handshakes:
    """At most one link, to the cgroup that all sockets are below; those of our network namespace count."""

    def __init__(self, kernel: Kernel, store: Store, refused: str) -> None:
        """refused: why the kernel half has no program for this, where that is known."""
        self.fault = "" if kernel.handshakes is not None else refused or _REFUSED
        self._prog = kernel.handshakes
        kernel.put_network(network())
        self._store = store
        self._link: Optional[int] = None

    def adopt(self, inherited: Optional[int]) -> dict[int, int]:
        """Takes over a link that outlived the resident before; with the program that it shall have."""
        self._link = inherited
        if self._prog is not None and self._link is not None and libbpf.cgroup_id(self._link):
            return {self._link: self._prog}
        self.detach()
        return {}

    def attach(self) -> None:
        """Unless it is."""
        if self._prog is None or self._link is not None:
            return
        path = find_root(_read_mounts())
        if path is None:
            self.fault = "no cgroup v2 is mounted"
            return
        try:
            self._link = _link(self._prog, path)
            self._store.put(_NAME, self._link)
        except OSError as fault:
            hint = " (one that is there may allow no other)" if fault.errno == errno.EPERM else ""
            self.fault = f"the cgroup {path} does not take the program: {fault.strerror}{hint}"
            self.detach()

    def detach(self) -> None:
        if self._link is None:
            return
        if libbpf.cgroup_id(self._link):
            libbpf.link_detach(self._link)  # the store lets go of its descriptor later
        self._store.remove(_NAME)
        os.close(self._link)
        self._link = None

    def state(self) -> str:
        """For people and status: seen, or not and why."""
        fault = self.fault
        if self._link is not None and not libbpf.cgroup_id(self._link):
            fault = "the program was taken off the root cgroup; a restart puts it back"
        return f"not seen: {fault}" if fault else "seen"


def find_root(mounts: str) -> Optional[str]:
    """The folder of the root cgroup of version 2, of what proc(5) calls mountinfo; None where it is not mounted.

    In a container its own root: what is above is not ours to see.
    """
    found = []
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == "cgroup2":
            root, path = before.split(" ")[3:5]
            found.append((root != "/", path))
    return _unescaped(min(found, key=lambda each: each[0])[1]) if found else None


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def network() -> int:
    """The cookie of our network namespace; 0 where the kernel tells none (before 5.14)."""
    try:
        with socket.socket(socket.AF_UNIX) as any_socket:
            return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        return 0


def _read_mounts() -> str:
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""  # where proc is missing, nothing can be known to be mounted


def _link(prog: int, path: str) -> int:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return libbpf.link_sock_ops(prog, folder)
    finally:
        os.close(folder)
