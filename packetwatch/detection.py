# SPDX-License-Identifier: Apache-2.0
"""The scan rule and the rules that block, as a pure state machine: the oracle of the kernel program.

Written for exactness, not for a flood: its memory grows with the number of sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

from packetwatch import rules
from packetwatch.address import BITS, Prefix, is_ipv4, mask, single

#: The kernel packs time, state and port into 64 bits: the time loses its low 17.
TICK_NS = 1 << 17
#: Closed ports that are remembered of a source.
SUSPECT_SLOTS = 16
#: See bpf/packetwatch.c.
DOUBLINGS, DOUBLINGS_FOREVER = 16, 10
#: The longest block of a source that may be forged.
UNPROVEN_NS = 60_000_000_000

PASS, SCAN, DROP, WOULD_DROP = "pass", "scan", "drop", "would_drop"


class Rule(NamedTuple):
    """So many distinct ports within the window block; of all ports, or of closed ones alone."""

    ports: int  #: 0 with no window: as many, and as fast, as make a scan
    closed: bool
    window_ns: int

    def beside(self, scan_ports: int, scan_window_ns: int) -> Rule:
        """With numbers, where the scan's are so many. No more closed ports than are remembered."""
        if self.ports:
            return self
        return self._replace(ports=min(scan_ports, SUSPECT_SLOTS), window_ns=scan_window_ns)


class Finding(NamedTuple):
    """What one SYN completed: a scan, a rule that blocks, or both."""

    ports: tuple[int, ...]  #: oldest last SYN first
    closed: tuple[int, ...]  #: those of them that nothing listened on
    scan: bool
    rule: int  #: its number, from 1; 0 is none


Slot = tuple[int, int, bool]  #: time, port, closed


@dataclass
class _History:
    last_ns: int = 0
    scan_tick: int = 0  #: of the last scan
    seen: list[Slot] = field(default_factory=list)  #: newest first
    met: list[Slot] = field(default_factory=list)  #: closed ports, newest first


class Detector:
    """A scan: one source reaches ``ports`` distinct ports, each last seen less than ``window_ns`` ago."""

    def __init__(
        self,
        ports: int,
        window_ns: int,
        slots: int = 64,
        block_rules: Sequence[Rule] = (),
        count_closed: bool = False,
    ) -> None:
        if not 2 <= ports <= slots:
            raise ValueError(f"{ports} ports do not fit into 2 to {slots} slots")
        self.ports = ports
        self.window_ns = window_ns
        self.slots = slots
        self.rules = list(enumerate(block_rules, 1))
        self.count_closed = count_closed
        self.keep_ns, self.suspect_ns = windows(window_ns, block_rules)
        self._histories: dict[bytes, _History] = {}

    def syn(self, source: bytes, port: int, now_ns: int, closed: bool = True) -> Optional[Finding]:
        """What this one completes. What a scan has counted counts for no other scan, nor for a rule twice.

        A time before the source's last one (another CPU read the clock earlier) counts as that one.
        """
        if self.count_closed and not closed:
            return None
        history = self._histories.setdefault(source, _History())
        history.last_ns = max(now_ns, history.last_ns)
        now = history.last_ns - history.last_ns % TICK_NS
        found = self._track(history, (now, port, closed))
        rule = self._suspect(history, (now, port, closed)) if closed and self.suspect_ns else None
        if rule is None:
            return found
        return found._replace(rule=rule.rule) if found is not None and found.scan else rule

    def _track(self, history: _History, slot: Slot) -> Optional[Finding]:
        history.seen = moved(history.seen, slot, self.keep_ns)[: self.slots]
        scan = reached(history.seen, self.ports, slot[0], self.window_ns, history.scan_tick)
        rule, ports = self._rule(history.seen, False, slot[0])
        if not scan and not rule:
            return None
        found = finding(history.seen[: self.ports if scan else ports], scan, rule)
        if scan:
            history.scan_tick = slot[0]
        if rule:
            history.seen = []
        return found

    def _suspect(self, history: _History, slot: Slot) -> Optional[Finding]:
        history.met = moved(history.met, slot, self.suspect_ns)[:SUSPECT_SLOTS]
        rule, ports = self._rule(history.met, True, slot[0])
        if not rule:
            return None
        found = finding(history.met[:ports], False, rule)
        history.met = []
        return found

    def _rule(self, slots: list[Slot], closed: bool, now: int) -> tuple[int, int]:
        """The first that these slots match: its number and its ports; (0, 0) if there is none."""
        for number, rule in self.rules:
            if rule.closed == closed and reached(slots, rule.ports, now, rule.window_ns):
                return number, rule.ports
        return 0, 0


def windows(window_ns: int, block_rules: Sequence[Rule]) -> tuple[int, int]:
    """How long ports are remembered: the longest window over all ports, and over closed ones (0: no rule has one)."""
    both = [[rule.window_ns for rule in block_rules if rule.closed == closed] for closed in (False, True)]
    return max(window_ns, *both[0], 0), max([0, *both[1]])


def moved(slots: list[Slot], slot: Slot, window_ns: int) -> list[Slot]:
    """With this one in front, its port not twice, and without what has left the window."""
    return [slot, *(old for old in slots if old[1] != slot[1] and slot[0] - old[0] < window_ns)]


