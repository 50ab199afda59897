# SPDX-License-Identifier: Apache-2.0
"""The bench still works: a short run measures every part, each case goes its way, and no term is unaccounted for;
and however it ends, nothing of it stays.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .resident import wait_for

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "tests.bench", "--quick"]
SECTIONS = ("A packet", "A start", "At rest", "Records", "A flood")


def test_a_short_run():
    page = ROOT / "docs/benchmark.md"
    before = page.read_bytes()
    done = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.rstrip(":") in SECTIONS] == [f"{name}:" for name in SECTIONS]
    accounts = [line for line in lines if "unaccounted for" in line]
    assert len(accounts) == 2 and all("reached" in line for line in accounts), done.stdout
    lossless = [line.split() for line in lines if "without loss" in line]
    assert [words[0] for words in lossless] == ["text:", "json:", "journal:"]
    assert all(float(words[3].replace(",", "")) > 0 for words in lossless), done.stdout
    assert page.read_bytes() == before


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_it_leaves_nothing(number, status, tmp_path):
    """Ended where most of it is there: namespaces, mounts, a resident, a journald."""
    bench = subprocess.Popen(COMMAND, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: {"systemd-journal", "python3"} <= commands(tmp_path, bench.pid), "the journal's part", 240)
        bench.send_signal(number)
        errors = bench.communicate(timeout=30)[1].decode()
    finally:
        bench.kill()
    assert bench.returncode == status and "Traceback" not in errors, errors
    wait_for(lambda: not commands(tmp_path), "the end of all that it started")
    assert not list(Path("/run").glob(f"netns/pw-{bench.pid}-*"))
    if number != signal.SIGKILL:
        assert not list(tmp_path.iterdir())


def commands(folder, but=0):
    """The names of processes that have the folder in their environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or not ours
            if f"={folder}\0".encode() in (process / "environ").read_bytes() and int(process.name) != but:
                found.add((process / "comm").read_text().strip())
    return found
