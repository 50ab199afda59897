# SPDX-License-Identifier: Apache-2.0
"""Allow and block lists, flattened for a kernel that finds only the longest match, and their difference.

Pure: where entries come from, when they end and how they reach the kernel is told elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Optional

from packetwatch.address import BITS, IPV4, IPV4_OFFSET, Prefix, mask

OWN, ALLOW, BLOCK = 1, 2, 4  #: enum source_flag of bpf/maps.h

CONFIG, MANUAL = "config", "manual"
OWN_ADDRESS, GATEWAY, SESSION = "own address", "default gateway", "session"
RESOLVER, TIME_SERVER, PUPPET_SERVER = "resolver", "time server", "Puppet server"

#: Allowed because someone said so; every other reason to allow is automatic and yields to force.
BY_HAND = frozenset({CONFIG, MANUAL})


class Entry(NamedTuple):
    """One line of the allow or the block list."""

    prefix: Prefix
    reason: str  #: CONFIG, MANUAL, OWN_ADDRESS, GATEWAY, SESSION, ...
    forced: bool = False  #: a block that beats automatic reasons to allow
    until_ns: int = 0  #: end of a block, CLOCK_BOOTTIME; 0 is forever
    detail: str = ""  #: for people: what the reason comes from


class Source(NamedTuple):
    """What the kernel holds for a prefix: ALLOW and BLOCK are never set together."""

    flags: int
    until_ns: int = 0  #: end of BLOCK, CLOCK_BOOTTIME; 0 is forever


NOTHING = Source(0)


class Difference(NamedTuple):
    """Applied as all of ``changed``, then all of ``removed``, in this order, no address ever
    has a meaning that is neither its old nor its new one."""

    removed: list[Prefix]  #: shortest first
    changed: list[tuple[Prefix, Source]]  #: changed or new, longest first


class _Facts(NamedTuple):
    """What is said of a prefix, by itself or by those that cover it."""

    own: bool = False
    by_hand: bool = False
    automatic: bool = False
    block: Optional[Entry] = None  #: of the longest prefix that has one
    forced: Optional[Entry] = None

    def under(self, parent: _Facts) -> _Facts:
        return _Facts(
            self.own or parent.own,
            self.by_hand or parent.by_hand,
            self.automatic or parent.automatic,
            self.block or parent.block,
            self.forced or parent.forced,
        )

    def allowing(self, entry: Entry) -> _Facts:
        return self._replace(by_hand=True) if entry.reason in BY_HAND else self._replace(automatic=True)

    def blocking(self, entry: Entry) -> _Facts:
        forced = _later(self.forced, entry) if entry.forced else self.forced
        return self._replace(block=_later(self.block, entry), forced=forced)

    def source(self) -> Source:
        own = OWN if self.own else 0
        block = self.forced if self.automatic else self.block
        if self.by_hand or (self.automatic and not block):
            return Source(own | ALLOW)
        return Source(own | BLOCK, block.until_ns) if block else Source(own)


def effective(own: Iterable[Prefix], allow: Iterable[Entry], block: Iterable[Entry]) -> dict[Prefix, Source]:
    """The meaning of every prefix named anywhere, with all that it inherits; O(n log n).

    Allow beats block whatever the lengths, except that a forced block beats automatic reasons.
    Of several blocks that cover a prefix the longest gives the end.
    """
    named = _collect(own, allow, block)
    result: dict[Prefix, Source] = {}
    above: list[tuple[Prefix, _Facts]] = []  # the chain of prefixes that cover the present one
    for prefix in sorted(named, key=_family_first):
        while above and not above[-1][0].covers(prefix):
            above.pop()
        facts = named[prefix].under(above[-1][1]) if above else named[prefix]
        above.append((prefix, facts))
        result[prefix] = facts.source()
    return result


def _family_first(prefix: Prefix) -> tuple[bool, Prefix]:
    return prefix.is_ipv4, prefix


def _collect(own: Iterable[Prefix], allow: Iterable[Entry], block: Iterable[Entry]) -> dict[Prefix, _Facts]:
    named: dict[Prefix, _Facts] = {prefix: _Facts(own=True) for prefix in own}
    for entry in allow:
        named[entry.prefix] = named.get(entry.prefix, _Facts()).allowing(entry)
    for entry in block:
        named[entry.prefix] = named.get(entry.prefix, _Facts()).blocking(entry)
    # The trie holds IPv4 below ::ffff:0:0/96: without an entry of its own it would inherit from ::/0.
    if any(prefix.length < IPV4_OFFSET and mask(IPV4.network, prefix.length) == prefix.network for prefix in named):
        named.setdefault(IPV4, _Facts())
    return named


def _later(one: Optional[Entry], other: Entry) -> Entry:
    if one is None or not other.until_ns:
        return other
    return one if not one.until_ns or one.until_ns >= other.until_ns else other


def spared(sources: Mapping[Prefix, Source], bits: int) -> set[bytes]:
    """The IPv6 networks of so many bits with an allowed address, and one that may be judged."""
    lengths = sorted({prefix.length for prefix in sources if prefix.length <= bits}, reverse=True)
    inside = (item for item in sources.items() if item[0].length > bits and not item[0].is_ipv4)
    return {
        mask(prefix.network, bits)
        for prefix, source in inside
        if (source.flags | _longest(sources, prefix.network, lengths).flags) & (ALLOW | OWN)
    }


def difference(old: Mapping[Prefix, Source], new: Mapping[Prefix, Source]) -> Difference:
    """What turns ``old`` into ``new``; see Difference for the order of its use."""
    return Difference(
        sorted((prefix for prefix in old if prefix not in new), key=_length),
        sorted((item for item in new.items() if old.get(item[0]) != item[1]), key=lambda i: -i[0].length),
    )


def _length(prefix: Prefix) -> int:
    return prefix.length


def lookup(sources: Mapping[Prefix, Source], address: bytes) -> Source:
    """The longest match, as the kernel finds it."""
    return _longest(sources, address, range(BITS, -1, -1))


def _longest(sources: Mapping[Prefix, Source], address: bytes, lengths: Iterable[int]) -> Source:
    """Of these lengths, longest first."""
    chain = (sources.get(Prefix(mask(address, length), length)) for length in lengths)
    return next((found for found in chain if found is not None), NOTHING)


def covered(entries: Iterable[Entry], prefix: Prefix) -> list[Entry]:
    """The entries inside ``prefix``: those that a block of it would hit."""
    return [entry for entry in entries if prefix.covers(entry.prefix)]


def covering(entries: Iterable[Entry], prefix: Prefix) -> list[Entry]:
    """The entries that ``prefix`` lies inside, longest first."""
    return sorted((entry for entry in entries if entry.prefix.covers(prefix)), key=lambda e: -e.prefix.length)


def why_allowed(address: bytes, allow: Iterable[Entry]) -> Optional[Entry]:
    """The entry that allows this address; one set by hand before an automatic one, then the longest."""
    found = covering(allow, Prefix(address, BITS))
    by_hand = [entry for entry in found if entry.reason in BY_HAND]
    return next(iter(by_hand or found), None)
