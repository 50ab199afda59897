# SPDX-License-Identifier: Apache-2.0
"""The records that cross the rings, decoded, and the notices made from them. No I/O, no clock.

The layouts mirror ``bpf/event.h`` (a test compares them).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Optional

SCAN_SLOTS = 64

#: boot_ns, saddr, daddr, sport, dport, attachment, flags, behind the ring's own 8-byte header.
#: Ports travel in network byte order, everything else in the host's.
CONNECTION = struct.Struct("=8xQ16s16s2s2sHBx")
ALERT = struct.Struct(f"=8xQQ16s16sHBBHH{SCAN_SLOTS}H")

IPV6 = 1 << 0
ALLOWED = 1 << 1
WOULD_DROP = 1 << 2

NO_BLOCK, BLOCKED, REFUSED = range(3)

#: One new connection as the ring holds it: (boot_ns, saddr, daddr, sport, dport, attachment,
#: flags); addresses are 16 bytes (IPv6 or v4-mapped), ports 2 bytes in network order. A plain
#: tuple: a million of these a second are made by ``struct.iter_unpack``.
Connection = tuple[int, bytes, bytes, bytes, bytes, int, int]


class Scan(NamedTuple):
    """One recognised scan as the ring ``alerts`` holds it."""

    boot_ns: int
    until_ns: int  #: end of the block, CLOCK_BOOTTIME; 0 is forever
    saddr: bytes
    daddr: bytes
    attachment: int
    flags: int
    block: int  #: NO_BLOCK, BLOCKED or REFUSED (table full)
    ports: tuple[int, ...]  #: in the order of their last SYN, oldest first


class Notice(NamedTuple):
    """Anything recorded that is not a single connection; the fields that do not apply are None."""

    boot_ns: int  #: CLOCK_BOOTTIME of what it tells of
    event_type: str  #: scan, block, unblock, drop, summary, loss, start, stop
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


class Batch(NamedTuple):
    """What one drain of the rings gave, handed once to every sink."""

    connections: Sequence[Connection]  #: in time order
    notices: Sequence[Notice]  #: in time order
    clock_ns: int  #: CLOCK_REALTIME minus CLOCK_BOOTTIME at the drain
    interfaces: Mapping[int, str]  #: attachment -> interface name


def connections(frames: bytes | memoryview) -> Iterator[Connection]:
    """The connections of a run of ring frames (8-byte header and record, 56 bytes each)."""
    return CONNECTION.iter_unpack(frames)  # type: ignore[return-value]


def scans(frames: bytes | memoryview) -> Iterator[Scan]:
    """The scans of a run of ring frames; ports come back oldest first."""
    for boot_ns, until_ns, saddr, daddr, attachment, flags, block, count, _, *ports in ALERT.iter_unpack(frames):
        yield Scan(boot_ns, until_ns, saddr, daddr, attachment, flags, block, tuple(ports[:count][::-1]))
