# SPDX-License-Identifier: Apache-2.0
"""What a process costs, as /proc tells: CPU seconds, resident pages by what they are of; how none outlives us."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

RINGS = "anon_inode:bpf-map"  # what the kernel calls a mapping of a BPF map
MB = 1 << 20
DYING_WITH_US = ("setpriv", "--pdeathsig", "KILL")  #: in front of a command: also when the bench is killed


class Memory(NamedTuple):
    """Resident set in MB."""

    total: float
    rings: float

    @property
    def rest(self) -> float:
        return self.total - self.rings


def memory(pid: int) -> Memory:
    total = rings = 0
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            name = line
        elif line.startswith("Rss:"):
            size = int(line.split()[1]) << 10
            total += size
            rings += size if RINGS in name else 0
    return Memory(total / MB, rings / MB)


def forget_peak(pid: int) -> None:
    """The peak begins anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> Memory:
    """The most it held since, with the rings as they are now: they are mapped whole from the start."""
    text = Path(f"/proc/{pid}/status").read_text()
    return Memory((int(re.search(r"VmHWM:\s+(\d+)", text)[1]) << 10) / MB, memory(pid).rings)


def cpu_s(pid: int) -> float:
    """Of all its threads, to the microsecond where the kernel keeps it so."""
    spent = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        spent += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return spent / 1e9
