# SPDX-License-Identifier: Apache-2.0
"""What the resident does under load: how fast it records in each form, and what a flood costs and loses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional, Protocol

from tests.netns import traffic
from tests.netns.resident import Resident, balances

from . import journald, process
from .report import Measure
from .running import Effort, running

RECORDS, FLOOD = "Records", "A flood"
SINGLY = ("--log-fold-rate", "0", "--log-daily-size", "0")
MARKS = {"text": b": New connection: ", "json": b'"event_type":"connection"'}  # of a single connection's line
FIRST_RATE, FIRST_JOURNAL_RATE = 40_000, 5_000
STEP = 1.25  # from one rate to the next
TICK_S = 0.01
FRAMES_AT_ONCE = 50_000


class Generator:
    """Forged SYNs from the outside, all to one port: nobody scans."""

    def __init__(self, wire: traffic.Wire, sources: int) -> None:
        self._frame = traffic.forged(wire)
        self._prog, self._original = traffic.load_generator(self._frame, False, sources)
        self._wire = wire

    def close(self) -> None:
        os.close(self._prog)
        os.close(self._original)

    def at_rate(self, rate: int, seconds: float) -> None:
        chunk = round(rate * TICK_S)
        with self._wire.outside.enter():
            index, due = socket.if_nametoindex("v1"), time.monotonic()
            for _ in range(round(seconds / TICK_S)):
                traffic.run_live(self._prog, self._frame, index, chunk)
                due += TICK_S
                time.sleep(max(0.0, due - time.monotonic()))

    def flat_out(self, seconds: float) -> int:
        """How many it made; those that the receiving queue had no room for never reached the program."""
        made, end = 0, time.monotonic() + seconds
        with self._wire.outside.enter():
            index = socket.if_nametoindex("v1")
            while time.monotonic() < end:
                traffic.run_live(self._prog, self._frame, index, FRAMES_AT_ONCE)
                made += FRAMES_AT_ONCE
        return made


def generator(wire: traffic.Wire, sources: int) -> contextlib.closing[Generator]:
    return contextlib.closing(Generator(wire, sources))


# records


class Store(Protocol):
    """Where records end up: File, Journald."""

    def cpu_s(self) -> float: ...  # of its own process, if it has one

    def take(self) -> tuple[int, int]: ...  # the connections that are there and their bytes; then it is empty


class File:
    """Lines of one form, appended by the resident; ``path`` is gone afterwards."""

    def __init__(self, path: Path, form: str) -> None:
        self.path, self._mark = path, MARKS[form]

    def __enter__(self) -> File:
        self.stream = open(self.path, "ab")
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.path.unlink()

    def cpu_s(self) -> float:
        return 0.0

    def take(self) -> tuple[int, int]:
        size = self.path.stat().st_size
        with open(self.path, "rb") as file:
            count = sum(self._mark in line for line in file)
        os.truncate(self.path, 0)
        return count, size


class Step(NamedTuple):
    """One rate, held for a while."""

    records: int
    lost: int
    seconds: float
    cpu_s: float
    store_cpu_s: float
    size: int  #: bytes where the records are kept

    @property
    def rate(self) -> float:
        return self.records / self.seconds


def records(wire: traffic.Wire, home: Path, form: str, generator: Generator, effort: Effort) -> Iterator[Measure]:
    with File(home / f"records.{form}", form) as file:
        with running(wire, home / form, *SINGLY, stdout=file.stream, form=form) as resident:
            best, note = climb(resident, generator, FIRST_RATE, effort, file)
    yield from rows(form, best, note, target=2.0 if form == "json" else None)


def journal(wire: traffic.Wire, home: Path, generator: Generator, effort: Effort) -> Iterator[Measure]:
    with open(os.devnull, "wb") as null, journald.Journald(wire.host) as store:
        with running(wire, home / "journal", *SINGLY, stdout=null, form="journal") as resident:
            best, note = climb(resident, generator, FIRST_JOURNAL_RATE, effort, store)
    yield from rows("journal", best, note)
    if best is not None:
        spent = best.store_cpu_s / best.records * 1e6
        yield Measure(RECORDS, "journal: CPU of journald for a million", spent, "s", None, "at that rate")


def rows(form: str, best: Optional[Step], note: str, target: Optional[float] = None) -> Iterator[Measure]:
    yield Measure(RECORDS, f"{form}: without loss", best.rate if best else None, "records/s", None, note)
    if best is not None:
        spent = best.cpu_s / best.records * 1e6
        yield Measure(RECORDS, f"{form}: CPU for a million", spent, "s", target, "at that rate")
        yield Measure(RECORDS, f"{form}: a record", best.size / best.records, "bytes")


def climb(
    resident: Resident, generator: Generator, rate: int, effort: Effort, store: Store
) -> tuple[Optional[Step], str]:
    """The last step without loss, and what to know about it."""
    best: Optional[Step] = None
    for _ in range(effort.steps):
        step = hold(resident, generator, rate, effort, store)
        if step.lost:
            return best, f"of {rate:,} a second {step.lost:,} were lost or late"
        best, rate = step, int(rate * STEP)
    return best, "the last step that was tried"


def hold(resident: Resident, generator: Generator, rate: int, effort: Effort, store: Store) -> Step:
    before, cpu, store_cpu = resident.status()["ledger"], process.cpu_s(resident.pid), store.cpu_s()
    begin = time.monotonic()
    generator.at_rate(rate, effort.step_s)
    spent = time.monotonic() - begin
    judged = settled(resident, effort.settle_s)["syns"] - before["syns"]
    cpu, store_cpu = process.cpu_s(resident.pid) - cpu, store.cpu_s() - store_cpu
    kept, size = store.take()
    return Step(judged, judged - kept, spent, cpu, store_cpu, size)


def settled(resident: Resident, most_s: float) -> dict[str, int]:
    """The ledger at rest, or as it is when the time is over."""
    end, last = time.monotonic() + most_s, None
    while True:
        terms = resident.status()["ledger"]
        if time.monotonic() >= end or (terms == last and balances(terms)):
            return terms
        last = terms
        time.sleep(0.1)


# flood


def flood(
    wire: traffic.Wire, home: Path, generator: Generator, effort: Effort, title: str, flags: tuple[str, ...]
) -> Iterator[Measure]:
    """Made, judged, told, lost; and every term against the records themselves."""
    path = home / "flood.json"
    with open(path, "ab") as file, running(wire, home / "flood", *flags, stdout=file) as resident:
        before = resident.status()["ledger"]
        process.forget_peak(resident.pid)
        cpu, begin = process.cpu_s(resident.pid), time.monotonic()
        made = generator.flat_out(effort.flood_s)
        spent = time.monotonic() - begin
        share = (process.cpu_s(resident.pid) - cpu) / spent
        terms = resident.ledger()
        peak = process.peak(resident.pid)
    delta = {name: terms[name] - before[name] for name in terms}
    told = count_records(path)
    path.unlink()
    balanced = balances(terms) and told == {"connection": terms["connections"], "summary": terms["connections_folded"]}
    agree = "ledger and records agree" if balanced else f"ledger {terms}, records {told}"
    lost = 100 * delta["connections_lost"] / max(1, delta["syns"])
    fates = "{connections:,} singly, {connections_folded:,} in summaries, {connections_lost:,} lost".format(**delta)
    yield Measure(FLOOD, f"{title}: SYNs judged", delta["syns"] / spent, "/s", None, f"{made / spent:,.0f} made")
    yield Measure(FLOOD, f"{title}: lost", lost, "%", None if flags else 0.01, fates)
    yield Measure(FLOOD, f"{title}: unaccounted for", 0 if balanced else 1, "", 0, agree)
    yield Measure(FLOOD, f"{title}: RSS without rings", peak.rest, "MB", 48, f"peak; {peak.total:.1f} MB in all")
    yield Measure(FLOOD, f"{title}: CPU of the resident", share * 100, "%", None, "of one CPU")


def count_records(path: Path) -> dict[str, int]:
    """Connections told singly and in summaries; lines are not parsed but where they must be."""
    found = {"connection": 0, "summary": 0}
    with open(path, "rb") as file:
        for line in file:
            if MARKS["json"] in line:
                found["connection"] += 1
            elif b'"event_type":"summary"' in line:
                found["summary"] += json.loads(line)["count"]
    return found
