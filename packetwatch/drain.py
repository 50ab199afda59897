# SPDX-License-Identifier: Apache-2.0
"""The data's way through user space: rings -> one batch -> every sink once. Per batch, never per packet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Optional, Protocol

from packetwatch import address, clock, event
from packetwatch.decoys import Decoys
from packetwatch.event import Alert, Batch, Notice, Probe
from packetwatch.history import History
from packetwatch.kernel import Kernel
from packetwatch.sinks.jsonlines import JsonForm
from packetwatch.sinks.ledger import Ledger
from packetwatch.sinks.log import LogSink
from packetwatch.sinks.records import port_state

_BATCH = 8192
_UNBLOCKED = {event.REFUSED: "the block table is full", event.FROZEN: "too many blocks in this minute"}
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
        on_alert: Callable[[Alert], None],
        name_rule: Callable[[int], str],
        now_ns: Callable[[], int] = clock.boot_ns,
        wall_offset_ns: Callable[[], int] = clock.wall_offset_ns,
    ) -> None:
        """name_rule: the number of a rule -> what a record calls it."""
        self.kernel = kernel
        self._now_ns, self._wall_offset_ns = now_ns, wall_offset_ns
        self.sinks: list[LogSink] = []
        self.audience: Optional[Audience] = None
        self._ledger = ledger
        self._on_alert, self._name_rule = on_alert, name_rule
        self._waiting: list[Notice] = []
        self.tail_form = JsonForm()
        self.history = History()
        self._decoys = Decoys()
        self.refused: Counter[str] = Counter()  #: records by sink; losses aside
        self.untold: Counter[str] = Counter()  #: of losses whose records were refused, by where

    def say(self, notice: Notice) -> None:
        self._waiting.append(notice)

    def run(self) -> int:
        """Takes what is there, up to a bound; returns the number of connections."""
        total = 0
        if not (self.has_waiting() or self.has_backlog()):
            return total  # an idle host comes by every other second
        for _ in range(_ROUNDS):
            taken = self._batch()
            total += taken
            if taken < _BATCH:
                break
        return total

    def has_backlog(self) -> bool:
        return any(ring.backlog() for ring in self.kernel.rings)

    def has_waiting(self) -> bool:
        return bool(self._waiting) or self._decoys.is_due(self._now_ns())

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
        for alert in event.alerts(alerts):
            self._waiting += self._tell(alert)
            self._on_alert(alert)
        probes = self.kernel.probes.peek(_BATCH)
        self._waiting += map(self._tell_probe, event.probes(probes))
        frames = self.kernel.connections.peek(_BATCH)
        connections = list(event.connections(frames))
        if connections or self.has_waiting():
            notices, self._waiting = sorted(self._waiting, key=lambda n: n.boot_ns), []
            self.history.take(notices)
            self._consume(connections, self._decoys.take(notices, self._now_ns()))
        self.kernel.connections.advance(frames)
        self.kernel.probes.advance(probes)
        self.kernel.alerts.advance(alerts)
        return len(connections)

    def _consume(self, connections: Sequence[event.Connection], notices: Sequence[Notice]) -> None:
        batch = Batch(connections, notices, self._wall_offset_ns(), dict(self._ledger.names))
        for sink in self.sinks:
            sink.consume(batch, self._now_ns())
        if self.audience is not None and self.audience.tails:
            self.audience.publish(self.tail_form.encode(batch))
        self.count_refused()

    def end_moments(self) -> None:
        """Writes the scans and blocks that wait for others like them."""
        notices = self._decoys.close()
        if notices:
            self._consume((), notices)

    def flush(self) -> None:
        """Once a second: what waits for slow readers, and summaries that are due."""
        waiting = [sink for sink in self.sinks if sink.has_waiting()]
        for sink in waiting:
            sink.flush(self._now_ns())
        if waiting:
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

    def _tell(self, alert: Alert) -> Iterator[Notice]:
        """The scan, and the block."""
        name = self._ledger.names.get(alert.attachment)
        source, mode = address.text(alert.saddr), "observe" if alert.flags & event.WOULD_DROP else None
        is_scan = alert.flags & event.SCAN
        if is_scan:
            yield Notice(
                alert.boot_ns,
                "scan",
                name,
                source,
                address.text(alert.daddr),
                ports=alert.ports,
                closed_ports=alert.closed,
                reason=_UNBLOCKED.get(alert.block),
                mode=mode,
            )
        if alert.block == event.BLOCKED:
            yield Notice(
                alert.boot_ns,
                "block",
                name,
                address.prefix_text(alert.blocked),
                ports=None if is_scan else alert.ports,
                until_ns=alert.until_ns,
                reason=_reason(alert),
                rule=self._name_rule(alert.rule) or None,
                evidence=event.EVIDENCE[alert.evidence],
                mode=mode,
            )

    def _tell_probe(self, probe: Probe) -> Notice:
        return Notice(
            probe.boot_ns,
            "probe",
            self._ledger.names.get(probe.attachment),
            address.text(probe.saddr),
            address.text(probe.daddr),
            int.from_bytes(probe.dport, "big"),
            src_port=int.from_bytes(probe.sport, "big"),
            tcp_flags=event.flag_names(probe.tcp_flags),
            port_state=port_state(probe.flags),
            allowed=bool(probe.flags & event.ALLOWED) or None,
            mode="observe" if probe.flags & event.WOULD_DROP else None,
        )


def _reason(alert: Alert) -> str:
    if alert.rule == event.HONEYPOT:
        return "honeypot"
    return "port scan" if alert.flags & event.SCAN else "slow scan"
