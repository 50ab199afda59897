# SPDX-License-Identifier: Apache-2.0
"""The data's way through user space: rings -> one batch -> every sink once. Per batch, never per packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Optional, Protocol

from packetwatch import address, clock, event
from packetwatch.event import Batch, Notice, Scan
from packetwatch.kernel import Kernel
from packetwatch.sinks.jsonlines import JsonForm
from packetwatch.sinks.ledger import Ledger
from packetwatch.sinks.log import LogSink

_BATCH = 8192
_ROUNDS = 16  # batches before the loop looks at anything else


class Audience(Protocol):
    """Those who follow the records through the control socket."""

    @property
    def tails(self) -> int: ...

    def publish(self, lines: bytes) -> None: ...


class Drain:
    """Empties a kernel half's rings into the sinks; `say` puts a notice into the next batch."""

    def __init__(
        self,
        kernel: Kernel,
        ledger: Ledger,
        on_scan: Callable[[Scan], None],
        now_ns: Callable[[], int] = clock.boot_ns,
        wall_offset_ns: Callable[[], int] = clock.wall_offset_ns,
    ) -> None:
        self.kernel = kernel
        self._now_ns, self._wall_offset_ns = now_ns, wall_offset_ns
        self.sinks: list[LogSink] = []
        self.audience: Optional[Audience] = None
        self._ledger = ledger
        self._on_scan = on_scan
        self._waiting: list[Notice] = []
        self.tail_form = JsonForm()
        self.refused: Counter[str] = Counter()  #: records by sink; losses aside
        self.untold: Counter[str] = Counter()  #: of losses whose records were refused, by where

    def say(self, notice: Notice) -> None:
        self._waiting.append(notice)

    def run(self) -> int:
        """Takes what is there, up to a bound; returns the number of connections."""
        total = 0
        if not (self._waiting or self.kernel.connections.backlog() or self.kernel.alerts.backlog()):
            return total  # an idle host comes by three times a second
        for _ in range(_ROUNDS):
            taken = self._batch()
            total += taken
            if taken < _BATCH:
                break
        return total

    def run_on(self, other: Kernel) -> None:
        """Empties another kernel half's rings, which nobody fills any more."""
        kept, self.kernel = self.kernel, other
        try:
            while self.run():
                pass
        finally:
            self.kernel = kept

    def _batch(self) -> int:
        """The records are given back to the ring only after the sinks have had them."""
        alerts = self.kernel.alerts.peek(_BATCH)  # first: the connection of each scan is then in its ring, too
        for scan in event.scans(alerts):
            self._waiting += self._tell(scan)
            self._on_scan(scan)
        frames = self.kernel.connections.peek(_BATCH)
        connections = list(event.connections(frames))
        if connections or self._waiting:
            notices, self._waiting = sorted(self._waiting, key=lambda n: n.boot_ns), []
            self._consume(connections, notices)
        self.kernel.connections.advance(frames)
        self.kernel.alerts.advance(alerts)
        return len(connections)

    def _consume(self, connections: Sequence[event.Connection], notices: Sequence[Notice]) -> None:
        batch = Batch(connections, notices, self._wall_offset_ns(), dict(self._ledger.names))
        for sink in self.sinks:
            sink.consume(batch, self._now_ns())
        if self.audience is not None and self.audience.tails:
            self.audience.publish(self.tail_form.encode(batch))
        self.count_refused()

    def flush(self) -> None:
        """Once a second: what waits for slow readers, and summaries that are due."""
        for sink in self.sinks:
            sink.flush(self._now_ns())
        self.count_refused()

    def count_refused(self) -> None:
        """Connections that the log, the first sink, did not take are lost. With two sinks one tells of the other."""
        for sink in self.sinks:
            fresh = sink.take_refused()
            self.refused[sink.name] += fresh.records
            if len(self.sinks) == 1:
                self.untold.update(fresh.losses)
            for (attachment, ipv6), count in fresh.connections.items() if sink is self.sinks[0] else ():
                self._ledger.refuse(attachment, sink.name, int(bool(ipv6)), count)

    def close(self) -> int:
        """Lets the sinks go; how many records they could not write to the end."""
        before = sum(self.refused.values())
        for sink in self.sinks:
            sink.close(self._now_ns())
        self.count_refused()
        return sum(self.refused.values()) - before

    def _tell(self, scan: Scan) -> list[Notice]:
        name = self._ledger.names.get(scan.attachment)
        source, mode = address.text(scan.saddr), "observe" if scan.flags & event.WOULD_DROP else None
        told = Notice(
            scan.boot_ns,
            "scan",
            name,
            source,
            address.text(scan.daddr),
            ports=scan.ports,
            count=len(scan.ports),
            mode=mode,
        )
        if scan.block != event.BLOCKED:
            return [told]
        block = Notice(scan.boot_ns, "block", name, source, until_ns=scan.until_ns, reason="port scan", mode=mode)
        return [told, block]
