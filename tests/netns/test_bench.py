# SPDX-License-Identifier: Apache-2.0
"""The bench still works: a short run measures every part, each case goes its way, and no term is unaccounted for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("A packet", "A start", "At rest", "Records", "A flood")


def test_a_short_run():
    page = ROOT / "docs/benchmark.md"
    before = page.read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.rstrip(":") in SECTIONS] == [f"{name}:" for name in SECTIONS]
    accounts = [line for line in lines if "unaccounted for" in line]
    assert len(accounts) == 2 and all("reached" in line for line in accounts), done.stdout
    assert page.read_bytes() == before
