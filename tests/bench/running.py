# SPDX-License-Identifier: Apache-2.0
"""What the resident costs, run as people run it, in namespaces and mounts that are gone afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.netns import traffic
from tests.netns.resident import PYTHON, Resident, wait_for

from . import process
from .report import Measure

START, AT_REST = "A start", "At rest"
CLONE_NEWNS = 0x00020000
CLOSED = 9
PINS = Path("/run/bench-pins")


class Effort(NamedTuple):
    """How much of everything; `--quick` shows only that it works."""

    rounds: int
    block: int  #: packets of a case at a time
    starts: int
    knocks: int
    idle_s: float
    step_s: float
    steps: int
    settle_s: float  #: after a step, in which all must be where it belongs
    flood_s: float


@contextlib.contextmanager
def stage() -> Iterator[traffic.Wire]:
    """Two namespaces with a wire and a /run of our own: only this process and its children see them, and however
    these end, nothing is left.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    wire = traffic.Wire()
    try:
        yield wire.add()
    finally:
        wire.remove()


@contextlib.contextmanager
def running(
    wire: traffic.Wire, home: Path, *flags: str, stdout: Any = subprocess.PIPE, form: str = "json"
) -> Iterator[Resident]:
    resident = ours(wire, home, "--log-format", form, *flags, stdout=stdout)
    try:
        yield resident.start()
    finally:
        resident.stop(signal.SIGINT)


def ours(wire: traffic.Wire, home: Path, *flags: str, **options: Any) -> Resident:
    return Resident(wire.host, home, "", "--interface", "v0", *flags, prefix=process.DYING_WITH_US, **options)


# starts


def starts(wire: traffic.Wire, home: Path, effort: Effort) -> Iterator[Measure]:
    """From exec to the record that says it watches."""
    PINS.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(PINS)], check=True)
    cold, warm = [], []
    for number in range(effort.starts):
        flags = ("--log-format", "json", "--pin", str(PINS / str(number)))
        place = home / f"start{number}"
        cold.append(timed_start(wire, place, flags, adopted=False, end=signal.SIGKILL))
        warm.append(timed_start(wire, place, flags, adopted=True, end=signal.SIGINT))
    how = f"median of {len(cold)}"
    yield Measure(START, "cold: compiled, loaded, attached", statistics.median(cold), "s", 1.5, how)
    yield Measure(START, "warm: adopted after a SIGKILL", statistics.median(warm), "s", 0.3, how)


def timed_start(wire: traffic.Wire, home: Path, flags: tuple[str, ...], adopted: bool, end: int) -> float:
    resident = ours(wire, home, *flags)
    begin = time.perf_counter()
    resident.launch()
    try:
        while not any('"event_type":"start"' in line and '"mode"' in line for line in list(resident.lines)):
            assert resident.running, resident.errors()
            assert time.perf_counter() < begin + 30, "it does not start"
            time.sleep(0.001)
        spent = time.perf_counter() - begin
        assert resident.status()["adopted"] == adopted
    finally:
        resident.stop(end)
    return spent


# at rest


def at_rest(wire: traffic.Wire, home: Path, effort: Effort) -> Iterator[Measure]:
    with running(wire, home / "rest") as resident:
        wire.host.run([PYTHON, "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9773/metrics').read()"])
        delays = [delay(wire, resident, number) for number in range(effort.knocks)]
        time.sleep(1)
        before, begin = process.cpu_s(resident.pid), time.monotonic()
        time.sleep(effort.idle_s)
        share = (process.cpu_s(resident.pid) - before) / (time.monotonic() - begin)
        memory = process.memory(resident.pid)
    yield Measure(AT_REST, "RSS without rings", memory.rest, "MB", 32, "after a scrape of the metrics")
    yield Measure(AT_REST, "RSS in all", memory.total, "MB", None, f"rings {memory.rings:.1f} MB")
    yield Measure(AT_REST, "CPU", share * 100, "%", 0.1, f"over {effort.idle_s:g} s")
    yield Measure(AT_REST, "packet to record, at most", max(delays), "s", 0.5, f"of {len(delays)} connections")


def delay(wire: traffic.Wire, resident: Resident, number: int) -> float:
    """From the connect to the record on standard output."""
    seen, port = len(resident.lines), CLOSED + number % 2
    time.sleep(0.13 + 0.017 * (number % 7))  # anywhere within a tick of the loop
    begin = time.monotonic()
    wire.knock(traffic.OUT4, port)
    wait_for(lambda: len(resident.lines) > seen, "a record")
    return time.monotonic() - begin
