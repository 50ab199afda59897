# SPDX-License-Identifier: Apache-2.0
"""`make bench`: measures everything in one run, prints it beside the targets and writes docs/benchmark.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from . import load, packets, report, running

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/benchmark.md"
FULL = running.Effort(
    rounds=60, block=packets.possible(), starts=5, knocks=20, idle_s=10, step_s=3, steps=14, settle_s=0.5, flood_s=3
)
QUICK = running.Effort(
    rounds=3, block=5000, starts=1, knocks=2, idle_s=1, step_s=0.2, steps=1, settle_s=10, flood_s=0.2
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="see whether it works; the numbers mean nothing")
    quick = parser.parse_args().quick
    load_before = os.getloadavg()[0]
    if load_before > 0.5 and not quick:
        tell(f"something else runs on this machine (load {load_before:.1f}): the numbers will tell of it, too")
    measures = measure(QUICK if quick else FULL)
    print(report.table(measures))
    if quick:
        print("quick: these numbers mean nothing; docs/benchmark.md stays as it is")
    else:
        DOCUMENT.write_text(report.document(measures, report.machine(load_before)))
        print(f"written to {DOCUMENT.relative_to(ROOT)}")
    return 0


def measure(effort: running.Effort) -> list[report.Measure]:
    tell(packets.SECTION)
    found = packets.measure(effort.rounds, effort.block)
    with tempfile.TemporaryDirectory(prefix="packetwatch-bench-") as folder, running.stage() as wire:
        home = Path(folder)
        tell(running.START)
        found += running.starts(wire, home, effort)
        tell(running.AT_REST)
        found += running.at_rest(wire, home, effort)
        with load.generator(wire, 1 << 12) as crowd:
            tell(load.RECORDS)
            for form in ("text", "json"):
                found += load.records(wire, home, form, crowd, effort)
            found += load.journal(wire, home, crowd, effort)
        with load.generator(wire, 1 << 17) as forgers:
            tell(load.FLOOD)
            found += load.flood(wire, home, forgers, effort, "default settings", ())
            found += load.flood(wire, home, forgers, effort, "without folding", load.SINGLY)
    return found


def tell(section: str) -> None:
    print(f"{section} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
