# SPDX-License-Identifier: Apache-2.0
"""A segment with three on it: the watched host, a live neighbour with many addresses, and one who forges them."""

from __future__ import annotations

import contextlib
import socket

from tests import frames

from .conftest import Namespace, connect
from .traffic import HOST4, HOST6, begin, knock, listen

NEIGHBOUR4, NEIGHBOUR6 = "192.0.2.100", "2001:db8::100"
WAIT_S = 5


class Segment:
    """The host has v0, the neighbour n0 and the attacker a0, all ports of a bridge in a namespace of its own."""

    def __init__(self):
        self.bridge, self.host, self.neighbour, self.attacker = (Namespace() for _ in range(4))

    def add(self):
        for ns in (self.bridge, self.host, self.neighbour, self.attacker):
            ns.add()
        self.bridge.ip("link add br0 type bridge")
        self.bridge.ip("link set br0 up")
        self._plug(self.host, "v0", f"{HOST4}/24", f"{HOST6}/64")
        self._plug(self.neighbour, "n0", f"{NEIGHBOUR4}/24", f"{NEIGHBOUR6}/64")
        self._plug(self.attacker, "a0")
        self.neighbour.sysctl("net.ipv4.ip_nonlocal_bind", 1)
        self._mac = frames.mac(self.host.mac("v0"))
        self._own = frames.mac(self.attacker.mac("a0"))
        return self

    def _plug(self, ns, name, *addresses):
        connect(ns, name, self.bridge, f"{name}-port", addresses)
        self.bridge.ip(f"link set {name}-port master br0")

    def remove(self):
        for ns in (self.host, self.neighbour, self.attacker, self.bridge):
            ns.remove()

    def neighbours(self, *addresses):
        """The neighbour is these, too."""
        for address in addresses:
            size = "/64 nodad" if ":" in address else "/24"
            self.neighbour.ip(f"address add {address}{size} dev n0")

    def listen(self, port, ipv6=False):
        return listen(self.host, HOST6 if ipv6 else HOST4, port)

    def knock(self, source, *ports):
        """What becomes of real connections by the neighbour."""
        with self.neighbour.enter():
            return [knock(source, HOST6 if ":" in source else HOST4, port) for port in ports]

    @contextlib.contextmanager
    def connection(self, source, listener):
        """One of the neighbour's, established: its two ends."""
        with self.neighbour.enter():
            ours = begin(source, *listener.getsockname()[:2])
        with ours:
            listener.settimeout(WAIT_S)
            theirs, _ = listener.accept()
            ours.setblocking(True)
            ours.settimeout(WAIT_S)
            with theirs:
                yield ours, theirs

    def forge(self, source, *ports):
        """A SYN to each port, as if that source had sent it."""
        build, host = (frames.ipv6, HOST6) if ":" in source else (frames.ipv4, HOST4)
        with self.attacker.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("a0", 0))
            for port in ports:
                segment = frames.tcp(source, host, 40000 + port, port)
                link.send(frames.ethernet(build(source, host, segment), self._mac, self._own))


def lives(connection):
    """Whether each end of it hears the other."""
    ours, theirs = connection
    ours.sendall(b"ping")
    heard = theirs.recv(4)
    theirs.sendall(b"pong")
    return heard + ours.recv(4) == b"pingpong"
