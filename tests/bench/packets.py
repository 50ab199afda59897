# SPDX-License-Identifier: Apache-2.0
"""What the kernel half costs a packet, by BPF_PROG_TEST_RUN: every case in turn, round after round."""

from __future__ import annotations

import ctypes
import os
import statistics
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

from packetwatch import address, event, libbpf, loader, program, rules
from packetwatch.kernel import Block, Kernel
from packetwatch.ring import Ring
from packetwatch.settings import Settings
from tests import frames as f
from tests.bpf import harness

from .report import Measure

SECTION = "A packet"
REFERENCE = Path(__file__).with_name("reference.c")
REFERENCE_RECORD = 24  # bytes of struct record
HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
PEER = b"\2" + bytes(5)
SOMEBODY4, SOMEBODY6, BLOCKED = "198.51.100.7", "2001:db8:7::7", "198.51.100.8"
OPEN = 8443
LISTED, ALLOWED = "203.0.113.9", "192.0.2.99"
FOLDING = {"fold_interval_ns": 3600 * harness.SECOND, "fold_burst_ns": 1}
FOREVER = 0
#: The rules as shipped: a closed port goes through both tables.
RULES = [rule.beside(Settings().scan_ports, Settings().scan_window_ns) for rule in Settings().block_rules]


class Case(NamedTuple):
    """One row: a frame, and how it must end, which is checked in every block."""

    name: str
    frame: bytes
    verdict: int = harness.PASS
    counter: Optional[str] = None  #: of struct counters, that every frame must raise
    target: Optional[float] = None
    crowd: bool = False  #: each frame has another source
    changes: dict[str, Any] = {}  #: of the settings


def tcp(source: str, flags: int = f.SYN, destination: str = "", port: int = 443) -> bytes:
    build, own = (f.ipv6, HOST6) if ":" in source else (f.ipv4, HOST4)
    packet = build(source, destination or own, f.tcp(source, destination or own, 40000, port, flags))
    return f.ethernet(packet, harness.MAC, PEER)


CASES = (
    Case("no SYN (TCP, IPv4)", tcp(SOMEBODY4, f.ACK), target=0.1),
    Case("no SYN (TCP, IPv6)", tcp(SOMEBODY6, f.ACK)),
    Case("no TCP (UDP, IPv4)", f.ethernet(f.ipv4(SOMEBODY4, HOST4, bytes(64), proto=f.UDP), harness.MAC, PEER)),
    Case("SYN of one of 4,096 sources, recorded", tcp(SOMEBODY4), counter="recorded", crowd=True),
    Case("SYN of one of 4,096 sources, folded", tcp(SOMEBODY4), counter="folded", crowd=True, changes=FOLDING),
    Case("SYN of the same source, recorded", tcp(SOMEBODY4), counter="recorded", target=2.7),
    Case("SYN of the same source, recorded, IPv6", tcp(SOMEBODY6), counter="recorded"),
    Case("SYN of the same source, folded", tcp(SOMEBODY4), counter="folded", changes=FOLDING),
    Case("SYN of the same source to a port known as open", tcp(SOMEBODY4, port=OPEN), counter="recorded", target=1.8),
    Case("probe (FIN), beyond the rate", tcp(SOMEBODY4, f.FIN), harness.DROP, "probes", changes=FOLDING),
    Case("SYN of a blocked source", tcp(BLOCKED), harness.DROP, "dropped", 0.9),
    Case("SYN of a source on the block list", tcp(LISTED), harness.DROP, "dropped"),
    Case("SYN of an allowed source", tcp(ALLOWED), counter="recorded"),
    Case("SYN for another host", tcp(SOMEBODY4, destination="192.0.2.200"), counter="ignored"),
)

#: What costs are told in: the program that does nothing and the reference, with one source and with a crowd.
BASES = (("empty", "reference"), ("empty, crowd", "reference, crowd"))

Runner = Callable[[int], float]  #: block of so many packets -> ns a packet


def measure(rounds: int, block: int) -> list[Measure]:
    """block: packets of a case at a time; they must fit into the ring."""
    with Programs() as programs:
        runs = {name: programs.measure_of(name, crowd) for crowd, names in enumerate(BASES) for name in names}
        runs.update((case.name, programs.runner(case)) for case in CASES)
        times = interleave(runs, rounds, block)
    return list(rows(times))


def interleave(runs: dict[str, Runner], rounds: int, block: int) -> dict[str, list[float]]:
    """Each round begins with another case, so that no case always has the same one before it."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(block)  # warm
    names = list(runs)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            times[name].append(runs[name](block))
    return times


def rows(times: dict[str, list[float]]) -> Iterator[Measure]:
    for name in (name for names in BASES for name in names):
        yield Measure(SECTION, f"{name}", statistics.median(times[name]), "ns")
    for case in CASES:
        ratio = in_references(times, case.name, BASES[case.crowd])
        note = f"{statistics.median(times[case.name]):.1f} ns in all"
        yield Measure(SECTION, case.name, ratio, "refs", case.target, note)


def in_references(times: dict[str, list[float]], name: str, bases: tuple[str, str] = BASES[0]) -> float:
    """Median of the rounds' ratios: a machine that slows down slows a whole round."""
    rounds = zip(times[name], *(times[base] for base in bases))
    return statistics.median((ns - empty) / (reference - empty) for ns, empty, reference in rounds)


