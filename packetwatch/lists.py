# SPDX-License-Identifier: Apache-2.0
"""The allow and block lists of this host: where their entries come from, and the maps kept in step with them.

The meaning of the entries together is rules.py's; only differences reach the kernel.
"""

from __future__ import annotations

import time
from typing import NamedTuple, Optional

from packetwatch import rules, servers
from packetwatch.address import BITS, Prefix, mask, single
from packetwatch.kernel import Kernel
from packetwatch.rules import Entry
from packetwatch.servers import Server
from packetwatch.settings import Settings
from packetwatch.state import Manual

_TRIE_ENTRIES_MAX = 60_000  # of 65,536: room for a difference in the making


class Host(NamedTuple):
    """What the host is and whom it needs, as netlink, logind and its files tell."""

    own: frozenset[Prefix] = frozenset()  #: the local routing table
    gateways: frozenset[bytes] = frozenset()
    sessions: frozenset[bytes] = frozenset()
    servers: frozenset[Server] = frozenset()


class Lists:
    """Entries by origin, and the kernel's tables `local` and `sources` made from them."""

    def __init__(self, kernel: Kernel, settings: Settings) -> None:
        self.kernel = kernel
        self.settings = settings
        self.host = Host()
        self.manual_allow: dict[Prefix, Manual] = {}
        self.manual_blocks: dict[Prefix, Manual] = {}
        self._ends: dict[Prefix, int] = {}
        self._sources = kernel.sources.read()
        self._local = kernel.local.read()
        self._spared = kernel.spared.read()
        self._lengths: list[int] = []  # of the prefixes in _sources, longest first

    def allow_entries(self) -> list[Entry]:
        """Every reason to allow, the automatic ones included."""
        host, settings = self.host, self.settings
        entries = [Entry(prefix, rules.CONFIG) for prefix in settings.allow]
        entries += [Entry(prefix, rules.MANUAL) for prefix in self.manual_allow]
        return entries + self.automatic(host, settings)

    @staticmethod
    def automatic(host: Host, settings: Settings) -> list[Entry]:
        entries: list[Entry] = []
        if settings.allow_own:
            entries += [Entry(prefix, rules.OWN_ADDRESS) for prefix in sorted(host.own)]
        if settings.allow_gateways:
            entries += [Entry(single(address), rules.GATEWAY) for address in sorted(host.gateways)]
        if settings.allow_sessions:
            entries += [Entry(single(address), rules.SESSION) for address in sorted(host.sessions)]
        wanted = servers.wanted(settings)
        for address, reason, detail in sorted(host.servers):
            if reason in wanted:
                entries.append(Entry(single(address), reason, detail=detail))
        return entries

    def put_block(self, entry: Manual, wall_offset_ns: int) -> int:
        """Returns its end as CLOCK_BOOTTIME, by which it is held from now on: a clock step does not move it."""
        until = max(1, entry.until_wall_ns - wall_offset_ns) if entry.until_wall_ns else 0
        self.manual_blocks[entry.prefix] = entry
        self._ends[entry.prefix] = until
        return until

    def until(self, prefix: Prefix) -> Optional[int]:
        """The end of a block by hand as CLOCK_BOOTTIME, 0 is forever; None where there is no such block."""
        return self._ends[prefix] if prefix in self.manual_blocks else None

    def block_entries(self) -> list[Entry]:
        """Blocks by hand and by configuration; ends as CLOCK_BOOTTIME."""
        entries = [Entry(prefix, rules.CONFIG) for prefix in self.settings.block]
        for prefix, entry in self.manual_blocks.items():
            entries.append(Entry(prefix, rules.MANUAL, entry.forced, self._ends[prefix]))
        return entries

    def apply(self) -> list[Prefix]:
        """Brings both tables in step; returns the prefixes that are newly allowed. Raises OSError if one is full."""
        wanted = rules.effective(self.host.own, self.allow_entries(), self.block_entries())
        if len(wanted) > _TRIE_ENTRIES_MAX:
            raise OSError(7, f"{len(wanted)} prefixes in the lists, at most {_TRIE_ENTRIES_MAX} fit", "sources")
        removed, changed = rules.difference(self._sources, wanted)
        spared = rules.spared(wanted, self.settings.block_ipv6_prefix)
        for network in spared - self._spared:
            self.kernel.spared.add(network)
        try:
            self._put(removed, changed)
        except OSError:  # half-way: what stands there now is what the next difference begins from
            self._sources, self._local = self.kernel.sources.read(), self.kernel.local.read()
            raise
        finally:
            if removed or changed or self._local != self.host.own:
                self.kernel.lists_changed()
        for network in self._spared - spared:
            self.kernel.spared.remove(network)
        self._spared = spared
        if removed:
            self.kernel.sources.mark_only(wanted)
        self._local, self._sources = set(self.host.own), wanted
        self._lengths = sorted({prefix.length for prefix in wanted}, reverse=True)
        return [prefix for prefix, source in changed if source.flags & (rules.ALLOW | rules.OWN)]

    def _put(self, removed: list[Prefix], changed: list[tuple[Prefix, rules.Source]]) -> None:
        for prefix in self.host.own - self._local:
            self.kernel.local.add(prefix)
        for prefix, source in changed:
            self.kernel.sources.put(prefix, source)
        for prefix in removed:
            self.kernel.sources.remove(prefix)
        for prefix in self._local - self.host.own:
            self.kernel.local.remove(prefix)

    def allows(self, source: bytes) -> bool:
        """Whether the kernel half, once it knows, lets this address pass unjudged."""
        for length in self._lengths:
            found = self._sources.get(Prefix(mask(source, length), length))
            if found is not None:
                return bool(found.flags & (rules.ALLOW | rules.OWN))
        return False

    def reaches(self, block: Prefix) -> bool:
        """Whether a block of an address or a network would hit somebody who is allowed."""
        return self.allows(block.network) or (block.length < BITS and block.network in self._spared)

    def expired(self, now_ns: int) -> list[Manual]:
        """Takes out the manual blocks whose end has come."""
        ended = [m for p, m in self.manual_blocks.items() if 0 < self._ends[p] <= now_ns]
        for entry in ended:
            del self.manual_blocks[entry.prefix]
        return ended

    def next_end_ns(self) -> int:
        """Of the manual blocks, as CLOCK_BOOTTIME; 0: none ends."""
        return min((end for prefix in self.manual_blocks if (end := self._ends[prefix])), default=0)

    def saved_blocks(self, wall_offset_ns: int) -> tuple[Manual, ...]:
        """With their ends as wall time, as the clock stands now."""
        return tuple(
            m._replace(until_wall_ns=self._ends[p] + wall_offset_ns if self._ends[p] else 0)
            for p, m in self.manual_blocks.items()
        )

    def blocked(self) -> int:
        """Prefixes blocked by hand or configuration now."""
        return sum(1 for source in self._sources.values() if source.flags & rules.BLOCK)

    def shielded(self, prefix: Prefix) -> list[Entry]:
        """The entries that are always allowed and that a block of this prefix would cover."""
        automatic = self.automatic(self.host, self.settings)
        return [e for e in automatic if prefix.covers(e.prefix) or e.prefix.covers(prefix)]

    def sizes(self) -> tuple[int, int]:
        """Entries of (local, sources)."""
        return len(self._local), len(self._sources)


def manual(prefix: Prefix, duration_ns: Optional[int], reason: str = "", forced: bool = False) -> Manual:
    """An entry that starts now; duration 0 or None has no end."""
    now = time.time_ns()
    return Manual(prefix, now + duration_ns if duration_ns else 0, now, reason, forced)
