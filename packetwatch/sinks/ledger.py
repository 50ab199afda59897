# SPDX-License-Identifier: Apache-2.0
"""The account of every connection: judged = recorded + folded + dropped + lost, per interface.

The terms are counted in the kernel per attachment; here they get their interface's name, go on
over attachments that ended, and lose to `lost` what the log refused. Decides and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from packetwatch.kernel import ZERO, Counters
from packetwatch.metricnames import FAMILIES

RING = "ring"
GONE = "(gone)"  #: stands for the interfaces that ended longest ago
ENDED_NAMES = 256  #: kept apart; where containers come and go, each has a name of its own


class Account(NamedTuple):
    """One interface's terms; tuples are (ipv4, ipv6), `lost` maps where -> such a tuple."""

    counters: Counters
    lost: dict[str, tuple[int, ...]]

    def recorded(self, family: int) -> int:
        refused = sum(pair[family] for where, pair in self.lost.items() if where != RING)
        return self.counters.recorded[family] - refused

    def dropped(self, family: int) -> int:
        return sum(self.counters.dropped[family :: len(FAMILIES)])

    def terms(self) -> dict[str, int]:
        """The ledger's words, as status, metrics and docs use them, over both families."""
        both = range(len(FAMILIES))
        return {
            "syns": sum(self.counters.syns),
            "connections": sum(self.recorded(f) for f in both),
            "connections_folded": sum(self.counters.folded),
            "connections_dropped": sum(self.dropped(f) for f in both),
            "connections_lost": sum(sum(pair) for pair in self.lost.values()),
        }


class Ledger:
    """Owns what the kernel's counters do not know; `note` and `restore` carry it over a restart."""

    def __init__(self, read: Callable[[int], Counters]) -> None:
        """read: attachment id -> its counters now."""
        self.read = read
        self.names: dict[int, str] = {}  #: attachment id -> interface, also of the last that ended
        self._ended: dict[str, Counters] = {}
        self._refused: dict[str, dict[str, list[int]]] = {}  # interface -> where -> per family

    def ids(self) -> range:
        """Covers every attachment that has a name."""
        return range(max(self.names, default=-1) + 1)

    def open(self, attachment: int, name: str) -> None:
        """The attachment counts for `name` from now on; what it has counted under another name stays there."""
        before = self.names.get(attachment, name)
        if before != name:
            counted = self.read(attachment)
            self.absorb(before, counted)
            self.absorb(name, Counters.of(tuple(-word for word in counted.words())))
        self.names[attachment] = name

    def close(self, attachment: int) -> None:
        """Before an id's counters are cleared for another interface."""
        name = self.names.pop(attachment, None)
        if name is not None:
            self.absorb(name, self.read(attachment))

    def absorb(self, name: str, counters: Counters) -> None:
        """Counters that will not be read again. Bounded: whatever names there are, no count is lost."""
        ended = dict(self._ended)  # a scrape may be reading the other one
        ended[name] = ended.pop(name, ZERO).plus(counters)
        kept = {GONE, name, *self.names.values()}
        for old in [old for old in ended if old not in kept][: max(0, len(ended) - ENDED_NAMES)]:
            ended[GONE] = ended.get(GONE, ZERO).plus(ended.pop(old))
            for where, pair in self._refused.pop(old, {}).items():
                self._add_refused(GONE, where, pair)
        self._ended = ended

    def refuse(self, attachment: int, where: str, family: int, count: int) -> None:
        """Connections that the log `where` did not take."""
        pair = [0] * len(FAMILIES)
        pair[family] = count
        self._add_refused(self.names.get(attachment, GONE), where, pair)

    def _add_refused(self, name: str, where: str, pair: Sequence[int]) -> None:
        known = self._refused.setdefault(name, {}).setdefault(where, [0] * len(FAMILIES))
        for family, count in enumerate(pair):
            known[family] += count

    def accounts(self) -> dict[str, Account]:
        """By interface name."""
        sums = {**{name: ZERO for name in list(self._refused)}, **self._ended}
        for attachment, name in list(self.names.items()):
            sums[name] = sums.get(name, ZERO).plus(self.read(attachment))
        return {
            name: Account(
                counters,
                {RING: counters.lost, **{w: tuple(p) for w, p in self._refused.get(name, {}).items()}},
            )
            for name, counters in sums.items()
        }

    def total(self) -> Account:
        """Over all interfaces."""
        counters, lost = ZERO, {RING: (0,) * len(FAMILIES)}
        for account in self.accounts().values():
            counters = counters.plus(account.counters)
            for where, pair in account.lost.items():
                known = lost.get(where, (0,) * len(FAMILIES))
                lost[where] = tuple(a + b for a, b in zip(known, pair))
        return Account(counters, lost)

    def note(self) -> dict[str, Any]:
        return {
            "names": {str(k): v for k, v in self.names.items()},
            "ended": {name: counters.words() for name, counters in self._ended.items()},
            "refused": self._refused,
        }

    def restore(self, note: dict[str, Any]) -> None:
        """What the resident before wrote down; it was ours, through a descriptor nobody else has."""
        self.names = {int(k): v for k, v in note.get("names", {}).items()}
        self._ended = {name: Counters.of(tuple(words)) for name, words in note.get("ended", {}).items()}
        self._refused = note.get("refused", {})
