# SPDX-License-Identifier: Apache-2.0
"""Capture files in plain bytes: pcap and pcapng, in both byte orders, in every link type that is read.

And real traffic: captured by tcpdump, read back, and moved to a pace that nobody waits for.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess

from packetwatch import capture

ETHERNET, RAW, IPV4, IPV6, SLL, SLL2, NULL, LOOP = 1, 101, 228, 229, 113, 276, 0, 108
MICRO, NANO = 6, 9
ORDERS = ("<", ">")
SECOND = 1_000_000_000
WAIT_S = 10


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


@contextlib.contextmanager
def tcpdump(ns, device, path, count):
    """Writes the TCP segments that pass a device of a namespace; at the end of the ``with`` all `count` are there."""
    words = ["tcpdump", "-i", device, "-n", "-U", "-B", "16384", "-c", str(count), "-w", str(path), "tcp"]
    with ns.popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = next((line for line in process.stderr if "listening on" in line), None)
            assert told, f"tcpdump ended with {process.wait()}"
            yield
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()


def read(path):
    """The frames of a file: (ns since 1970, bytes)."""
    opened = capture.Capture(str(path))
    try:
        return [(ns, data) for ns, _, data in opened.frames()]
    finally:
        opened.close()


def stretched(frames, pace_ns, begin_ns, is_probe):
    """The same frames, one probe every pace from the beginning on; what answers a probe is as long after it as it was.

    As of a scanner that waits for each answer: no probe may come before the answer to the one before.
    """
    number, was_ns, out = -1, 0, []
    for ns, data in frames:
        if is_probe(data):
            number, was_ns = number + 1, ns
        assert number >= 0, "an answer before the first probe"
        out.append((begin_ns + number * pace_ns + ns - was_ns, data))
    return out
