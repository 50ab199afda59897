# SPDX-License-Identifier: Apache-2.0
"""SYNs to one host, in few words, for the tests that are not about the form of frames."""

from __future__ import annotations

import functools

from packetwatch import address, rules
from tests import frames as f
from tests.bpf import harness

HOST4, HOST6 = "10.9.0.1", "fd00:9::1"
A, B, C, D = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"


@functools.lru_cache(maxsize=1 << 16)
def frame(source, port, sport=40000):
    host, packet = (HOST6, f.ipv6) if ":" in source else (HOST4, f.ipv4)
    return f.ethernet(packet(source, host, f.tcp(source, host, sport, port)), harness.MAC, b"\2" + bytes(5))


def prepare(rig):
    """Makes the rig the host that these SYNs are for."""
    for own in (HOST4, HOST6, "127.0.0.0/8", "::1"):
        rig.local(own)
        rig.source(own, rules.OWN)
    return rig


def send(rig, source, *ports):
    """The verdicts on one SYN to each port."""
    return [rig.run(frame(source, port)) for port in ports]


def ports(records):
    return [int.from_bytes(record[4], "big") for record in records]


def block(rig, source):
    return rig.kernel.blocks.get(address.parse(source))


def source(number):
    """The numbered one of many sources of both families."""
    return f"198.18.{number >> 8 & 255}.{number & 255}" if number < 1 << 16 else f"2001:db8:1::{number & 65535:x}"
