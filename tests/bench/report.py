# SPDX-License-Identifier: Apache-2.0
"""What was measured, as a table for people and as docs/benchmark.md. Measures nothing but the machine's name."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Optional

HEAD = """# What it costs

Written by `make bench`, in one run on this machine:

{machine}

Absolute times belong to the day: the same machine, a virtual one, has been three times slower some hours
later. What can be compared is told as ratios within the run, see the notes. Targets are those of this
project; a row without one is there to be known.
"""

NOTES = """## Notes

- **refs**: cost of a packet above an empty XDP program, divided by that of `tests/bench/reference.c`: the
  least that a scan detector in XDP can do (IPv4 only, one LRU lookup, four ports a source, one ring
  record; no local test, no lists, no lock, no counters). Every frame goes through BPF_PROG_TEST_RUN in
  blocks, the cases in turn; the value is the median over the rounds of the ratio within each round. The
  ring is emptied between blocks, so that none finds it full, and folding is off but in the row that names it.
- **crowd** and **4,096 sources**: a program in front changes the source of every frame, so that neither the
  caches of the CPU nor the program's memory of the last sources help; told above an empty program and in
  references that get the same frames. With the same source each time both help. None of these sources is
  on a list, as with most sources of most hosts, so the marks (decision 011) spare them the trie; the row of
  an allowed source has it.
- The lists hold what a usual host has, the block table a thousand sources.
- **Without loss**: forged SYNs at a steady rate from a live-frames generator into a veth pair, each
  recorded singly (`log.fold_rate = 0`); the highest step at which none was lost and all were written soon
  after, as counted where they belong: lines in the file, entries that `journalctl` finds. One of the
  machine's CPUs makes the frames meanwhile.
- **journal**: to a real journald, started for it, without a rate limit and with its files in memory. It is
  the one that has most to do. As a service's, a record also names the unit: some 40 bytes more.
- **RSS without rings**: the pages of the two rings are shared with the kernel, and the kernel's whatever
  the resident does; they are mapped twice, so that a 4 MB ring shows as 8 MB.
- **Flood**: the same generator as fast as it can. With the default settings most connections are counted
  into summaries in the kernel. Without folding the resident is asked for more than one CPU can format;
  what it cannot take is counted as lost, and the ledger still balances.
- **Warm**: the process is killed and a new one adopts program and maps, here from pins; under systemd they
  come from the descriptor store.
"""


class Measure(NamedTuple):
    """One row. A target is the most that is meant to be; None where there is none."""

    section: str
    name: str
    value: Optional[float]  #: None: it could not be measured, and note says why
    unit: str
    target: Optional[float] = None
    note: str = ""

    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.target is None:
            return ""
        return "reached" if self.value <= self.target else "MISSED"


def number(value: Optional[float]) -> str:
    """Three digits, no exponent."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}".rstrip("0").rstrip(".") if abs(value) < 0.1 else f"{value:.3g}"


def cells(m: Measure) -> tuple[str, ...]:
    target = "" if m.target is None else f"{number(m.target)} {m.unit}".strip()
    return m.name, f"{number(m.value)} {m.unit}".strip(), target, m.verdict(), m.note


def table(measures: Sequence[Measure]) -> str:
    """Plain columns, for the terminal."""
    rows = [("", "measured", "at most", "", "")] + [cells(m) for m in measures]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines, section = [], None
    for m, row in zip([None, *measures], rows):
        if m is not None and m.section != section:
            section = m.section
            lines.append(f"{section}:")
        lines.append("  " + "  ".join(text.ljust(width) for text, width in zip(row, widths)) + f"  {row[4]}")
    return "\n".join(line.rstrip() for line in lines)


def document(measures: Sequence[Measure], machine: str) -> str:
    """docs/benchmark.md."""
    lines = [HEAD.format(machine=machine)]
    for section in dict.fromkeys(m.section for m in measures):
        lines += [f"## {section}", "", "| | measured | at most | | |", "| --- | --- | --- | --- | --- |"]
        lines += ["| " + " | ".join(cells(m)) + " |" for m in measures if m.section == section] + [""]
    return "\n".join([*lines, NOTES])


def machine(load_before: float) -> str:
    """Says what kind of machine it was, not which."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", cpuinfo, re.M)
    virtual = ", virtual" if re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.M) else ""
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / (1 << 20)
    system = re.search(r'^PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release").read_text(), re.M)
    rows = {
        "CPU": f"{model[1] if model else platform.machine()}, {os.cpu_count()} CPUs{virtual}",
        "memory": f"{memory:.0f} GB",
        "system": system[1] if system else "unknown",
        "kernel": re.match(r"\d+\.\d+", platform.release())[0],
        "systemd": output("journalctl", "--version").split()[1],
        "Python": platform.python_version(),
        "bcc": version("bcc"),
        "prometheus-client": version("prometheus_client"),
        "load before": f"{load_before:.1f}",
        "date": datetime.date.today().isoformat(),
    }
    return "\n".join(f"- {name}: {text}" for name, text in rows.items())


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
