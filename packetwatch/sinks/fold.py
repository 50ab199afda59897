# SPDX-License-Identifier: Apache-2.0
"""Connections counted into summaries, for log.connections = summary. Pure: bounded memory, `now` is an argument.

Not for floods: those are folded in the kernel before they reach user space.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence

from packetwatch import address
from packetwatch.event import Connection, Notice

from .records import SECOND, UNKNOWN

ROWS = 32  #: summaries by source and port of one interval
KEYS = 4096  #: pairs counted at a time; what finds no place is counted by interface

Key = tuple[int, bytes, bytes]  # attachment, source, destination port


class Fold:
    """Counts of one interval: the largest by source and port, the remainder by interface."""

    def __init__(self, interval_ns: int = SECOND, rows: int = ROWS, keys: int = KEYS) -> None:
        self.interval_ns, self.rows, self.keys = interval_ns, rows, keys
        self._clear()

    def _clear(self) -> None:
        self._counts: dict[Key, int] = {}
        self._rest: Counter[int] = Counter()
        self._names: dict[int, str] = {}
        self._first_ns = self._last_ns = self._opened_ns = 0

    def __len__(self) -> int:
        """Connections waiting to be told."""
        return sum(self._counts.values()) + sum(self._rest.values())

    def add(self, connections: Sequence[Connection], interfaces: Mapping[int, str], now_ns: int) -> None:
        """``now_ns`` is CLOCK_BOOTTIME, as the times of the connections."""
        if not connections:
            return
        if not self._counts:
            self._opened_ns, self._first_ns = now_ns, connections[0][0]
        self._last_ns = connections[-1][0]
        self._names.update(interfaces)
        counts, rest, keys = self._counts, self._rest, self.keys
        for _, saddr, _, _, dport, attachment, _ in connections:
            key = attachment, saddr, dport
            if key in counts:
                counts[key] += 1
            elif len(counts) < keys:
                counts[key] = 1
            else:
                rest[attachment] += 1

    def due(self, now_ns: int) -> bool:
        return bool(self._counts) and now_ns - self._opened_ns >= self.interval_ns

    def take(self) -> list[Notice]:
        """The summaries of what was added, the largest first; empties the counts."""
        largest = heapq.nlargest(self.rows, self._counts.items(), key=lambda item: (item[1], item[0]))
        for key, _ in largest:
            del self._counts[key]
        for (attachment, _, _), count in self._counts.items():
            self._rest[attachment] += count
        notices = [self._by_source(key, count) for key, count in largest]
        notices += [self._summary("interface", number, count) for number, count in sorted(self._rest.items())]
        self._clear()
        return notices

    def _by_source(self, key: Key, count: int) -> Notice:
        attachment, saddr, dport = key
        notice = self._summary("source_port", attachment, count)
        return notice._replace(source=address.text(saddr), dest_port=int.from_bytes(dport, "big"))

    def _summary(self, level: str, attachment: int, count: int) -> Notice:
        name = self._names.get(attachment, UNKNOWN)
        return Notice(
            self._last_ns, "summary", in_iface=name, count=count, since_ns=self._first_ns, level=level
        )