class Programs:
    """The three programs, loaded; the measuring thread stays on one CPU."""

    def __enter__(self) -> Programs:
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(self._cpus)})
        s = Settings()
        parameters = program.Parameters(s.table_trackers, s.table_blocks, s.ring_size, s.loader_headers)
        text = REFERENCE.read_text()
        (self._empty,) = harness.load_text(text, parameters, "empty", [])
        self._crowd, self._next = harness.load_text(text, parameters, "crowd", ["next"])
        self._reference, records = harness.load_text(text, parameters, "reference", ["records"])
        self._records = Ring(records, parameters.ring_bytes, REFERENCE_RECORD)
        loaded = loader.load(parameters)
        self.kernel = Kernel(loaded.prog, loaded.maps, parameters, loaded.handshakes)
        self.rig = harness.Rig(self.kernel)
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._cpus)
        self.kernel.close()
        for fd in (self._empty, self._reference, self._crowd, self._next):
            os.close(fd)
        self._records.close()

    def _fill(self) -> None:
        own = (HOST4, "192.0.2.255", "127.0.0.0/8", HOST6, "::1", "fe80::1")
        self.rig.local(*own)
        for prefix in own:
            self.rig.source(prefix, rules.OWN | rules.ALLOW)
        for prefix in ("192.0.2.254", "fe80::fe", "192.0.2.96/28", "2001:db8:a::/48"):
            self.rig.source(prefix, rules.ALLOW)
        self.rig.source("203.0.113.0/24", rules.BLOCK)
        for number in range(1000):
            self._block(f"10.7.{number >> 8}.{number & 255}")
        self._block(BLOCKED)
        self.kernel.put_ports((OPEN,), ())

    def _block(self, source: str) -> None:
        self.kernel.blocks.put(Block(address.parse(source), FOREVER, 1, 0, 0))

    def measure_of(self, name: str, crowd: bool) -> Runner:
        """Of one of BASES."""
        prog = self._reference if name.startswith("reference") else self._empty

        def run(block: int) -> float:
            ns = self._timed(prog, tcp(SOMEBODY4), block, harness.PASS, crowd)
            freed, expected = empty_ring(self._records), block if prog == self._reference else 0
            assert freed == expected, f"{name}: {freed} records of {expected}"
            return ns

        return run

    def runner(self, case: Case) -> Runner:
        def run(block: int) -> float:
            self.rig.settings(wakeup_mask=wakeup_mask(self.kernel), rules=RULES, **case.changes)
            before = self.rig.counters(0)
            ns = self._timed(self.kernel.prog, case.frame, block, case.verdict, case.crowd)
            self._check(case, before, block)
            return ns

        return run

    def _timed(self, prog: int, frame: bytes, block: int, verdict: int, crowd: bool) -> float:
        if not crowd:
            return timed(prog, frame, block, verdict)
        libbpf.update(self._next, bytes(4), struct.pack("=I", prog))
        return timed(self._crowd, frame, block, verdict)

    def _check(self, case: Case, before: Any, block: int) -> None:
        """It went the way that its name says, each time."""
        freed = empty_ring(self.kernel.connections)
        after = self.rig.counters(0)
        moved = {name: sum(b) - sum(a) for name, a, b in zip(after._fields, before, after) if isinstance(a, tuple)}
        if case.counter is None:
            assert not any(moved.values()), f"{case.name}: {moved}"
        else:
            slack = 1 if case.changes else 0  # GCRA lets the first one through
            assert moved[case.counter] >= block - slack, f"{case.name}: {moved}"
        assert freed == moved["recorded"], f"{case.name}: {freed} records"


def timed(prog: int, frame: bytes, block: int, verdict: int) -> float:
    """As the kernel tells it, in whole ns; the system call's own start takes it a millisecond."""
    context = struct.pack("=6I", 0, len(frame), 0, harness.LO, 0, 0)  # struct xdp_md
    options = harness._TestRunOpts(
        sz=ctypes.sizeof(harness._TestRunOpts),
        data_in=frame,
        data_size_in=len(frame),
        ctx_in=context,
        ctx_size_in=len(context),
        repeat=block,
    )
    libbpf._call("bpf_prog_test_run_opts", prog, ctypes.byref(options))
    assert options.retval == verdict, f"verdict {options.retval}, not {verdict}"
    return float(options.duration)


def empty_ring(ring: Ring) -> int:
    """Frees everything; returns the number of records."""
    frames = ring.peek(1 << 20)
    count = len(frames) // ring.frame
    ring.advance(frames)
    assert not ring.backlog()
    return count


def wakeup_mask(kernel: Kernel) -> int:
    """As the resident sets it (resident.py): a wake-up for a quarter of the ring, shared by the CPUs."""
    per_cpu = max(1, kernel.parameters.ring_bytes // kernel.connections.frame // (4 * (os.cpu_count() or 1)))
    return (1 << (per_cpu.bit_length() - 1)) - 1


def possible() -> int:
    """Packets whose records fit into the ring at once, with a margin."""
    return Settings().ring_size // event.CONNECTION.size * 2 // 3
