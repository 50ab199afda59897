# SPDX-License-Identifier: Apache-2.0
"""What is told now and then from counters: folded connections, dropped ones, losses.

Each report knows what it has told already; when it is due is its own affair, asked once a second with all counts.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any, Optional, Protocol

from packetwatch import address
from packetwatch.clock import SECOND
from packetwatch.drain import Drain
from packetwatch.kernel import Block, Kernel
from packetwatch.sinks.ledger import RING, Account, Ledger
from packetwatch.summary import reduce

_SUMMARY_ROWS = 32  # of each level, each time
_DROPS_EVERY_NS = 60 * SECOND
_DROPS_ROWS = 20
_LOSS_EVERY_NS = 60 * SECOND
_STORM_EVERY_NS = 60 * SECOND
_STORM = "more new blocks in a minute than block.storm allows, probably of forged sources"
_ADVICE = {
    "ring": "the resident was too slow: raise ring.size, or lower log.fold_rate",
    "alerts": "scans came faster than they could be told; the blocks that were made of them are in force",
    "blocks": "the block table is full: raise table.blocks or lower block.duration",
    "stdout": "the reader of standard output is too slow or gone",
    "journal": "journald did not take them: see journalctl -u systemd-journald",
    "file": "log.file could not be written: is the disk full?",
}


class Say(Protocol):
    """Puts a record into the next batch."""

    def __call__(self, event_type: str, **fields: Any) -> None: ...


class Folds:
    """Summaries. Two sets of counters in the kernel half take turns: one is written, the other rests and is read."""

    def __init__(self, kernel: Kernel, ledger: Ledger, say: Say, adopted: bool) -> None:
        self.generation = kernel.settings().generation  #: the set that is being written
        self._kernel, self._ledger, self._say = kernel, ledger, say
        self._folded = -1  # the kernel's count at the last turn
        self._resting = adopted  # whether the set that rests may hold something
        self._due_ns = 0

    def tell(self, now_ns: int, total: Account, period_ns: int) -> None:
        """What has rested for a period; what was written till now rests from here on."""
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + period_ns
        if self._resting:
            self.summarise(self._kernel, 1 - self.generation)
        folded = sum(total.counters.folded)
        self._resting = folded != self._folded
        if self._resting:
            self.turn()
        self._folded = folded

    def turn(self) -> None:
        self.generation = 1 - self.generation
        self._kernel.apply(self._kernel.settings()._replace(generation=self.generation))

    def summarise(self, of: Kernel, generation: int) -> None:
        for fold in reduce(of.take_folds(generation, self._ledger.ids()), _SUMMARY_ROWS):
            self._say(
                "summary",
                in_iface=self._ledger.names.get(fold.attachment),
                source=address.text(fold.source) if fold.source is not None else None,
                dest_port=fold.dport,
                count=fold.count,
                since_ns=fold.since_ns,
                level=fold.level,
            )


class Drops:
    """How much came from blocked sources: the largest once a minute, each at its end."""

    def __init__(self, kernel: Kernel, ledger: Ledger, say: Say, now_ns: int) -> None:
        self._kernel, self._ledger, self._say = kernel, ledger, say
        self._told: dict[bytes, int] = {}  # of sources still blocked
        self._dropped = 0
        self._due_ns = now_ns + _DROPS_EVERY_NS

    def tell(self, now_ns: int, total: Account, mode: Optional[str]) -> None:
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + _DROPS_EVERY_NS
        dropped = sum(total.counters.dropped) + sum(total.counters.would_drop)
        if dropped == self._dropped:
            return
        self._dropped = dropped
        grown = (block for block in self._kernel.blocks.read() if self._untold(block))
        for block in heapq.nlargest(_DROPS_ROWS, grown, key=self._untold):
            self._tell(block, max(block.since_ns, now_ns - _DROPS_EVERY_NS), mode)
            self._told[block.address] = block.dropped

    def end(self, block: Block, mode: Optional[str]) -> None:
        if self._untold(block):
            self._tell(block, block.since_ns, mode)
        self._told.pop(block.address, None)

    def _untold(self, block: Block) -> int:
        return block.dropped - self._told.get(block.address, 0)

    def _tell(self, block: Block, since_ns: int, mode: Optional[str]) -> None:
        name, source = self._ledger.names.get(block.attachment), address.prefix_text(block.prefix)
        self._say("drop", in_iface=name, source=source, count=self._untold(block), since_ns=since_ns, mode=mode)


class Losses:
    """At once, then in doubling periods up to a minute; what is untold at the stop is told then."""

    def __init__(self, say: Say, told: Mapping[str, tuple[int, int, int]]) -> None:
        """told: as `told` was when the resident before noted it."""
        self.told = dict(told)  #: where -> (count told, CLOCK_BOOTTIME of the next, period in ns)
        self.refused = 0  #: blocks of the state file that found no room
        self._say = say

    def tell(self, now_ns: int, total: Account, drain: Drain, final: bool = False) -> None:
        for where, count in self._found(total, drain).items():
            told, due, period = self.told.get(where, (0, 0, SECOND))
            told -= drain.untold.pop(where, 0)
            self.told[where] = told, due, period
            if count > told and (final or now_ns >= due):
                period = min(period * 2, _LOSS_EVERY_NS) if now_ns < due + 2 * period else SECOND
                self.told[where] = (count, now_ns + period, period)
                error = next((sink.last_error for sink in drain.sinks if sink.name == where), None)
                self._say("loss", where=where, count=count - told, reason=error, message=_ADVICE.get(where))

    def _found(self, total: Account, drain: Drain) -> dict[str, int]:
        kernels = {
            RING: sum(total.lost[RING]),
            "alerts": total.counters.alerts_lost,
            "blocks": total.counters.refused + self.refused,
        }
        return {**kernels, **drain.refused}


class Storms:
    """Blocks that were not made, as too many were made at once: told at once, then once a minute."""

    def __init__(self, say: Say, now_ns: int, frozen: int) -> None:
        """frozen: so many are told already."""
        self._say = say
        self._frozen = frozen
        self._told_ns, self._due_ns = now_ns, 0

    def tell(self, now_ns: int, total: Account, mode: Optional[str]) -> None:
        frozen = total.counters.frozen
        if frozen == self._frozen or now_ns < self._due_ns:
            return
        since = self._told_ns if self._due_ns else now_ns - SECOND
        self._say("storm", count=frozen - self._frozen, since_ns=since, mode=mode, message=_STORM)
        self._frozen, self._told_ns, self._due_ns = frozen, now_ns, now_ns + _STORM_EVERY_NS
