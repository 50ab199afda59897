# SPDX-License-Identifier: Apache-2.0
"""The scan rule as a pure state machine: the oracle that the kernel program is tested against.

Written for exactness, not for a flood: its memory grows with the number of sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from packetwatch import rules
from packetwatch.address import Prefix

#: The kernel packs time and port into 64 bits: the time loses its low 16.
TICK_NS = 1 << 16

PASS, SCAN, DROP, WOULD_DROP = "pass", "scan", "drop", "would_drop"


@dataclass
class _History:
    last_ns: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)  #: (time, port), newest first


class Detector:
    """A scan: one source reaches ``ports`` distinct ports, each last seen less than ``window_ns`` ago."""

    def __init__(self, ports: int, window_ns: int, slots: int = 64) -> None:
        if not 2 <= ports <= slots:
            raise ValueError(f"{ports} ports do not fit into 2 to {slots} slots")
        self.ports = ports
        self.window_ns = window_ns
        self.slots = slots
        self._histories: dict[bytes, _History] = {}

    def syn(self, source: bytes, port: int, now_ns: int) -> Optional[tuple[int, ...]]:
        """The distinct ports, oldest last SYN first, if this one completes a scan; the source then starts afresh.

        A time before the source's last one (another CPU read the clock earlier) counts as that one.
        """
        history = self._histories.setdefault(source, _History())
        history.last_ns = max(now_ns, history.last_ns)
        now = history.last_ns - history.last_ns % TICK_NS
        others = [(t, p) for t, p in history.seen if p != port and now - t < self.window_ns]
        history.seen = [(now, port), *others][: self.slots]
        if len(history.seen) < self.ports:
            return None
        ports = tuple(p for _, p in reversed(history.seen))
        history.seen = []
        return ports


class Verdict(NamedTuple):
    """What becomes of one new connection. The one that completes a scan still goes through."""

    action: str  #: PASS, SCAN, DROP or WOULD_DROP
    ports: tuple[int, ...] = ()  #: of a SCAN, oldest last SYN first
    until_ns: int = 0  #: end of the block, for all but PASS; 0 is forever


class Guard:
    """Allowed, blocked, tracked, judged: the whole verdict in the kernel's order.

    ``sources`` is what rules.effective() gives; ``blocks`` maps a source to the end of its block.
    """

    def __init__(
        self,
        detector: Detector,
        block_ns: int,
        enforce: bool = True,
        sources: Optional[Mapping[Prefix, rules.Source]] = None,
    ) -> None:
        self.detector = detector
        self.block_ns = block_ns
        self.enforce = enforce
        self.sources: Mapping[Prefix, rules.Source] = sources or {}
        self.blocks: dict[bytes, int] = {}

    def judge(self, source: bytes, port: int, now_ns: int) -> Verdict:
        listed = rules.lookup(self.sources, source)
        if listed.flags & rules.ALLOW:
            return Verdict(PASS)
        if listed.flags & rules.BLOCK and in_force(listed.until_ns, now_ns):
            return self._drop(listed.until_ns)
        until_ns = self.blocks.get(source)
        if until_ns is not None and in_force(until_ns, now_ns):
            return self._drop(until_ns)
        ports = self.detector.syn(source, port, now_ns)
        if ports is None:
            return Verdict(PASS)
        self.blocks[source] = now_ns + self.block_ns if self.block_ns else 0
        return Verdict(SCAN, ports, self.blocks[source])

    def _drop(self, until_ns: int) -> Verdict:
        return Verdict(DROP if self.enforce else WOULD_DROP, until_ns=until_ns)


def in_force(until_ns: int, now_ns: int) -> bool:
    """Whether a block that ends at ``until_ns`` (0: never) still holds; at its end it does not."""
    return not until_ns or now_ns < until_ns
