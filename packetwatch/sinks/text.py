# SPDX-License-Identifier: Apache-2.0
"""Records as sentences for people, in local time: the text log, and MESSAGE in the journal. Not for parsing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Optional

from packetwatch.event import WOULD_DROP, Batch, Connection, Notice

from .records import KINDS, LATEST, SECOND, Form, clean, message, written

NEW = KINDS["connection"].text.partition("{")[0]
WOULD = KINDS["connection"].would.partition("{")[0]
LEVELS = {"source_port": "source and port"}  #: the others read as they are
PLACES = {
    "ring": " in the ring of connections",
    "alerts": " in the ring of alerts",
    "stdout": " on standard output",
    "journal": " on the way to the journal",
    "file": " on the way to log.file",
}
UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


class TextForm(Form):
    """``2026-11-24 15:28:05: New connection: 192.0.2.56:5973 -> 10.0.0.5:80``, a line each."""

    @staticmethod
    def address(packed: bytes) -> str:
        return host(written(packed))

    def connections(self, connections: Sequence[Connection], batch: Batch) -> list[str]:
        sources, destinations, ports = self.sources, self.destinations, self.ports
        clock_ns, number = batch.clock_ns, int.from_bytes
        start = end = 0
        when, lines = "", []
        for boot_ns, saddr, daddr, sport, dport, _, flags in connections:
            ns = boot_ns + clock_ns
            if not start <= ns < end:
                start = ns - ns % SECOND
                end, when = start + SECOND, local(ns)
            lines.append(
                f'{when}: {WOULD if flags & WOULD_DROP else NEW}{sources[saddr]}:{number(sport, "big")}'
                f" -> {destinations[daddr]}:{ports[dport]}\n"
            )
        return lines

    def notice(self, notice: Notice, clock_ns: int) -> str:
        return f"{local(notice.boot_ns + clock_ns)}: {sentence(notice, clock_ns)}\n"


def sentence(notice: Notice, clock_ns: int) -> str:
    """What a notice tells, without its time; safe to print."""
    kind = KINDS[notice.event_type]
    template = kind.would if notice.mode == "observe" else kind.text
    return clean(template.format_map(words(notice, clock_ns)))


def words(n: Notice, clock_ns: int) -> dict[str, str]:
    """The phrases of the templates; the optional ones bring their own space and may be empty."""
    usual = n.event_type == "drop" and n.reason == "blocked"
    return {
        "plain": n.source or several(n) or "unknown",
        "named": f": {', '.join(n.sources)}" if n.sources else "",
        "destination": n.destination or "unknown",
        "source": f" from {n.source or several(n)}" if n.source or n.sources else "",
        "target": target(n.destination, n.dest_port),
        "ports": ",".join(map(str, n.ports or ())),
        "duration": duration(n.boot_ns, n.until_ns),
        "why": f" ({n.reason})" if n.reason and not usual else "",
        "connections": counted(n.count, "connection"),
        "records": counted(n.count, "record"),
        "sources": counted(n.count, "source"),
        "flags": "" if n.tcp_flags is None else f" with {n.tcp_flags or 'no flags'}",
        "level": LEVELS.get(n.level or "", n.level or "interface"),
        "where": PLACES.get(n.where or "", f" at {n.where}" if n.where else ""),
        "since": "" if n.since_ns is None else f" since {local(n.since_ns + clock_ns)}",
        "on": f" on {n.in_iface}" if n.in_iface else "",
        "in_mode": f" in {n.mode} mode" if n.mode else "",
        "detail": f": {message(n)}" if message(n) else "",
        "zone": time.strftime("%Z (UTC%z)", wall(n.boot_ns + clock_ns)),
    }


def several(n: Notice) -> str:
    """How many sources a notice tells of, where it is not one; of a scan all but one may be forged."""
    guess = " (decoys?)" if n.event_type == "scan" else ""
    return counted(len(n.sources), "source") + guess if n.sources else ""


def target(destination: Optional[str], port: Optional[int]) -> str:
    if destination is None:
        return "" if port is None else f" to port {port}"
    return f" to {destination}" if port is None else f" to {host(destination)}:{port}"


def host(name: str) -> str:
    """An address as it stands before a port."""
    return f"[{name}]" if ":" in name else name


def counted(count: Optional[int], noun: str) -> str:
    if count is None:
        return f"{noun}s"
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(start_ns: int, until_ns: Optional[int]) -> str:
    """``for 1h``, ``for 1h 30m`` or ``forever``, to the second."""
    if not until_ns:
        return "forever"
    left, parts = max(0, round((until_ns - start_ns) / SECOND)), []
    for unit, size in UNITS:
        whole, left = divmod(left, size)
        if whole:
            parts.append(f"{whole}{unit}")
    return "for " + (" ".join(parts) or "0s")


def local(ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", wall(ns))


def wall(ns: int) -> time.struct_time:
    return time.localtime(min(ns, LATEST - 86400 * SECOND) // SECOND)
