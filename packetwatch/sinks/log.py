# SPDX-License-Identifier: Apache-2.0
"""The log sink: every batch to one place in one form, with a balance of what became of each record.

Not for the decision what to do about a refused write: the caller reads the outcome and tells the loss.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from packetwatch.event import Batch, Notice

from .fold import Fold
from .journal import JournalForm
from .jsonlines import JsonForm
from .records import SECOND, Form, Record
from .text import TextForm
from .writer import Refused, Tally, connections_in

FORMS: dict[str, type[Form]] = {"text": TextForm, "json": JsonForm, "journal": JournalForm}
DETAILS = ("each", "summary", "off")


class Writer(Protocol):
    """Where lines or datagrams go: LineWriter, FileWriter, JournalWriter."""

    name: str
    tally: Tally
    cause: OSError

    @property
    def pending(self) -> Sequence[Record]: ...

    def write(self, lines: list[Any], records: list[Record]) -> None: ...

    def flush(self) -> bool: ...

    def close(self) -> None: ...

    def fileno(self) -> int: ...


class Outcome(NamedTuple):
    """What one call did, to records of this batch and of earlier ones that waited."""

    where: str  #: the sink: stdout, journal, file
    written_connections: int
    refused_connections: int
    written: int  #: records of any kind, connections included
    refused: int
    error: str  #: the last failure by name, empty where nothing was refused


class Balance(NamedTuple):
    """handed = written + refused + set_aside + pending, at any time."""

    handed: int
    written: int
    refused: int
    set_aside: int  #: not written as records of their own: counted into summaries, or log.connections = off
    pending: int  #: waiting for a slow reader


class LogSink:
    """One form and one writer. ``consume`` neither blocks nor raises for I/O.

    ``connections`` and ``anonymize`` are log.connections and log.anonymize; configure() changes them.
    """

    def __init__(
        self,
        form: str,
        writer: Writer,
        connections: str = "each",
        anonymize: bool = False,
        summary_ns: int = SECOND,
    ) -> None:
        self.writer = writer
        self.name = writer.name
        self._form = FORMS[form](anonymize)
        self._fold = Fold(summary_ns)
        self._clock_ns = 0
        self._handed_connections = self._handed_others = 0
        self._folded = self._omitted_connections = self._omitted_others = 0
        self.configure(connections, anonymize)

    def configure(self, connections: str, anonymize: bool) -> None:
        """Takes over log.connections and log.anonymize, at start and on reload."""
        if connections not in DETAILS:
            raise ValueError(f"log.connections is each, summary or off, not {connections!r}")
        self.connections = connections
        if anonymize != self._form.anonymize:
            self._form = type(self._form)(anonymize)

    def consume(self, batch: Batch, now_ns: int) -> Outcome:
        """Takes a batch once; ``now_ns`` is CLOCK_BOOTTIME."""
        before = self._marks()
        self._clock_ns = batch.clock_ns
        self._handed_connections += len(batch.connections)
        self._handed_others += len(batch.notices)
        if self.connections != "each":
            batch = self._reduced(batch, now_ns)
        for lines, records in self._form.chunks(batch):
            self.writer.write(lines, records)
        return self._finish(before, now_ns)

    def flush(self, now_ns: int) -> Outcome:
        """Tries again what waits and writes the summaries that are due: to be called about once a second."""
        return self._finish(self._marks(), now_ns)

    def close(self, now_ns: int) -> Outcome:
        """Writes the summaries of the interval begun, refuses what cannot be written now, and lets go."""
        before = self._marks()
        self._write_summaries()
        self.writer.close()
        return self._outcome(before)

    def has_waiting(self) -> bool:
        """Whether flush() may have anything to do, now or later."""
        return bool(self.pending or len(self._fold))

    def waits_on(self) -> int:
        """The descriptor to poll for writing, then to call flush(); -1 where nothing waits that polling could help."""
        slow = self.pending and self.writer.cause.errno == errno.EAGAIN
        return self.writer.fileno() if slow else -1

    @property
    def pending(self) -> int:
        return len(self.writer.pending)

    @property
    def written(self) -> int:
        return self.writer.tally.written

    @property
    def refused(self) -> int:
        return self.writer.tally.refused

    @property
    def refused_connections(self) -> int:
        return self.writer.tally.refused_connections

    @property
    def refused_folded(self) -> int:
        """Connections that refused summaries told of: lost as well, though no record of theirs was."""
        return self.writer.tally.refused_folded

    @property
    def refused_by(self) -> Mapping[tuple[int, int], int]:
        """The refused connections by (attachment, event.IPV6 or 0)."""
        return self.writer.tally.refused_by

    def take_refused(self) -> Refused:
        """What was refused since the last call."""
        return self.writer.tally.take()

    @property
    def bytes_written(self) -> int:
        return self.writer.tally.bytes_written

    @property
    def last_error(self) -> str:
        return self.writer.tally.last_error

    def balance(self) -> tuple[Balance, Balance]:
        """Of the connections, and of the other records; the summaries made here count as handed."""
        tally, waiting = self.writer.tally, connections_in(self.writer.pending)
        singles = Balance(
            self._handed_connections,
            tally.written_connections,
            tally.refused_connections,
            self._folded + self._omitted_connections,
            waiting,
        )
        others = Balance(
            self._handed_others,
            tally.written - tally.written_connections,
            tally.refused - tally.refused_connections,
            self._omitted_others,
            self.pending - waiting,
        )
        return singles, others

    def _reduced(self, batch: Batch, now_ns: int) -> Batch:
        if self.connections == "summary":
            self._fold.add(batch.connections, batch.interfaces, now_ns)
            self._folded += len(batch.connections)
            return batch._replace(connections=())
        kept = [notice for notice in batch.notices if notice.event_type != "summary"]
        self._omitted_connections += len(batch.connections)
        self._omitted_others += len(batch.notices) - len(kept)
        return batch._replace(connections=(), notices=kept)

    def _finish(self, before: tuple[int, ...], now_ns: int) -> Outcome:
        if self._fold.due(now_ns):
            self._write_summaries()
        self.writer.flush()
        return self._outcome(before)

    def _write_summaries(self) -> None:
        notices: list[Notice] = self._fold.take() if len(self._fold) else []
        self._handed_others += len(notices)
        for lines, records in self._form.chunks(Batch((), notices, self._clock_ns, {})):
            self.writer.write(lines, records)

    def _marks(self) -> tuple[int, ...]:
        tally = self.writer.tally
        return tally.written_connections, tally.refused_connections, tally.written, tally.refused

    def _outcome(self, before: tuple[int, ...]) -> Outcome:
        singles, lost_singles, written, refused = (after - mark for after, mark in zip(self._marks(), before))
        return Outcome(self.name, singles, lost_singles, written, refused, self.last_error if refused else "")


def choose_form(setting: str, environ: Mapping[str, str], descriptor: int = 1) -> str:
    """log.format with `auto` resolved: text on a terminal, journal where systemd connected us to it, else json."""
    if setting != "auto":
        return setting
    if os.isatty(descriptor):
        return "text"
    return "journal" if _is_journal(environ.get("JOURNAL_STREAM", ""), descriptor) else "json"


def _is_journal(stream: str, descriptor: int) -> bool:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
