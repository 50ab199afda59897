# SPDX-License-Identifier: Apache-2.0
"""Captures and recorded connections judged by the kernel half, on their own clock, under the given settings.

Attaches nothing, keeps nothing, and knows no service: frames go in by BPF_PROG_TEST_RUN.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from packetwatch import address, capture, event, libbpf, lists, loader, privileges, program, recorded, rules, sieve
from packetwatch import thresholds
from packetwatch.address import BITS, Prefix
from packetwatch.drain import Drain
from packetwatch.event import Alert, Batch, Notice
from packetwatch.kernel import Attachment, Counters, Kernel, KernelSettings
from packetwatch.operations import NOT_PERMITTED, Refused
from packetwatch.replayed import Replayed
from packetwatch.settings import Settings
from packetwatch.sinks.ledger import Ledger
from packetwatch.sinks.log import LogSink, Outcome
from packetwatch.sinks.writer import open_stream

_WIRE, _LOOPBACK = 1, 2  # ifindex of the attachments, in the header before each frame
_RING_BYTES = 4 << 20
_BETWEEN_DRAINS = 1024  # frames: each may raise an alert, and all of these have room in their ring
_LONGEST = libbpf.TEST_RUN_BYTES - program.REPLAY_HEADER.size
_DROPS_MOST = 16384  # pairs of addresses that are counted before they are told
_EVERYWHERE = Prefix(bytes(address.SIZE), 0)
_XDP_DROP = 1
_SEED = 0x5EED  # no secret: the same capture gives the same account, and evictions are told
_NEVER_NS = 1 << 63
_SLOW_MS = 1000
_TOLERANCE_NS = 1_000_000_000  # between files: frames of one capture may be a little out of order
_REASON = 80  # characters of what is wrong with a line

Fed = Iterable[tuple[sieve.Waiting, int]]


class Judging(NamedTuple):
    """What to judge by."""

    settings: Settings
    local: tuple[Prefix, ...]  #: addresses of the one host; without any each destination is a host of its own
    form: str  #: of the records: text or json


class Output(LogSink):
    """Standard output, which is waited for: nobody else needs this process. Counts what it is given."""

    def __init__(self, judging: Judging) -> None:
        settings = judging.settings
        super().__init__(judging.form, open_stream(), settings.log_connections, settings.log_anonymize)
        self.given = self.blocks = 0
        self._observes = settings.mode == "observe"
        self.would_drop: Callable[[bytes, bytes, int], None] = lambda source, destination, ns: None

    def consume(self, batch: Batch, now_ns: int) -> Outcome:
        self.given += len(batch.connections)
        self.blocks += sum(notice.count or 1 for notice in batch.notices if notice.event_type == "block")
        for ns, source, destination, _, _, _, flags in batch.connections if self._observes else ():
            if flags & event.WOULD_DROP:
                self.would_drop(source, destination, ns)
        outcome = super().consume(batch, now_ns)
        self.wait()
        return outcome

    def wait(self) -> None:
        """Until all is written. Raises OSError where it cannot be."""
        while self.pending and not self.refused:
            poll = select.poll()
            poll.register(self.writer.fileno(), select.POLLOUT)
            poll.poll(_SLOW_MS)
            self.writer.flush()
        if self.refused:
            cause = self.writer.cause
            raise OSError(cause.errno, cause.strerror, "standard output")


class Replay:
    """One kernel half, and what it has judged. To be closed, or left to the end of the process."""

    def __init__(self, judging: Judging) -> None:
        """Raises Refused."""
        missing = privileges.missing()
        if missing:
            raise Refused(f"not permitted: {', '.join(missing)} missing", "run as root (sudo)", NOT_PERMITTED)
        self._judging = judging
        self._hosts = int(not judging.local)
        self._output = Output(judging)
        self._output.would_drop = self._count_drop
        self._now_ns = self._latest_ns = self._scans = 0
        self._drops: dict[tuple[bytes, bytes], list[int]] = {}  # -> [count, first, last]
        self._account = Replayed("")
        self._kernel = self._load()
        names = thresholds.names(judging.settings)
        self._ledger = Ledger(lambda number: self._kernel.counters(number))
        self._drain = Drain(
            self._kernel,
            self._ledger,
            self._on_alert,
            lambda number: thresholds.name_rule(names, number),
            lambda: self._now_ns,
            lambda: 0,
        )
        self._drain.sinks = [self._output]

    def close(self) -> None:
        self._kernel.close()

    def file(self, path: str, is_log: bool) -> Replayed:
        """Judges a file, or standard input for -; is_log: of recorded connections. Faults of it are in the account.

        Raises Refused, and OSError for the output.
        """
        account = self._account = Replayed("standard input" if path == capture.STDIN else path)
        name = "stdin" if path == capture.STDIN else os.path.basename(path)
        self._ledger.names = {number: name for number in (0, 1)}
        before = self._marks()
        self._base = self._counters()
        try:
            self._feed(self._lines(path) if is_log else self._frames(path))
        except capture.CaptureError as fault:
            account.fault = _told(fault)
        self._drain_all()
        self._drain.end_moments()
        self._tell_drops()
        account.records, account.scans_told, account.blocks = (
            after - mark for after, mark in zip(self._marks(), before)
        )
        account.counters = _minus(self._counters(), self._base)
        self._latest_ns = max(self._latest_ns, account.end_ns)
        return account

    def finish(self) -> None:
        """Writes the sums that are due (log.connections = summary)."""
        self._now_ns = _NEVER_NS
        self._drain.flush()
        self._output.wait()

    # the kernel half

    def _load(self) -> Kernel:
        settings = self._judging.settings
        parameters = program.Parameters(
            settings.table_trackers, settings.table_blocks, _RING_BYTES, settings.loader_headers, replay=True
        )
        try:
            loaded = loader.load(parameters)
        except loader.LoadError as fault:
            raise Refused(str(fault), fault.hint) from None
        kernel = Kernel(loaded.prog, loaded.maps, parameters)
        thresholds.put_ports(kernel, settings)
        kernel.apply(self._kernel_settings())
        for number, ifindex in enumerate((_WIRE, _LOOPBACK)):
            kernel.put_attachment(Attachment(number, ifindex, bytes(6), ifindex == _LOOPBACK, False))
        known = lists.Lists(kernel, settings)
        known.host = lists.Host(own=frozenset(self._judging.local))
        known.apply()
        if self._hosts:
            kernel.local.add(_EVERYWHERE)
        kernel.lists_changed()
        self._listed = kernel.sources.read()
        self._syns_dropped = 0  # by this kernel half
        self._run = libbpf.test_runner(kernel.prog)
        return kernel

    def _kernel_settings(self) -> KernelSettings:
        """As the resident has them, but that nothing is summed, nobody is woken, and hosts have no storm in common.

        Nobody can be challenged after the event: every source is taken for the owner of its address.
        """
        own = thresholds.of(self._judging.settings)
        storm = 0 if self._hosts else own.storm
        if self._hosts:  # which know a source by a hash, that is in no network
            own = own._replace(network_bits=BITS, network_mask=thresholds.network_mask(BITS))
        return own._replace(seed=_SEED, lists_generation=1, wakeup_mask=(1 << 64) - 1, storm=storm, proof=0)

    def _begin_anew(self) -> None:
        """A kernel half that remembers nothing."""
        self._kernel.close()
        self._kernel = self._drain.kernel = self._load()
        self._base = self._counters()
        self._latest_ns = 0

    def _counters(self) -> Counters:
        return self._kernel.counters(0).plus(self._kernel.counters(1))

    def _on_alert(self, alert: Alert) -> None:
        self._scans += bool(alert.flags & event.SCAN)

    def _marks(self) -> tuple[int, int, int]:
        return self._output.given, self._scans, self._output.blocks

    # frames in

    def _frames(self, path: str) -> Iterator[Fed]:
        """Frames that can matter, in groups; held back until the answers to them are read."""
        ahead = sieve.Lookahead()
        opened = _opened(path)
        try:
            yield from self._sifted(opened.frames(), ahead)
        except capture.CaptureError as fault:
            self._account.fault = _told(fault)
        finally:
            self._account.frames = opened.read
            opened.close()
        yield ahead.rest()

    def _sifted(self, frames: Iterator[capture.Frame], ahead: sieve.Lookahead) -> Iterator[Fed]:
        account, look = self._account, sieve.look
        for ns, size, data in frames:
            what, port = look(data)
            if ns > account.end_ns > 0:
                account.end_ns = ns
            else:
                self._at(ns)
            if what is sieve.SYN or what is sieve.UNSURE or what is sieve.PROBE:
                if size != len(data) or size > _LONGEST:
                    data = _whole(what, size, data)
                    if len(data) > _LONGEST:
                        account.too_long += 1
                        continue
                ready = ahead.add((ns, data), port)
                if ready:
                    yield ready
                continue
            account.set_aside += 1
            if what is not sieve.NOTHING:
                ahead.answer(what, port)

    def _lines(self, path: str) -> Iterator[Fed]:
        """The same of the lines of a log."""
        account = self._account
        with _opened_log(path) as file:
            for line in _lines_of(file):
                account.frames += 1
                try:
                    syn = recorded.read(line)
                except ValueError as fault:
                    account.skipped[str(fault)[:_REASON]] += 1
                    syn = None
                if syn is None:
                    account.set_aside += 1
                    continue
                self._at(syn.ns)
                yield (((syn.ns, syn.data), syn.port_state),)
        if account.skipped and not account.handed:
            account.fault = f"{account.name}: no line of it tells of a connection"

    def _at(self, ns: int) -> None:
        """The clock of the file, which may go on from the file before it, or be of another time."""
        account = self._account
        if not account.begin_ns:
            if ns < self._latest_ns - _TOLERANCE_NS:
                self._begin_anew()
            account.begin_ns = account.end_ns = ns
        elif ns >= account.end_ns:
            account.end_ns = ns
        else:
            account.backwards += 1
            account.begin_ns = min(account.begin_ns, ns)

    def _feed(self, groups: Iterable[Fed]) -> None:
        left = _BETWEEN_DRAINS
        pack, hosts, is_loopback = program.REPLAY_HEADER.pack, self._hosts, capture.is_loopback
        for group in groups:
            for (ns, data), state in group:
                header = pack(ns, _LOOPBACK if is_loopback(data) else _WIRE, state, hosts)
                if self._run(header + data) == _XDP_DROP:
                    self._account.dropped += 1
                    if self._was_syn(data):
                        source, destination = sieve.ends(data)
                        self._count_drop(_sixteen(source), _sixteen(destination), ns)
                self._account.handed += 1
                left -= 1
                if not left:
                    self._now_ns, left = ns, _BETWEEN_DRAINS
                    self._drain_all()

    # records out

    def _drain_all(self) -> None:
        while self._drain.run():
            pass

    def _was_syn(self, data: bytes) -> bool:
        """Of a frame that was dropped: else it was a probe."""
        what = sieve.look(data)[0]
        if what is sieve.PROBE or (what is sieve.UNSURE and sum(self._counters().dropped) == self._syns_dropped):
            return False
        self._syns_dropped += 1
        return True

    def _count_drop(self, source: bytes, destination: bytes, ns: int) -> None:
        key = source, destination if self._hosts else b""
        counted = self._drops.setdefault(key, [0, ns, ns])
        counted[0] += 1
        counted[2] = ns
        if len(self._drops) >= _DROPS_MOST:
            self._tell_drops()

    def _tell_drops(self) -> None:
        """Of sources that scanned; those of the block list are never told one by one."""
        drops, self._drops = self._drops, {}
        mode = "observe" if self._judging.settings.mode == "observe" else None
        for (source, destination), (count, first, last) in drops.items():
            if self._judging.settings.block and rules.lookup(self._listed, source).flags & rules.BLOCK:
                continue
            at = address.text(destination) if destination else None
            name = self._ledger.names[0]
            self._drain.say(
                Notice(last, "drop", name, address.text(source), at, count=count, since_ns=first, mode=mode)
            )
        self._drain.run()


def run(judging: Judging, paths: Iterable[str], is_log: bool) -> list[Replayed]:
    """Judges the files in their order, records to standard output; an account of each. Raises Refused, OSError."""
    if not is_log:
        try:
            capture.check()
        except capture.CaptureError as fault:
            raise Refused(str(fault), fault.hint) from None
    replay = Replay(judging)
    _give_up_rights()
    accounts = [replay.file(path, is_log) for path in paths]
    replay.finish()
    replay.close()
    return accounts


def _give_up_rights() -> None:
    """Before anything of the files is read. Raises Refused."""
    try:
        libbpf.raise_memlock()  # for a load that may follow
        privileges.keep(privileges.READING)
    except OSError as fault:
        raise Refused(f"capabilities could not be given up: {fault.strerror}", "report it with this line") from None


def _minus(one: Counters, other: Counters) -> Counters:
    return Counters.of(tuple(a - b for a, b in zip(one.words(), other.words())))


def _sixteen(packed: bytes) -> bytes:
    return address.MAPPED + packed if len(packed) == address.SIZE - len(address.MAPPED) else packed


def _whole(what: int, size: int, data: bytes) -> bytes:
    """A SYN that was captured in part has its length again: what was cut off is not looked at."""
    if what is sieve.UNSURE:
        return data[:_LONGEST]
    return data + bytes(max(0, min(size, _LONGEST + 1) - len(data)))


def _told(fault: capture.CaptureError) -> str:
    return f"{fault} ({fault.hint})" if fault.hint else str(fault)


def _opened(path: str) -> capture.Capture:
    try:
        return capture.Capture(path)
    except OSError as fault:
        raise _unreadable(path, fault) from None


def _opened_log(path: str) -> BinaryIO:
    try:
        return os.fdopen(os.dup(0), "rb") if path == capture.STDIN else open(path, "rb")
    except OSError as fault:
        raise _unreadable(path, fault) from None


def _unreadable(path: str, fault: OSError) -> capture.CaptureError:
    return capture.CaptureError(f"{path}: cannot be read: {fault.strerror}", "check the path")


def _lines_of(file: BinaryIO) -> Iterator[bytes]:
    """Of a line that is too long its beginning, one byte longer than what is taken."""
    most = recorded.MOST_BYTES + 1
    while True:
        line = file.readline(most)
        if not line:
            return
        yield line
        while len(line) == most and not line.endswith(b"\n"):
            line = file.readline(most)