def reached(slots: list[Slot], ports: int, now: int, window_ns: int, since: int = 0) -> bool:
    """Whether so many distinct ports were reached within the window, all after `since`."""
    return len(slots) >= ports and now - slots[ports - 1][0] < window_ns and slots[ports - 1][0] > since


def finding(slots: list[Slot], scan: bool, rule: int) -> Finding:
    oldest_first = slots[::-1]
    closed = tuple(port for _, port, is_closed in oldest_first if is_closed)
    return Finding(tuple(port for _, port, _ in oldest_first), closed, scan, rule)


def which_ports(ports: Sequence[int]) -> int:
    """A bit of 64 for each, which few share."""
    which = 0
    for port in ports:
        which |= 1 << (port * 0x9E37 >> 10 & 63)
    return which


def block_length(longest_ns: int, first_ns: int, doublings: int, proven: bool = True) -> int:
    """Of a block by a rule; 0 is forever, here and there."""
    if not proven:
        return min(length for length in (longest_ns, first_ns, UNPROVEN_NS) if length)
    if not first_ns or (not longest_ns and doublings >= DOUBLINGS_FOREVER):
        return 0
    length = first_ns << min(doublings, DOUBLINGS)
    return min(longest_ns, length) if longest_ns else length


class Verdict(NamedTuple):
    """What becomes of one new connection. The one that completes a scan still goes through."""

    action: str  #: PASS, SCAN, DROP or WOULD_DROP
    ports: tuple[int, ...] = ()  #: of a SCAN, oldest last SYN first
    until_ns: int = 0  #: end of the block, for all but PASS; 0 is forever
    rule: int = 0  #: that blocks; 0 with a SCAN that none matches
    length: int = BITS  #: of the block of a SCAN


class Blocks(NamedTuple):
    """How long sources are blocked, in ns; 0 is forever."""

    longest_ns: int
    first_ns: int
    open_ns: int  #: of a scan that no rule matches
    forget_ns: int = 0
    proof: bool = False  #: sources that have not proven that they own their address are blocked for a short time only
    network_bits: int = BITS  #: who is blocked again is blocked with its IPv6 network of so many


class Guard:
    """Allowed, blocked, tracked, judged: the whole verdict in the kernel's order.

    ``sources`` is what rules.effective() gives; ``blocks`` maps a source, or a network, to the end of its block.
    """

    def __init__(
        self,
        detector: Detector,
        lengths: Blocks,
        enforce: bool = True,
        sources: Optional[Mapping[Prefix, rules.Source]] = None,
    ) -> None:
        self.detector = detector
        self.lengths = lengths
        self.enforce = enforce
        self.sources: Mapping[Prefix, rules.Source] = sources or {}
        self.blocks: dict[Prefix, int] = {}
        self._spared = rules.spared(self.sources, lengths.network_bits)
        self._offenders: dict[Prefix, tuple[int, int, int]] = {}  # end of the last block, doublings, ports
        self._provers: dict[Prefix, bytes] = {}

    def judge(self, source: bytes, port: int, now_ns: int, closed: bool = True) -> Verdict:
        listed = rules.lookup(self.sources, source)
        if listed.flags & rules.ALLOW:
            return Verdict(PASS)
        if listed.flags & rules.BLOCK and in_force(listed.until_ns, now_ns):
            return self._drop(listed.until_ns)
        for prefix in (single(source), self._network(source)):
            until_ns = self.blocks.get(prefix)
            if until_ns is not None and in_force(until_ns, now_ns):
                return self._drop(until_ns)
        found = self.detector.syn(source, port, now_ns, closed)
        if found is None:
            return Verdict(PASS)
        prefix, until_ns = self._block(source, now_ns, found)
        self.blocks[prefix] = until_ns
        return Verdict(SCAN, found.ports, until_ns, found.rule, prefix.length)

    def prove(self, source: bytes) -> None:
        """The source, which has been blocked, has answered a challenge."""
        self._provers[self._network(source)] = source

    def _network(self, source: bytes) -> Prefix:
        bits = BITS if is_ipv4(source) else self.lengths.network_bits
        return Prefix(mask(source, bits), bits)

    def _block(self, source: bytes, now_ns: int, found: Finding) -> tuple[Prefix, int]:
        """By a rule it doubles with each offence that has new ports, until the network has been quiet; then it is of
        all of the network.
        """
        if not found.rule:
            return single(source), now_ns + self.lengths.open_ns if self.lengths.open_ns else 0
        which, network = which_ports(found.ports), self._network(source)
        last_ns, doublings, before = self._offenders.get(network, (0, 0, which))
        if last_ns and now_ns - last_ns >= self.lengths.forget_ns:
            doublings, before = 0, which
            self._provers.pop(network, None)
        if which & ~before:
            doublings = min(doublings + 1, DOUBLINGS)
        proven = not self.lengths.proof or self._provers.get(network) == source
        length = block_length(self.lengths.longest_ns, self.lengths.first_ns, doublings, proven)
        until_ns = now_ns + length if length else 0
        self._offenders[network] = (until_ns, doublings, before | which)
        wide = proven and doublings and network.network not in self._spared
        return network if wide else single(source), until_ns

    def _drop(self, until_ns: int) -> Verdict:
        return Verdict(DROP if self.enforce else WOULD_DROP, until_ns=until_ns)


def in_force(until_ns: int, now_ns: int) -> bool:
    """Whether a block that ends at ``until_ns`` (0: never) still holds; at its end it does not."""
    return not until_ns or now_ns < until_ns
