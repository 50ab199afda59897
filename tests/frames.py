# SPDX-License-Identifier: Apache-2.0
"""Frames in plain bytes: Ethernet, VLAN tags, IPv4 and IPv6 with all that may stand before TCP.

Every field can be set wrong on purpose; what is not named is right. Sends nothing.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
TCP, UDP, NO_NEXT = 6, 17, 59
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
ETH_IPV4, ETH_IPV6, ETH_8021Q, ETH_8021AD = 0x0800, 0x86DD, 0x8100, 0x88A8
END, NOOP, RECORD_ROUTE, TIMESTAMP, LSRR, SSRR, ROUTER_ALERT = b"\0", b"\1", 7, 68, 131, 137, 148


def packed(address):
    """Text or bytes as 4 or 16 bytes."""
    if isinstance(address, bytes):
        return address
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(
    src, dst, sport, dport, flags=SYN, *, seq=0x1000, ack=0, doff=None, reserved=0, options=b"", payload=b"", bad=0
):
    """A segment; `options` a multiple of 4 bytes, `doff` in words, `bad` is added to the checksum."""
    offset = 5 + len(options) // 4 if doff is None else doff
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset << 4 | reserved, flags, 64240, 0, 0)
    segment = head + options + payload
    src, dst = packed(src), packed(dst)
    pseudo = src + dst + struct.pack("!II", len(segment), TCP)
    return segment[:16] + struct.pack("!H", (checksum(pseudo + segment) + bad) & 0xFFFF) + segment[18:]


def ipv4(
    src, dst, payload, *, proto=TCP, options=b"", ihl=None, version=4, total=None, offset=0, more=False, ident=7, bad=0
):
    """A packet; `options` are padded with END to 4 bytes, `offset` counts bytes, `bad` is added to the checksum."""
    options += bytes(-len(options) % 4)
    ihl = 5 + len(options) // 4 if ihl is None else ihl
    total = 20 + len(options) + len(payload) if total is None else total
    fragment = offset // 8 | more << 13
    head = struct.pack("!BBHHHBBH", version << 4 | ihl, 0, total, ident, fragment, 64, proto, 0)
    head += packed(src) + packed(dst) + options
    return head[:10] + struct.pack("!H", (checksum(head) + bad) & 0xFFFF) + head[12:] + payload


def ipv4_option(kind, body):
    return bytes([kind, 2 + len(body)]) + body


def ipv4_fragments(src, dst, payload, size, **fields):
    """The packets of `size` bytes of payload each, in order."""
    starts = range(0, len(payload), size)
    return [
        ipv4(src, dst, payload[at : at + size], offset=at, more=at + size < len(payload), **fields) for at in starts
    ]


class Extension(NamedTuple):
    """An IPv6 extension header without its first byte, which chain() fills in."""

    kind: int
    body: bytes


def options_header(kind, size=8):
    """Hop-by-hop or destination options of `size` bytes: unknown ones that a receiver skips (RFC 8200, 4.2)."""
    room, options = size - 2, []
    while room > 0:
        length = min(room, 200)
        length -= room - length == 1  # one byte alone would be no option of this kind
        options.append(b"\x1e" + bytes([length - 2]) + bytes(length - 2) if length > 1 else b"\0")
        room -= length
    return Extension(kind, bytes([size // 8 - 1]) + b"".join(options))


def routing_header(kind, segments_left, body=bytes(4)):
    return Extension(ROUTING, bytes([len(body + bytes(4)) // 8 - 1, kind, segments_left]) + body)


def fragment_header(offset=0, more=False, ident=7):
    return Extension(FRAGMENT, struct.pack("!BHI", 0, offset | more, ident))


def chain(extensions, last=TCP):
    """(kind of the first header, bytes of all)."""
    kinds = [extension.kind for extension in extensions] + [last]
    return kinds[0], b"".join(bytes([after]) + each.body for each, after in zip(extensions, kinds[1:]))


def ipv6(src, dst, payload, extensions=(), *, last=TCP, length=None, version=6):
    """A packet; `length` is the payload length that the header states."""
    first, headers = chain(list(extensions), last)
    length = len(headers) + len(payload) if length is None else length
    return struct.pack("!IHBB", version << 28, length, first, 64) + packed(src) + packed(dst) + headers + payload


def ethernet(packet, dst, src, *, tags=(), proto=None):
    """A frame; `tags` are (TPID, VLAN id) from the outside in, `proto` follows the packet's version."""
    if proto is None:
        proto = ETH_IPV6 if packet[:1] >= b"\x60" else ETH_IPV4
    kinds = [tpid for tpid, _ in tags] + [proto]
    head = dst + src + struct.pack("!H", kinds[0])
    return head + b"".join(struct.pack("!HH", tci, after) for (_, tci), after in zip(tags, kinds[1:])) + packet


def tcp_of(frame):
    """(source, destination, sport, dport, flags, ack) of an untagged frame with a plain header, else None."""
    proto = frame[12:14]
    if proto == b"\x08\x00" and frame[23] == TCP:
        at, src, dst = 14 + (frame[14] & 15) * 4, frame[26:30], frame[30:34]
    elif proto == b"\x86\xdd" and frame[20] == TCP:
        at, src, dst = 54, frame[22:38], frame[38:54]
    else:
        return None
    sport, dport, _, ack, _, flags = struct.unpack_from("!HHIIBB", frame, at)
    return src, dst, sport, dport, flags, ack
