# SPDX-License-Identifier: Apache-2.0
"""The other side of the wire: two namespaces with one link, and TCP, nmap and floods from one to the other."""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import socket
import struct
from pathlib import Path

from packetwatch import libbpf
from tests import frames
from tests.bpf import harness

from .conftest import Namespace, connect

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
OUT4, OUT6 = "192.0.2.2", "2001:db8::2"
FORGED4, FORGED6 = "198.18.0.0", "2001:db8:f::"
OPEN, CLOSED, SILENT = "open", "closed", "silent"
WAIT_S = 0.4  # less than what it takes TCP to try again
LIVE_FRAMES = 1 << 1  # linux/bpf.h: BPF_F_TEST_XDP_LIVE_FRAMES
GENERATOR = Path(__file__).with_name("generator.c")


class Wire:
    """A watched side with v0 and an outside with v1, which has every address of 198.51.100.0/24 and 2001:db8:5::/48:
    each test can be somebody else.
    """

    def __init__(self):
        self.host, self.outside = Namespace(), Namespace()
        self._number = itertools.count(1)

    def add(self):
        self.host.add()
        self.outside.add()
        connect(self.host, "v0", self.outside, "v1", (f"{HOST4}/24", f"{HOST6}/64"), (f"{OUT4}/24", f"{OUT6}/64"))
        for ns, name, peer, other, addresses in self._neighbours():
            for address in addresses:  # no resolution: the first SYN is answered as fast as any
                ns.ip(f"neigh replace {address} lladdr {peer.mac(other)} dev {name} nud permanent")
        self.outside.ip("route add local 198.51.100.0/24 dev lo")
        self.outside.ip("-6 route add local 2001:db8:5::/48 dev lo")
        self.outside.sysctl("net.ipv6.ip_nonlocal_bind", 1)
        self.host.ip(f"route add 198.51.100.0/24 via {OUT4}")
        self.host.ip(f"-6 route add 2001:db8:5::/48 via {OUT6}")
        return self

    def _neighbours(self):
        yield self.host, "v0", self.outside, "v1", (OUT4, OUT6)
        yield self.outside, "v1", self.host, "v0", (HOST4, HOST6)

    def remove(self):
        self.host.remove()
        self.outside.remove()

    def somebody(self, ipv6=False):
        """A source that nobody has been yet, over IPv6 from a network of its own."""
        number = next(self._number)
        return f"2001:db8:5:{number:x}::1" if ipv6 else f"198.51.100.{number}"

    def listen(self, port, ipv6=False):
        """A listener on the watched side."""
        return listen(self.host, HOST6 if ipv6 else HOST4, port)

    def knock(self, source, *ports, to=None, wait_s=WAIT_S):
        """What becomes of one connection to each port, in order."""
        destination = to or (HOST6 if ":" in source else HOST4)
        with self.outside.enter():
            return [knock(source, destination, port, wait_s) for port in ports]

    def nmap(self, *words):
        """nmap from outside, with every probe sent once; its output."""
        return self.outside.run(["nmap", "-n", "-Pn", "--max-retries", "0", *words]).stdout

    def flood(self, count, ipv6=True, port=80, sources=1 << 32):
        """Sends SYNs from forged sources as fast as the machine can; returns how many."""
        return flood(self, count, ipv6, port, sources)


def growing(source):
    """Whom a block of somebody() names once its blocks grow: over IPv6 the network."""
    return source[:-1] + "/64" if ":" in source else source


def listen(ns, address, port):
    with ns.enter():
        return socket.create_server((address, port), family=family(address), reuse_port=False)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def knock(source, destination, port, wait_s=WAIT_S):
    """One SYN; what the other side says within the time."""
    link = begin(source, destination, port)
    with link:
        if not select.select([], [link], [], wait_s)[1]:
            return SILENT
        return CLOSED if link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else OPEN


def begin(source, destination, port):
    """A socket that is connecting."""
    link = socket.socket(family(source), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    link.bind((source, 0))
    link.connect_ex((destination, port))
    return link


def flood(wire, count, ipv6, port, sources):
    frame = forged(wire, ipv6, port)
    descriptors = load_generator(frame, ipv6, sources)
    try:
        with wire.outside.enter():
            run_live(descriptors[0], frame, socket.if_nametoindex("v1"), count)
    finally:
        for fd in descriptors:
            os.close(fd)
    return count


def forged(wire, ipv6=False, port=80):
    """A SYN for the watched side; load_generator() draws its source."""
    build, source, destination = (frames.ipv6, FORGED6, HOST6) if ipv6 else (frames.ipv4, FORGED4, HOST4)
    packet = build(source, destination, frames.tcp(source, destination, 40000, port))
    return frames.ethernet(packet, frames.mac(wire.host.mac("v0")), frames.mac(wire.outside.mac("v1")))


def load_generator(frame, ipv6, sources):
    """The program that sends this frame from so many sources, and its map: two descriptors."""
    mask = min(sources, 1 << (32 if ipv6 else 17)) - 1
    defines = f"#define FRAME_WORDS {len(frame) // 2}\n#define SOURCE_MASK {hex(mask)}U\n"
    defines += f"#define SOURCE_END {38 if ipv6 else 30}\n"
    prog, original = harness.load_text(defines + GENERATOR.read_text(), harness.CLOCKED, "generate", ["original"])
    libbpf.update(original, bytes(4), frame)
    return prog, original


def run_live(prog, frame, ifindex, count):
    context = struct.pack("=6I", 0, len(frame), 0, ifindex, 0, 0)  # struct xdp_md
    options = harness._TestRunOpts(
        sz=ctypes.sizeof(harness._TestRunOpts),
        data_in=frame,
        data_size_in=len(frame),
        ctx_in=context,
        ctx_size_in=len(context),
        repeat=count,
        flags=LIVE_FRAMES,
        batch_size=64,
    )
    libbpf._call("bpf_prog_test_run_opts", prog, ctypes.byref(options))
