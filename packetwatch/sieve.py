# SPDX-License-Identifier: Apache-2.0
"""Which frames of a capture can matter to the kernel half, and what their answers tell of ports. Pure.

A sieve, not a judge: a frame that it is not sure of goes through. The header walk is bpf/packet.h's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from packetwatch import event
#: What look() finds: nothing that could matter; what opens a connection; what no connection has; something that the
#: kernel half alone can tell; an answer to a SYN.
NOTHING, SYN, PROBE, UNSURE, OPENED, REFUSED = range(6)

UNKNOWN = 0  #: state of a port; the others are event.OPEN and event.CLOSED

_KNOWN_PORTS = 65536  # 12 MB with IPv6; beyond that all are learned anew
_ETHERNET_BYTES = 14
_TAGS = (b"\x81\x00", b"\x88\xa8")
_TAG_BYTES, _TAG_DEPTH = 4, 12
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_PLAIN = _IPV4 + b"\x45"  # without options
_TCP = 6
_EXTENSIONS = frozenset((0, 43, 44, 60))
_FLAGS_AT = 13  # in the TCP header
_SYN_BIT, _RST_BIT, _ACK_BIT, _BITS = 0x02, 0x04, 0x10, 0x17
_NONE = b""


#: What a frame is, and the port it is about (address and port as in the frame); empty if there is none.
Seen = tuple[int, bytes]

_NOTHING: Seen = (NOTHING, _NONE)
_UNSURE: Seen = (UNSURE, _NONE)


def look(frame: bytes) -> Seen:
    """Of an Ethernet frame."""
    if frame[12:15] == _PLAIN and len(frame) > 47 and frame[23] == _TCP and not frame[20] & 0x3F and not frame[21]:
        if frame[47] & _BITS == _SYN_BIT:  # what floods consist of, sooner than below
            return SYN, frame[30:34] + frame[36:38]
    kind, at = frame[12:14], _ETHERNET_BYTES
    if kind in _TAGS:
        kind, at = network(frame)
    if kind == _IPV4:
        return _look_ipv4(frame, at)
    if kind == _IPV6:
        return _look_ipv6(frame, at)
    return _UNSURE if kind in _TAGS or len(kind) < 2 else _NOTHING


def network(frame: bytes) -> tuple[bytes, int]:
    """The ethertype behind all tags, and where its header begins."""
    kind, at = frame[12:14], _ETHERNET_BYTES
    for _ in range(_TAG_DEPTH):
        if kind not in _TAGS:
            break
        kind = frame[at + 2 : at + 4]
        at += _TAG_BYTES
    return kind, at


def _look_ipv4(frame: bytes, at: int) -> Seen:
    if len(frame) < at + 20:
        return _UNSURE
    if frame[at + 9] != _TCP or frame[at + 6] & 0x1F or frame[at + 7]:
        return _NOTHING  # another protocol, or not the first fragment
    first = frame[at]
    tcp = at + 20 if first == 0x45 else at + (first & 15) * 4
    if first < 0x45 or first > 0x4F or frame[at + 6] & 0x20 or len(frame) <= tcp + _FLAGS_AT:
        return _UNSURE
    return _look_tcp(frame, tcp, at + 12, 4)


def _look_ipv6(frame: bytes, at: int) -> Seen:
    if len(frame) < at + 40:
        return _UNSURE
    following = frame[at + 6]
    if following in _EXTENSIONS:
        return _UNSURE
    if following != _TCP:
        return _NOTHING
    tcp = at + 40
    return _look_tcp(frame, tcp, at + 8, 16) if len(frame) > tcp + _FLAGS_AT else _UNSURE


def _look_tcp(frame: bytes, tcp: int, source: int, size: int) -> Seen:
    """source: where the addresses begin, of `size` bytes each."""
    flags = frame[tcp + _FLAGS_AT]
    if not flags & (_ACK_BIT | _RST_BIT):
        port = frame[source + size : source + 2 * size] + frame[tcp + 2 : tcp + 4]
        return SYN if flags & _BITS == _SYN_BIT else PROBE, port
    if flags & _BITS == _SYN_BIT | _ACK_BIT:
        return OPENED, frame[source : source + size] + frame[tcp : tcp + 2]
    if flags & _BITS == _RST_BIT | _ACK_BIT and frame[tcp + 4 : tcp + 8] == b"\0\0\0\0":
        return REFUSED, frame[source : source + size] + frame[tcp : tcp + 2]  # RFC 9293, 3.10.7.1: of a SYN
    return _NOTHING


def ends(frame: bytes) -> tuple[bytes, bytes]:
    """Source and destination of an IP packet in a frame, each of 4 or 16 bytes; empty where there are none."""
    kind, at = network(frame)
    source, size = (at + 12, 4) if kind == _IPV4 else (at + 8, 16)
    return frame[source : source + size], frame[source + size : source + 2 * size]


#: One frame for the kernel half: (ns since 1970, data).
Waiting = tuple[int, bytes]


class _Batch:
    """Frames that wait for what comes after them."""

    def __init__(self) -> None:
        self.frames: list[Waiting] = []
        self.states = bytearray()
        self.asking: dict[bytes, list[int]] = {}  # port -> frames whose SYN is not answered yet

    def answer(self, port: bytes, state: int) -> None:
        for number in self.asking.pop(port, ()):
            self.states[number] = state


class Lookahead:
    """Holds SYNs back until the answers that follow them are read: one to two batches of frames.

    A SYN has the state of its port that the next answer tells, else the one that the last answer told.
    """

    def __init__(self, size: int = 4096) -> None:
        """size: frames of a batch."""
        self._size = size
        self._older, self._newer = _Batch(), _Batch()
        self._known: dict[bytes, int] = {}

    def add(self, frame: Waiting, port: bytes) -> Sequence[tuple[Waiting, int]]:
        """Frames that have waited long enough, with the states of their ports."""
        batch = self._newer
        frames = batch.frames
        if port:
            batch.asking.setdefault(port, []).append(len(frames))
        frames.append(frame)
        batch.states.append(self._known.get(port, UNKNOWN))
        if len(frames) < self._size:
            return ()
        ready, self._older, self._newer = self._older, self._newer, _Batch()
        return list(zip(ready.frames, ready.states))

    def answer(self, what: int, port: bytes) -> None:
        """OPENED or REFUSED, of a port."""
        state = event.OPEN if what == OPENED else event.CLOSED
        self._older.answer(port, state)
        self._newer.answer(port, state)
        if len(self._known) >= _KNOWN_PORTS:
            self._known.clear()
        self._known[port] = state

    def rest(self) -> Iterator[tuple[Waiting, int]]:
        """All that waits; it ends with this."""
        for batch in (self._older, self._newer):
            yield from zip(batch.frames, batch.states)
        self._older, self._newer = _Batch(), _Batch()
