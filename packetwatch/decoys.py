# SPDX-License-Identifier: Apache-2.0
"""Scans of many sources at the same ports of one host in one moment, told as one event: all but one may be forged
(``nmap -D``). Pure and bounded: `now` is an argument.

Records are only drawn together: each source is named in one, and each scan and block counted in one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Optional

from packetwatch.event import Notice

MOMENT_NS = 1_000_000_000  #: from the first scan of a moment; it goes on while others follow within as much
SINGLY = 3  #: sources of a moment that are told one by one
NAMED = 64  #: sources that one record names
MOMENTS = 64  #: kept in mind; beyond those the oldest ends
MEMBERS = 4096  #: sources whose drops and ends are told together, as their scans were

_SECOND = 1_000_000_000


class Key(NamedTuple):
    """What scans of one moment have in common."""

    in_iface: Optional[str]
    destination: Optional[str]
    ports: tuple[int, ...]  #: in their own order
    mode: Optional[str]


class Moment:
    """The scans of one key, and their blocks."""

    def __init__(self, end_ns: int) -> None:
        self.end_ns = end_ns  #: CLOCK_BOOTTIME
        self.is_many = False  #: more than SINGLY sources
        self._singly: dict[str, Notice] = {}  # scans told one by one, by source
        self._held: list[Notice] = []
        self._scans = 0  # in _held

    @property
    def is_full(self) -> bool:
        return len(self._singly) + self._scans >= NAMED

    def add(self, notice: Notice) -> None:
        self._held.append(notice)
        self._scans += notice.event_type == "scan"

    def few(self) -> list[Notice]:
        """What need not wait, since there are only a few sources so far."""
        scans = {each.source or "": each for each in self._held if each.event_type == "scan"}
        self.is_many = self.is_many or len({**scans, **self._singly}) > SINGLY
        if self.is_many:
            return []
        self._singly.update(scans)
        return self._take()

    def rest(self) -> list[Notice]:
        """What waits: one record of the scans, and one of the blocks of each length and rule."""
        notices = self.few()
        if self.is_many:
            notices = list(_together(self._take(), list(self._singly.values())))
            self._singly = {}
        return notices

    def _take(self) -> list[Notice]:
        held, self._held, self._scans = self._held, [], 0
        return held


class Decoys:
    """The moments that are not over."""

    def __init__(self) -> None:
        self._moments: OrderedDict[Key, Moment] = OrderedDict()
        self._members: OrderedDict[str, None] = OrderedDict()

    def take(self, notices: Iterable[Notice], now_ns: int) -> list[Notice]:
        """What is to be written now, in time order; notices: in time order, each block behind its scan."""
        told: list[Notice] = []
        ends: list[Notice] = []
        scan, moment = None, None
        for notice in notices:
            if notice.event_type == "scan" and notice.source is not None:
                scan, moment = notice, self._moment(notice, told)
                moment.add(notice)
            elif moment is not None and _belongs(notice, scan):
                moment.add(notice)
            elif notice.source in self._members and notice.event_type in ("drop", "unblock"):
                ends.append(notice)
            else:
                told.append(notice)
        for each in self._moments.values():
            told += each.few()
        told += _together(ends)
        for key in [key for key, each in self._moments.items() if each.end_ns <= now_ns]:
            told += self._end(key)
        return sorted(told, key=lambda each: each.boot_ns)

    def is_due(self, now_ns: int) -> bool:
        """Whether a moment is over, so that take() is to be called."""
        return any(moment.end_ns <= now_ns for moment in self._moments.values())

    def close(self) -> list[Notice]:
        """What waits; nothing does any more."""
        return [notice for key in list(self._moments) for notice in self._tell(self._moments.pop(key))]

    def _moment(self, scan: Notice, told: list[Notice]) -> Moment:
        """That of a scan; what has to be told before goes to `told`."""
        key = Key(scan.in_iface, scan.destination, tuple(sorted(scan.ports or ())), scan.mode)
        while key in self._moments and self._moments[key].end_ns <= scan.boot_ns:
            told += self._end(key)
        if key not in self._moments:
            if len(self._moments) >= MOMENTS:
                told += self._tell(self._moments.popitem(last=False)[1])
            self._moments[key] = Moment(scan.boot_ns + MOMENT_NS)
        moment = self._moments[key]
        if moment.is_full:
            told += self._tell(moment)
        return moment

    def _end(self, key: Key) -> list[Notice]:
        """The moment goes on as long again where there were many, else it is forgotten."""
        moment = self._moments[key]
        told = self._tell(moment)
        if told and moment.is_many:
            moment.end_ns += MOMENT_NS
        else:
            del self._moments[key]
        return told

    def _tell(self, moment: Moment) -> list[Notice]:
        told = moment.rest()
        for each in told if moment.is_many else ():
            self._members.update(dict.fromkeys(each.sources or (each.source or "",)))
        while len(self._members) > MEMBERS:
            self._members.popitem(last=False)
        return told


def _belongs(block: Notice, scan: Optional[Notice]) -> bool:
    """Whether a block is the one that came with the scan."""
    if scan is None or block.event_type != "block":
        return False
    return (block.source, block.boot_ns) == (scan.source, scan.boot_ns)


def _together(notices: Sequence[Notice], told: Sequence[Notice] = ()) -> Iterator[Notice]:
    """One record of those that differ only in source, time and count; told: scans of the same moment that have been
    written already, to be named and not counted.
    """
    alike: dict[Notice, list[Notice]] = {}
    for notice in notices:
        alike.setdefault(_alike(notice), []).append(notice)
    for kind, group in alike.items():
        before = [each for each in told if _alike(each) == kind]
        yield from _one(group, before)


def _alike(notice: Notice) -> Notice:
    """The same for all that one record can tell."""
    length = notice.until_ns and round((notice.until_ns - notice.boot_ns) / _SECOND)  # 0 is forever
    ports, closed = (tuple(sorted(each)) if each else None for each in (notice.ports, notice.closed_ports))
    return notice._replace(
        boot_ns=0, source=None, until_ns=length, ports=ports, closed_ports=closed, count=None, since_ns=None
    )


def _one(group: Sequence[Notice], before: Sequence[Notice]) -> Iterator[Notice]:
    sources = list(dict.fromkeys(each.source or "" for each in (*before, *group)))
    if len(sources) == 1:
        yield from group
        return
    for start in range(0, len(sources), NAMED):
        named = sources[start : start + NAMED]
        part = [each for each in group if each.source in named]
        since = min(each.boot_ns if each.since_ns is None else each.since_ns for each in (*before, *part))
        yield part[-1]._replace(
            source=None,
            sources=tuple(named),
            count=sum(each.count or 1 for each in part),
            since_ns=since,
            until_ns=max((each.until_ns for each in part if each.until_ns is not None), default=None),
        )
