# SPDX-License-Identifier: Apache-2.0
"""The contract between loader and resident: what is compiled, how it is identified, what it holds.

A map has one name: in C, here, and as its descriptor's name. The layouts mirror bpf/maps.h.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from packetwatch import event

SOURCES = Path(__file__).resolve().parent.parent / "bpf"
FUNCTION = "packetwatch"
#: Functions for the root cgroup, of which the first that the kernel takes is used; replay builds have none.
HANDSHAKES = ("established", "established_anywhere")
LAYOUT = 4  #: of records and map values; raise it with every change of one
ATTACHMENTS = 64
ATTACHMENT_CELLS = 256
ATTACHMENT_PROBES = 8
PREFIXES = 65536
FOLDS = 2048
SUSPECTS = 16384
OFFENDERS = 16384
CLIENTS = 16384
RULES = 8
PORT_BYTES = 8192
ALERTS_BYTES = 256 * 1024
PROBES_BYTES = 64 * 1024

MAPS = (
    "settings",
    "attachments",
    "counters",
    "local",
    "scratch",
    "recent_unlisted",
    "sources",
    "marks",
    "blocks",
    "wide_blocks",
    "spared",
    "trackers",
    "suspects",
    "offenders",
    "clients",
    "network",
    "storm",
    "cookies",
    "challenge_rate",
    "looks",
    "known_ports",
    "folds_by_source",
    "folds_by_port",
    "folds_by_interface",
    "connections",
    "probes",
    "alerts",
)

SETTINGS = struct.Struct(f"=QQQQQQQQQQQ16sQIIIIIIII{RULES * 'QII'}")
ATTACHMENT = struct.Struct("=QQQIHBx6sxx")
PREFIX_KEY = struct.Struct("=I16s")
SOURCE = struct.Struct("=QQII")
BLOCK = struct.Struct("=QQQHHi")
TRACKER_HEAD = struct.Struct("=16sQQQIxxxx")  #: saddr, last, blocked, scan, count; the slots follow
SUSPECT_HEAD = struct.Struct("=16sQIxxxx")
OFFENDER = struct.Struct("=QQQQIIIIII")
LOOKS = struct.Struct("=QQ")  #: turns left, until_ns
COOKIES = struct.Struct("=16s16sIxxxx")
CLIENT = struct.Struct("=QQ")
FOLD_KEY = struct.Struct("=16s2sHI")
FOLD = struct.Struct("=QQ")
REPLAY_HEADER = struct.Struct("=QIBBxx")  #: now_ns, ifindex, port_state, hosts: bpf/replay.h

ATTACHMENT_USED, ATTACHMENT_LOOPBACK, ATTACHMENT_MAC_TEST = 1, 2, 4


class Parameters(NamedTuple):
    """What is compiled in: a change needs a restart, and then a new program."""

    trackers: int  #: sources, a power of two
    blocks: int
    ring_bytes: int  #: of the ring `connections`, a power of two
    headers: str  #: auto, uapi or kernel
    replay: bool = False  #: for BPF_PROG_TEST_RUN, with REPLAY_HEADER in front of each frame

    @property
    def suspects(self) -> int:
        return min(SUSPECTS, self.trackers)

    def defines(self) -> tuple[str, ...]:
        return (
            f"-DPACKETWATCH_PAGE_SIZE={mmap.PAGESIZE}",
            f"-DTRACKERS={self.trackers}",
            f"-DBLOCKS={self.blocks}",
            f"-DSCAN_SLOTS={event.SCAN_SLOTS}",
            f"-DATTACHMENTS={ATTACHMENTS}",
            f"-DCONNECTIONS_PAGES={max(1, self.ring_bytes // mmap.PAGESIZE)}",
            f"-DSUSPECTS={self.suspects}",
            f"-DPROBES_PAGES={max(1, PROBES_BYTES // mmap.PAGESIZE)}",
            f"-DALERTS_PAGES={max(1, ALERTS_BYTES // mmap.PAGESIZE)}",
            *(["-DREPLAY"] if self.replay else []),
        )

    def digest(self, sources: Path = SOURCES) -> str:
        """Changes with any source, flag or layout: same digest, same program. Ends in the layout's number."""
        state = hashlib.sha256(repr((self, self.defines(), MAPS)).encode())
        for path in sorted(p for p in sources.rglob("*.[ch]") if "plugins" not in p.parts):
            state.update(str(path.relative_to(sources)).encode() + b"\0" + path.read_bytes())
        return f"{state.hexdigest()[:16]}v{LAYOUT}"
