# SPDX-License-Identifier: Apache-2.0
"""What the resident does under load: how fast it records in each form, and what a flood costs and loses."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from tests import frames
from tests.bpf import harness
from tests.netns import traffic
from tests.netns.resident import Resident, balances, wait_for

from . import process
from .report import Measure
from .running import Effort, running

RECORDS, FLOOD = "Records", "A flood"
SINGLY = ("--log-fold-rate", "0", "--log-daily-size", "0")
JOURNAL = Path("/run/systemd/journal")
FIRST_RATE, FIRST_JOURNAL_RATE = 40_000, 10_000
STEP = 1.25  # from one rate to the next
TICK_S = 0.01
SETTLED_S = 0.5  # in which all that was sent must be written
FRAMES_AT_ONCE = 50_000


class Generator:
    """Forged SYNs from the outside, all to one port: nobody scans."""

    def __init__(self, wire: traffic.Wire, sources: int) -> None:
        source, host = traffic.FORGED4, traffic.HOST4
        packet = frames.ipv4(source, host, frames.tcp(source, host, 40000, 80))
        to, sender = (frames.mac(text) for text in (wire.host.mac("v0"), wire.outside.mac("v1")))
        self._frame = frames.ethernet(packet, to, sender)
        defines = f"#define SOURCE_END 30\n#define SOURCE_MASK {hex(sources - 1)}U\n"
        (self._prog,) = harness.load_text(defines + traffic.GENERATOR.read_text(), harness.CLOCKED, "generate", [])
        self._wire = wire

    def close(self) -> None:
        os.close(self._prog)

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


class Step(NamedTuple):
    """One rate, held for a while."""

    records: int
    lost: int
    seconds: float
    cpu_s: float
    size: int  #: bytes written


def records(wire: traffic.Wire, home: Path, form: str, generator: Generator, effort: Effort) -> Iterator[Measure]:
    path = home / f"records.{form}"
    with open(path, "ab") as file, running(wire, home / form, *SINGLY, stdout=file, form=form) as resident:
        best, note = climb(resident, generator, FIRST_RATE, effort, path)
    path.unlink()
    if best is None:
        yield Measure(RECORDS, f"{form}: without loss", None, "records/s", None, note)
        return
    target = 2.0 if form == "json" else None
    yield Measure(RECORDS, f"{form}: without loss", best.records / best.seconds, "records/s", None, note)
    yield Measure(RECORDS, f"{form}: CPU for a million", best.cpu_s / best.records * 1e6, "s", target, "at that rate")
    yield Measure(RECORDS, f"{form}: a record", best.size / best.records, "bytes")


def climb(
    resident: Resident, generator: Generator, rate: int, effort: Effort, path: Optional[Path]
) -> tuple[Optional[Step], str]:
    """The last step without loss, and what to know about it."""
    best: Optional[Step] = None
    for _ in range(effort.steps):
        step = hold(resident, generator, rate, effort.step_s, path)
        if step.lost:
            return best, f"of {rate:,} a second {step.lost:,} were lost or late"
        best, rate = step, int(rate * STEP)
    return best, "the last step that was tried"


def hold(resident: Resident, generator: Generator, rate: int, seconds: float, path: Optional[Path]) -> Step:
    before, cpu = resident.status(), process.cpu_s(resident.pid)
    if path is not None:
        os.truncate(path, 0)
    begin = time.monotonic()
    generator.at_rate(rate, seconds)
    spent = time.monotonic() - begin
    time.sleep(SETTLED_S)
    after = resident.status()
    judged = after["ledger"]["syns"] - before["ledger"]["syns"]
    lost = after["ledger"]["connections_lost"] - before["ledger"]["connections_lost"]
    written = after["sinks"][0]["written"] - before["sinks"][0]["written"]
    late = max(0, judged - lost - written)
    size = path.stat().st_size if path is not None else 0
    return Step(judged, lost + late, spent, process.cpu_s(resident.pid) - cpu, size)


def journal(wire: traffic.Wire, home: Path, generator: Generator, effort: Effort) -> Iterator[Measure]:
    """Against journald where there is one; else only the sender's side, against a reader in its place."""
    with contextlib.ExitStack() as stack:
        real = (JOURNAL / "socket").is_socket()
        reader = None if real else stack.enter_context(Reader())
        null = stack.enter_context(open(os.devnull, "wb"))
        resident = stack.enter_context(running(wire, home / "journal", *SINGLY, stdout=null, form="journal"))
        best, note = climb(resident, generator, FIRST_JOURNAL_RATE, effort, None)
    name = "journal: without loss"
    if real and best is not None:
        yield Measure(RECORDS, name, best.records / best.seconds, "records/s", None, note)
    else:
        yield Measure(RECORDS, name, None, "records/s", None, note if real else "no journald here")
    if best is not None:
        where = "" if real else "to a reader in journald's place"
        yield Measure(RECORDS, "journal: CPU for a million", best.cpu_s / best.records * 1e6, "s", None, where)
    if reader is not None:
        yield Measure(RECORDS, "journal: a record", reader.bytes / max(1, reader.datagrams), "bytes", None, "as sent")


class Reader:
    """Takes datagrams where journald's socket would be, as fast as Python can."""

    def __enter__(self) -> Reader:
        self._made = not JOURNAL.parent.exists()
        JOURNAL.parent.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(JOURNAL.parent)], check=True)
        JOURNAL.mkdir()
        self._child = subprocess.Popen(
            [sys.executable, "-c", _READER, str(JOURNAL / "socket")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        wait_for((JOURNAL / "socket").is_socket, "the journal's reader")
        return self

    def __exit__(self, *_: object) -> None:
        out, _ = self._child.communicate(timeout=10)  # closes its standard input, which ends it
        self.datagrams, self.bytes = map(int, out.split())
        subprocess.run(["umount", str(JOURNAL.parent)], check=True)
        if self._made:
            JOURNAL.parent.rmdir()


_READER = """
import select, socket, sys
taker = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
taker.bind(sys.argv[1])
taker.setblocking(False)
count = size = 0
buffer = bytearray(1 << 16)
while True:
    ready = select.select([taker, sys.stdin], [], [])[0]
    try:
        while True:
            size += taker.recv_into(buffer)
            count += 1
    except BlockingIOError:
        pass
    if sys.stdin in ready:
        break
print(count, size)
"""


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
            if b'"event_type":"connection"' in line:
                found["connection"] += 1
            elif b'"event_type":"summary"' in line:
                found["summary"] += json.loads(line)["count"]
    return found
