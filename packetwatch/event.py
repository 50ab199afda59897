# SPDX-License-Identifier: Apache-2.0
"""The records that cross the rings, decoded, and the notices made from them. No I/O, no clock.

The layouts mirror ``bpf/event.h`` (a test compares them).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from packetwatch.address import Prefix, mask

SCAN_SLOTS = 64

#: boot_ns, saddr, daddr, sport, dport, attachment, flags, behind the ring's own 8-byte header.
#: Ports travel in network byte order, everything else in the host's.
CONNECTION = struct.Struct("=8xQ16s16s2s2sHBx")
PROBE = struct.Struct("=8xQ16s16s2s2sHBB")  #: the same, with the TCP flags
ALERT = struct.Struct(f"=8xQQ16s16sHBBBBBB{SCAN_SLOTS}HQ")

IPV6 = 1 << 0
ALLOWED = 1 << 1
WOULD_DROP = 1 << 2
OPEN = 1 << 3
CLOSED = 1 << 4
SCAN = 1 << 5  #: of an alert: a scan was completed

NO_BLOCK, BLOCKED, REFUSED, FROZEN = range(4)
NO_RULE, HONEYPOT = 0, 255

#: enum evidence: that packets come from who owns their source address.
EVIDENCE = ("seen", "proven")

TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")  #: from the lowest bit

#: One new connection as the ring holds it: (boot_ns, saddr, daddr, sport, dport, attachment,
#: flags); addresses are 16 bytes (IPv6 or v4-mapped), ports 2 bytes in network order. A plain
#: tuple: a million of these a second are made by ``struct.iter_unpack``.
Connection = tuple[int, bytes, bytes, bytes, bytes, int, int]


class Probe(NamedTuple):
    """A segment that no connection has, as the ring ``probes`` holds it."""

    boot_ns: int
    saddr: bytes
    daddr: bytes
    sport: bytes
    dport: bytes
    attachment: int
    flags: int
    tcp_flags: int  #: 0 is none, or a fragment that ends before them


class Alert(NamedTuple):
    """A scan, or a source that a rule blocks, as the ring ``alerts`` holds it."""

    boot_ns: int
    until_ns: int  #: end of the block, CLOCK_BOOTTIME; 0 is forever
    saddr: bytes
    daddr: bytes
    attachment: int
    flags: int
    block: int  #: NO_BLOCK, BLOCKED, REFUSED (table full) or FROZEN (too many in this minute)
    length: int  #: bits of the source that the block covers: 128, or of IPv6 those of its network
    rule: int  #: number of the rule that blocks, from 1; NO_RULE or HONEYPOT
    evidence: int  #: index into EVIDENCE
    ports: tuple[int, ...]  #: in the order of their last SYN, oldest first
    closed: tuple[int, ...]  #: those of them that nothing listened on

    @property
    def blocked(self) -> Prefix:
        """Whom the block covers."""
        return Prefix(mask(self.saddr, self.length), self.length)


class Notice(NamedTuple):
    """Anything recorded that is not a single connection; the fields that do not apply are None."""

    boot_ns: int  #: CLOCK_BOOTTIME of what it tells of
    event_type: str  #: probe, scan, block, storm, unblock, drop, summary, loss, start, stop
    in_iface: Optional[str] = None
    source: Optional[str] = None  #: address or prefix, as text
    destination: Optional[str] = None
    dest_port: Optional[int] = None
    ports: Optional[tuple[int, ...]] = None
    count: Optional[int] = None  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    since_ns: Optional[int] = None  #: CLOCK_BOOTTIME; start of what ``count`` counts
    until_ns: Optional[int] = None  #: CLOCK_BOOTTIME; end of a block, 0 is forever
    reason: Optional[str] = None
    level: Optional[str] = None  #: of a summary: source_port, port, interface
    where: Optional[str] = None  #: of a loss: ring, alerts, stdout, journal, file
    mode: Optional[str] = None  #: enforce or observe; None where it does not matter
    message: Optional[str] = None  #: free text of start, stop and advice
    closed_ports: Optional[tuple[int, ...]] = None  #: those of ``ports`` that nothing listened on
    rule: Optional[str] = None  #: what blocks: a row of block.rules, honeypot
    src_port: Optional[int] = None
    port_state: Optional[str] = None  #: open or closed
    allowed: Optional[bool] = None  #: True of a probe whose source is on the allow list
    tcp_flags: Optional[str] = None  #: of a probe, as in FIN,PSH,URG; empty is none
    evidence: Optional[str] = None  #: of a block: seen or proven
    sources: Optional[tuple[str, ...]] = None  #: instead of ``source``, where it tells of several at once


class Batch(NamedTuple):
    """What one drain of the rings gave, handed once to every sink."""

    connections: Sequence[Connection]  #: in time order
    notices: Sequence[Notice]  #: in time order
    clock_ns: int  #: CLOCK_REALTIME minus CLOCK_BOOTTIME at the drain
    interfaces: Mapping[int, str]  #: attachment -> interface name


def connections(frames: bytes | memoryview) -> Iterator[Connection]:
    """The connections of a run of ring frames (8-byte header and record, 56 bytes each)."""
    return CONNECTION.iter_unpack(frames)  # type: ignore[return-value]


def probes(frames: bytes | memoryview) -> Iterator[Probe]:
    """The probes of a run of ring frames."""
    return map(Probe._make, PROBE.iter_unpack(frames))


def alerts(frames: bytes | memoryview) -> Iterator[Alert]:
    """The alerts of a run of ring frames; ports come back oldest first."""
    for *head, count, length, rule, evidence, ports, bits in map(_grouped, ALERT.iter_unpack(frames)):
        closed = [port for number, port in enumerate(ports[:count]) if bits >> number & 1]
        yield Alert._make((*head, length, rule, evidence, tuple(ports[:count][::-1]), tuple(closed[::-1])))


def _grouped(words: tuple[Any, ...]) -> tuple[Any, ...]:
    """With the ports as one."""
    return (*words[: -SCAN_SLOTS - 1], words[-SCAN_SLOTS - 1 : -1], words[-1])


def flag_names(tcp_flags: int) -> str:
    """FIN,PSH,URG; empty for none."""
    return ",".join(name for bit, name in enumerate(TCP_FLAGS) if tcp_flags >> bit & 1)
