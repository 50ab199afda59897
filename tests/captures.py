# SPDX-License-Identifier: Apache-2.0
"""Capture files in plain bytes: pcap and pcapng, in both byte orders, in every link type that is read."""

from __future__ import annotations

import struct

ETHERNET, RAW, IPV4, IPV6, SLL, SLL2, NULL, LOOP = 1, 101, 228, 229, 113, 276, 0, 108
MICRO, NANO = 6, 9
ORDERS = ("<", ">")
SECOND = 1_000_000_000


def cooked(frame, kind=0, hardware=1):
    return struct.pack("!HHH8s", kind, hardware, 6, frame[6:12]) + frame[12:]


def cooked2(frame, kind=0, hardware=1):
    head = struct.pack("!HHIHBB8s", int.from_bytes(frame[12:14], "big"), 0, 2, hardware, kind, 6, frame[6:12])
    return head + frame[14:]


def null(order):
    return lambda frame: struct.pack(order + "I", 2 if frame[12:14] == b"\x08\0" else 30) + frame[14:]


#: Link type -> what stands in the file for an untagged Ethernet frame.
LINKS = {
    ETHERNET: bytes,
    RAW: lambda frame: frame[14:],
    SLL: cooked,
    SLL2: cooked2,
    NULL: null("<"),
    LOOP: null(">"),
}


def pcap(frames, link=ETHERNET, order="<", digits=MICRO, snaplen=262144):
    """frames: (ns since 1970, bytes) or (ns, bytes, bytes on the wire)."""
    magic = 0xA1B23C4D if digits == NANO else 0xA1B2C3D4
    out = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, snaplen, link)
    for ns, data, *size in frames:
        part = ns % SECOND // 10 ** (9 - digits)
        out += struct.pack(order + "IIII", ns // SECOND, part, len(data), *(size or [len(data)])) + data
    return out


def block(order, kind, body):
    body += bytes(-len(body) % 4)
    return struct.pack(order + "II", kind, len(body) + 12) + body + struct.pack(order + "I", len(body) + 12)


def interface(link=ETHERNET, order="<", digits=MICRO, snaplen=262144):
    options = struct.pack(order + "HHB3xHH", 9, 1, digits, 0, 0)
    return block(order, 1, struct.pack(order + "HHI", link, 0, snaplen) + options)


def pcapng(frames, link=ETHERNET, order="<", digits=MICRO, interfaces=None):
    out = block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
    out += interface(link, order, digits) if interfaces is None else interfaces
    for ns, data, *size in frames:
        ticks = ns // 10 ** (9 - digits)
        head = struct.pack(order + "IIIII", 0, ticks >> 32, ticks & 0xFFFFFFFF, len(data), *(size or [len(data)]))
        out += block(order, 6, head + data)
    return out


FORMATS = {"pcap": pcap, "pcapng": pcapng}
