# SPDX-License-Identifier: Apache-2.0
"""Records as JSON, one object a line, named as in Suricata's EVE: the log, log.file and `packetwatch tail`.

The loop over connections is what a flood costs in user space; it is written for speed, the rest is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from packetwatch.event import ALLOWED, CLOSED, OPEN, WOULD_DROP, Batch, Connection, Notice

from .records import SECOND, UNKNOWN, Form, fields, port_state, quoted, rfc3339


class _Heads(dict[int, str]):
    """What stands between time and source, by attachment."""

    def __missing__(self, attachment: int) -> str:
        value = self[attachment] = _head(UNKNOWN)
        return value


def _head(interface: str) -> str:
    return f'Z","event_type":"connection","in_iface":{quoted(interface)},"src_ip":"'


def _tail(flags: int) -> str:
    allowed = ',"allowed":true' if flags & ALLOWED else ""
    mode = ',"mode":"observe"' if flags & WOULD_DROP else ""
    state = f',"port_state":"{port_state(flags)}"' if flags & (OPEN | CLOSED) else ""
    return f',"proto":"TCP"{state}{allowed}{mode}}}\n'


TAILS = tuple(map(_tail, range(256)))


class JsonForm(Form):
    """Timestamps in UTC with microseconds."""

    def __init__(self, anonymize: bool = False) -> None:
        super().__init__(anonymize)
        self._interfaces: dict[int, str] = {}
        self._heads = _Heads()

    def connections(self, connections: Sequence[Connection], batch: Batch) -> list[str]:
        sources, destinations, ports, tails = self.sources, self.destinations, self.ports, TAILS
        heads, clock_ns, number = self._named(batch), batch.clock_ns, int.from_bytes
        start = end = 0
        when = ""
        lines: list[str] = []
        append = lines.append
        for boot_ns, saddr, daddr, sport, dport, attachment, flags in connections:
            ns = boot_ns + clock_ns
            if not start <= ns < end:
                start = ns - ns % SECOND
                end, when = start + SECOND, rfc3339(start)[:20]
            append(
                f'{{"timestamp":"{when}{"%06d" % ((ns - start) // 1000)}{heads[attachment]}{sources[saddr]}'
                f'","src_port":{number(sport, "big")},"dest_ip":"{destinations[daddr]}'
                f'","dest_port":{ports[dport]}{tails[flags]}'
            )
        return lines

    def notice(self, notice: Notice, clock_ns: int) -> str:
        return quoted(fields(notice, clock_ns)) + "\n"

    def encode(self, batch: Batch) -> bytes:
        """The whole batch as lines."""
        return "".join("".join(lines) for lines, _ in self.chunks(batch)).encode()

    def _named(self, batch: Batch) -> _Heads:
        if batch.interfaces != self._interfaces:
            self._interfaces = dict(batch.interfaces)
            self._heads = _Heads((number, _head(name)) for number, name in self._interfaces.items())
        return self._heads
