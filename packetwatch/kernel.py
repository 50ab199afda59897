# SPDX-License-Identifier: Apache-2.0
"""The map set of the kernel half as objects: settings, attachments, counters, lists, blocks, folds.

Says how things stand in the maps, not when they change.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Optional

from packetwatch import detection, event, libbpf, marks, program
from packetwatch.address import BITS, Prefix, is_ipv4, mask
from packetwatch.metricnames import DROP_REASONS, FAMILIES, IGNORED, MALFORMED
from packetwatch.ring import Ring
from packetwatch.rules import Source
from packetwatch.summary import Fold

_U32, _U64 = struct.Struct("=I"), struct.Struct("=Q")
_PAIR = len(FAMILIES)
_KEY_BYTES = 16  # of SipHash
_LIVES = (1 << 32) - 1
_SETS_READ = 16384  # of trackers: all of them at the default size


class KernelRule(NamedTuple):
    """struct rule of bpf/maps.h."""

    window_ns: int
    ports: int
    closed: int  #: 1: closed ports alone count


class KernelSettings(NamedTuple):
    """struct settings of bpf/maps.h; times in ns, 0 is forever for the ends of blocks."""

    window_ns: int
    block_ns: int  #: the longest block
    first_ns: int
    open_ns: int  #: without a closed port to show for it
    forget_ns: int
    keep_ns: int  #: the longest window over all ports
    suspect_ns: int  #: the longest window over closed ports; 0: no rule has one
    fold_interval_ns: int
    fold_burst_ns: int
    seed: int
    lists_generation: int  #: from 1; grows after every change of `local` or `sources`
    network_mask: bytes  #: the bits that are those of a network of IPv6
    wakeup_mask: int
    ports: int
    observe: int  #: 0 or 1
    generation: int
    count_closed: int  #: 0 or 1
    storm: int  #: blocks of unproven sources in a minute; 0: no limit
    proof: int  #: 0 or 1: a source must answer a challenge before a block of it may last
    network_bits: int  #: so many: whose blocks grow is blocked with the network
    rules: tuple[KernelRule, ...]  #: at most program.RULES

    def pack(self) -> bytes:
        rules = [*self.rules, *[KernelRule(0, 0, 0)] * (program.RULES - len(self.rules))]
        return program.SETTINGS.pack(*self[:-1], len(self.rules), *itertools.chain.from_iterable(rules))

    @classmethod
    def unpack(cls, value: bytes) -> KernelSettings:
        words = program.SETTINGS.unpack(value)
        fixed = len(cls._fields) - 1
        count, rows = words[fixed], words[fixed + 1 :]
        return cls._make((*words[:fixed], tuple(KernelRule(*rows[3 * i : 3 * i + 3]) for i in range(count))))


class Attachment(NamedTuple):
    """One watched interface as the kernel half sees it."""

    id: int
    ifindex: int
    mac: bytes
    loopback: bool
    mac_test: bool


class Counters(NamedTuple):
    """struct counters, summed over the CPUs; per-family tuples are (ipv4, ipv6)."""

    syns: tuple[int, ...]
    recorded: tuple[int, ...]
    folded: tuple[int, ...]
    dropped: tuple[int, ...]  #: [reason * 2 + family]
    lost: tuple[int, ...]
    would_drop: tuple[int, ...]
    scans: tuple[int, ...]
    probes: tuple[int, ...]
    acks: tuple[int, ...]
    probes_untold: tuple[int, ...]
    malformed: tuple[int, ...]
    ignored: tuple[int, ...]
    evicted: int
    suspects_evicted: int
    blocked: int
    refused: int
    frozen: int
    alerts_lost: int
    proven: int
    contested: int

    @classmethod
    def of(cls, words: tuple[int, ...]) -> Counters:
        parts: list[tuple[int, ...]] = []
        for width in _WIDTHS:
            parts.append(words[:width])
            words = words[width:]
        return cls(*parts, *words)  # type: ignore[arg-type]

    def words(self) -> tuple[int, ...]:
        """Flat, in the order of the struct: for sums."""
        return tuple(w for part in self for w in (part if isinstance(part, tuple) else (part,)))

    def plus(self, other: Counters) -> Counters:
        return Counters.of(tuple(a + b for a, b in zip(self.words(), other.words())))


_WIDTHS = (*[_PAIR] * 3, len(DROP_REASONS) * _PAIR, *[_PAIR] * 6, len(MALFORMED), len(IGNORED))
COUNTER_WORDS = sum(_WIDTHS) + len(Counters._fields) - len(_WIDTHS)
ZERO = Counters.of((0,) * COUNTER_WORDS)


class Reached(NamedTuple):
    """A port that a source has reached, and when last (CLOCK_BOOTTIME, cut to detection.TICK_NS)."""

    port: int
    boot_ns: int
    closed: bool

    @classmethod
    def of(cls, slot: int) -> Reached:
        return cls(slot & 0xFFFF, slot & -detection.TICK_NS, bool(slot & 0x10000))


class Track(NamedTuple):
    """What the kernel half remembers of a source."""

    scan_ns: int  #: of its last scan; what came till then counts for no other
    ports: tuple[Reached, ...]  #: newest first
    met: tuple[Reached, ...]  #: closed ones, as rules count them


class Offender(NamedTuple):
    """A source that rules have blocked; times are CLOCK_BOOTTIME in ns."""

    until_ns: int  #: end of the last block; 0 is forever
    proven_ns: int  #: when its address answered a challenge; 0: it never has
    prover: int  #: hash of the address that did
    ports: int  #: of all its offences, a bit for each: detection.which_ports()
    blocks: int
    doublings: int  #: of their length
    unanswered: int  #: challenges
    wrong: int  #: answers, in the life of one key
    life: int  #: which key that was
    contested: int  #: 1: too many of them, it will not be proven


class Client(NamedTuple):
    """A source that has completed handshakes with this host: the first remembered and the last (CLOCK_BOOTTIME)."""

    first_ns: int
    last_ns: int


class Block(NamedTuple):
    """A source that the kernel half has blocked; times are CLOCK_BOOTTIME in ns, until 0 is forever."""

    address: bytes
    until_ns: int
    since_ns: int
    dropped: int
    attachment: int
    length: int = BITS  #: of the prefix whose network the address is
    challenges: int = 0  #: that may still be sent to it

    @property
    def prefix(self) -> Prefix:
        return Prefix(self.address, self.length)

    def in_force(self, now_ns: int) -> bool:
        return not self.until_ns or now_ns < self.until_ns


class Kernel:
    """The loaded programs with their maps; owns the descriptors."""

    def __init__(
        self, prog: int, maps: Mapping[str, int], parameters: program.Parameters, handshakes: Optional[int] = None
    ) -> None:
        """handshakes: the program for the root cgroup, where there is one."""
        self.prog = prog
        self.handshakes = handshakes
        self.maps = dict(maps)
        self.parameters = parameters
        self._cpus = libbpf.possible_cpus()
        self.connections = Ring(self.maps["connections"], parameters.ring_bytes, event.CONNECTION.size - 8)
        self.probes = Ring(self.maps["probes"], program.PROBES_BYTES, event.PROBE.size - 8)
        self.alerts = Ring(self.maps["alerts"], program.ALERTS_BYTES, event.ALERT.size - 8)
        self.local = LocalTable(self.maps["local"])
        self.sources = SourceTable(self.maps["sources"], self.maps["marks"])
        self.blocks = BlockTable(self.maps["blocks"], self.maps["wide_blocks"])
        self.spared = SparedTable(self.maps["spared"])
        self.rings = (self.connections, self.probes, self.alerts)

    def close(self) -> None:
        for ring in self.rings:
            ring.close()
        for fd in (self.prog, *self.maps.values()):
            os.close(fd)
        if self.handshakes is not None:
            os.close(self.handshakes)

    # settings

    def raw_settings(self) -> bytes:
        """As they lie in the map: to see whether it can be read."""
        value = libbpf.lookup(self.maps["settings"], _U32.pack(0), program.SETTINGS.size)
        assert value is not None
        return value

    def settings(self) -> KernelSettings:
        return KernelSettings.unpack(self.raw_settings())

    def apply(self, settings: KernelSettings) -> None:
        libbpf.update(self.maps["settings"], _U32.pack(0), settings.pack())

    def lists_changed(self) -> None:
        """Ends what the CPUs remember of the tables `local` and `sources`; to be called after every change."""
        settings = self.settings()
        self.apply(settings._replace(lists_generation=settings.lists_generation + 1))

    # attachments

    def put_attachment(self, at: Attachment) -> None:
        """Makes the kernel half judge what arrives on `at.ifindex`. Raises OSError when no cell is free."""
        cell = self._cell(at.ifindex)
        flags = program.ATTACHMENT_USED | (at.loopback and program.ATTACHMENT_LOOPBACK)
        flags |= at.mac_test and program.ATTACHMENT_MAC_TEST
        libbpf.update(
            self.maps["attachments"],
            _U32.pack(cell),
            program.ATTACHMENT.pack(0, 0, 0, at.ifindex, at.id, flags, at.mac.ljust(6, b"\0")[:6]),
        )

    def remove_attachment(self, ifindex: int) -> None:
        """Leaves the cell's ifindex unused; the probe order of others does not depend on it."""
        for cell, at in self._cells(ifindex):
            if at[3] == ifindex and at[5] & program.ATTACHMENT_USED:
                libbpf.update(self.maps["attachments"], _U32.pack(cell), bytes(program.ATTACHMENT.size))

    def _cell(self, ifindex: int) -> int:
        free = None
        for cell, at in self._cells(ifindex):
            used = at[5] & program.ATTACHMENT_USED
            if used and at[3] == ifindex:
                return cell
            if not used and free is None:
                free = cell
        if free is None:
            raise OSError(28, "no room for another interface", str(ifindex))
        return free

    def _cells(self, ifindex: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        for probe in range(program.ATTACHMENT_PROBES):
            cell = (ifindex + probe) % program.ATTACHMENT_CELLS
            value = libbpf.lookup(self.maps["attachments"], _U32.pack(cell), program.ATTACHMENT.size)
            assert value is not None
            yield cell, program.ATTACHMENT.unpack(value)

    # counters

    def raw_counters(self, attachment: int) -> bytes:
        """Every CPU's, as they lie in the map: to see whether any has changed."""
        value = libbpf.lookup(self.maps["counters"], _U32.pack(attachment), COUNTER_WORDS * 8 * self._cpus)
        assert value is not None
        return value

    def counters(self, attachment: int) -> Counters:
        words = struct.unpack(f"={COUNTER_WORDS * self._cpus}Q", self.raw_counters(attachment))
        return Counters.of(tuple(sum(words[i::COUNTER_WORDS]) for i in range(COUNTER_WORDS)))

    def clear_counters(self, attachment: int) -> None:
        libbpf.update(self.maps["counters"], _U32.pack(attachment), bytes(COUNTER_WORDS * 8 * self._cpus))

    # folds

    def take_folds(self, generation: int, attachments: range) -> list[Fold]:
        """Reads and empties the counters of a generation that is no longer written."""
        result: list[Fold] = []
        for level, name in (("source_port", "folds_by_source"), ("port", "folds_by_port")):
            result += self._take_keyed_folds(level, self.maps[name], generation)
        for attachment in attachments:
            result += self._take_rest(attachment, generation)
        return result

    @staticmethod
    def _take_keyed_folds(level: str, fd: int, generation: int) -> Iterator[Fold]:
        taken = []
        for key, value in libbpf.items(fd, program.FOLD_KEY.size, program.FOLD.size):
            saddr, dport, attachment, of = program.FOLD_KEY.unpack(key)
            if of == generation:
                taken.append((key, level, attachment, saddr, dport, value))
        for key, level, attachment, saddr, dport, value in taken:
            libbpf.delete(fd, key)
            count, since = program.FOLD.unpack(value)
            source = saddr if level == "source_port" else None
            yield Fold(level, attachment, source, int.from_bytes(dport, "big"), count, since)

    def _take_rest(self, attachment: int, generation: int) -> Iterator[Fold]:
        key, size = _U32.pack(attachment * 2 + generation), program.FOLD.size
        value = libbpf.lookup(self.maps["folds_by_interface"], key, size * self._cpus)
        assert value is not None
        parts = [program.FOLD.unpack_from(value, i * size) for i in range(self._cpus)]
        count = sum(part[0] for part in parts)
        if count:
            libbpf.update(self.maps["folds_by_interface"], key, bytes(size * self._cpus))
            yield Fold("interface", attachment, None, None, count, min(since for n, since in parts if n))

    # the challenge, and segments that no connection has

    def allow_looks(self, count: int) -> None:
        """How many bare acknowledgments may be looked at from now on."""
        value = libbpf.lookup(self.maps["looks"], _U32.pack(0), program.LOOKS.size)
        assert value is not None
        libbpf.update(self.maps["looks"], _U32.pack(0), program.LOOKS.pack(count, program.LOOKS.unpack(value)[1]))

    def turn_cookies(self) -> None:
        """A new key for the challenges to come; the answers to those of the key till now still count."""
        value = libbpf.lookup(self.maps["cookies"], _U32.pack(0), program.COOKIES.size)
        assert value is not None
        key, _, life = program.COOKIES.unpack(value)
        libbpf.update(
            self.maps["cookies"],
            _U32.pack(0),
            program.COOKIES.pack(os.urandom(_KEY_BYTES), key if life else os.urandom(_KEY_BYTES), life % _LIVES + 1),
        )

    # ports that configuration knows

    def put_ports(self, open_ports: Iterable[int], honeypots: Iterable[int]) -> None:
        bits = (_port_bits(open_ports), _port_bits(honeypots))
        libbpf.update(self.maps["known_ports"], _U32.pack(0), b"".join(bits))

    # trackers

    def tracked(self) -> int:
        """Sources with a tracker."""
        way = program.TRACKER_HEAD.size + 8 * event.SCAN_SLOTS
        return self._used("trackers", self.parameters.trackers // 4, way)

    def suspected(self) -> int:
        """Sources that are remembered for the closed ports that they met."""
        way = program.SUSPECT_HEAD.size + 8 * detection.SUSPECT_SLOTS
        return self._used("suspects", self.parameters.suspects // 4, way)

    def track(self, source: bytes) -> Track:
        head, ports = self._way("trackers", source, self.parameters.trackers // 4, program.TRACKER_HEAD)
        _, met = self._way("suspects", source, self.parameters.suspects // 4, program.SUSPECT_HEAD)
        return Track(head[3] if head else 0, ports, met)

    def _way(
        self, name: str, source: bytes, sets: int, head: struct.Struct
    ) -> tuple[tuple[Any, ...], tuple[Reached, ...]]:
        """What stands before the source's slots, and those in use; nothing where it has no place."""
        slots = event.SCAN_SLOTS if name == "trackers" else detection.SUSPECT_SLOTS
        way = head.size + 8 * slots
        index = (_hash(source, self.settings().seed) >> 32) % sets
        value = libbpf.lookup(self.maps[name], _U32.pack(index), 8 + 4 * way)
        assert value is not None
        for start in range(8, 8 + 4 * way, way):
            found = head.unpack_from(value, start)
            if found[0] == source and found[1]:
                words = struct.unpack_from(f"={found[-1]}Q", value, start + head.size)
                return found, tuple(map(Reached.of, words))
        return (), ()

    def block_of(self, source: bytes, now_ns: int) -> Optional[Block]:
        """The block in force of the source alone, or of its network."""
        found = (self.blocks.get(address) for address in (source, self.network_of(source).network))
        return next((b for b in found if b is not None and b.prefix.covers(source) and b.in_force(now_ns)), None)

    def network_of(self, source: bytes) -> Prefix:
        """network_of() of bpf/packetwatch.c."""
        bits = BITS if is_ipv4(source) else self.settings().network_bits
        return Prefix(mask(source, bits), bits)

    def offender(self, source: bytes) -> Optional[Offender]:
        """What the source's network has done; proven only where the source itself is."""
        value = libbpf.lookup(self.maps["offenders"], self.network_of(source).network, program.OFFENDER.size)
        if value is None:
            return None
        found = Offender(*program.OFFENDER.unpack(value))
        return found if found.prover == _hash(source, self.settings().seed) else found._replace(proven_ns=0)

    def put_network(self, cookie: int) -> None:
        """Clients are those of that network namespace's sockets; 0: of every one's."""
        libbpf.update(self.maps["network"], _U32.pack(0), struct.pack("=Q", cookie))

    def client(self, source: bytes) -> Optional[Client]:
        value = libbpf.lookup(self.maps["clients"], source, program.CLIENT.size)
        return Client(*program.CLIENT.unpack(value)) if value is not None else None

    def forget_offences(self, source: bytes) -> None:
        libbpf.delete(self.maps["offenders"], self.network_of(source).network)

    def _used(self, name: str, sets: int, way: int) -> int:
        """Above _SETS_READ sets every n-th stands for n: the loop waits for this."""
        step = max(1, sets // _SETS_READ)
        used = 0
        for _, value in libbpf.items_array(self.maps[name], range(0, sets, step), 8 + 4 * way):
            used += sum(value[8 + i * way + 16 : 8 + i * way + 24] != bytes(8) for i in range(4))
        return used * step


class LocalTable:
    """The local routing table's prefixes: destinations that are this host."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> set[Prefix]:
        return {_prefix(key) for key in libbpf.keys(self._fd, program.PREFIX_KEY.size)}

    def add(self, prefix: Prefix) -> None:
        libbpf.update(self._fd, _key(prefix), _U32.pack(1))

    def remove(self, prefix: Prefix) -> None:
        libbpf.delete(self._fd, _key(prefix))


class SourceTable:
    """Own, allowed and blocked prefixes, flattened (see rules.effective), and what marks them."""

    def __init__(self, fd: int, marks_fd: int) -> None:
        self._fd = fd
        self._marks_fd = marks_fd
        value = libbpf.lookup(marks_fd, _U32.pack(0), marks.SIZE)
        assert value is not None
        self._marks = marks.unpacked(value)

    def read(self) -> dict[Prefix, Source]:
        result = {}
        for key in libbpf.keys(self._fd, program.PREFIX_KEY.size):
            value = libbpf.lookup(self._fd, key, program.SOURCE.size)
            if value is not None:
                until, _, flags, _ = program.SOURCE.unpack(value)
                result[_prefix(key)] = Source(flags, until)
        return result

    def put(self, prefix: Prefix, source: Source) -> None:
        """Keeps the count of drops that the prefix has so far. Marks it first: no entry is ever without its marks."""
        self._mark(self._marks | marks.of(prefix))
        value = program.SOURCE.pack(source.until_ns, self.dropped(prefix), source.flags, prefix.length)
        libbpf.update(self._fd, _key(prefix), value)

    def remove(self, prefix: Prefix) -> None:
        libbpf.delete(self._fd, _key(prefix))

    def mark_only(self, prefixes: Iterable[Prefix]) -> None:
        """Takes back the marks of entries that are gone, which cost time alone; `prefixes` are all that stand."""
        self._mark(marks.of_all(prefixes))

    def _mark(self, wanted: int) -> None:
        if wanted != self._marks:
            libbpf.update(self._marks_fd, _U32.pack(0), marks.packed(wanted))
            self._marks = wanted

    def dropped(self, prefix: Prefix) -> int:
        """SYNs dropped for this very entry. An LPM lookup may answer with a shorter prefix: then 0."""
        value = libbpf.lookup(self._fd, _key(prefix), program.SOURCE.size)
        _, dropped, _, length = program.SOURCE.unpack(value) if value is not None else (0, 0, 0, prefix.length)
        return int(dropped) if length == prefix.length else 0


class SparedTable:
    """Networks that are not blocked as a whole, since somebody in them is allowed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self) -> set[bytes]:
        return set(libbpf.keys(self._fd, 16))

    def add(self, network: bytes) -> None:
        libbpf.update(self._fd, network, _U32.pack(1))

    def remove(self, network: bytes) -> None:
        libbpf.delete(self._fd, network)


class BlockTable:
    """Sources that scanned, and networks of those that did so again."""

    def __init__(self, fd: int, wide_fd: int) -> None:
        self._fd = fd
        self._wide_fd = wide_fd

    def read(self) -> Iterator[Block]:
        for key, value in libbpf.items(self._fd, 16, program.BLOCK.size):
            yield Block(key, *program.BLOCK.unpack(value))

    def get(self, address: bytes) -> Optional[Block]:
        value = libbpf.lookup(self._fd, address, program.BLOCK.size)
        return Block(address, *program.BLOCK.unpack(value)) if value is not None else None

    def put(self, block: Block) -> bool:
        """False where the source already has a block. Raises OSError (E2BIG) when the table is full."""
        try:
            libbpf.update(self._fd, block.address, program.BLOCK.pack(*block[1:]), libbpf.NOEXIST)
        except FileExistsError:
            return False
        if block.length < BITS:
            self._look_for_networks(True)
        return True

    def remove(self, prefix: Prefix) -> Optional[Block]:
        """The block that was removed."""
        block = self.get(prefix.network)
        if block is None or block.length != prefix.length:
            return None
        return block if libbpf.delete(self._fd, prefix.network) else None

    def settle(self) -> None:
        """Spares IPv6 the second look-up where no network is blocked. The kernel half blocks first and says so then:
        what it blocks meanwhile is seen here, or says so afterwards.
        """
        if any(block.length < BITS for block in self.read()):
            return
        self._look_for_networks(False)
        if any(block.length < BITS for block in self.read()):
            self._look_for_networks(True)

    def _look_for_networks(self, wanted: bool) -> None:
        libbpf.update(self._wide_fd, _U32.pack(0), _U64.pack(wanted))


def _hash(source: bytes, seed: int) -> int:
    """hash_of() of bpf/packetwatch.c."""
    mask = (1 << 64) - 1
    one, other = struct.unpack("=QQ", source)
    value: int = ((one ^ seed) * 0x9E3779B97F4A7C15) & mask
    value ^= value >> 29
    value = ((value ^ other) * 0xBF58476D1CE4E5B9) & mask
    value ^= value >> 32
    return (value * 0x94D049BB133111EB) & mask


def _port_bits(ports: Iterable[int]) -> bytes:
    bits = bytearray(program.PORT_BYTES)
    for port in ports:
        bits[port >> 3] |= 1 << (port & 7)
    return bytes(bits)


def _key(prefix: Prefix) -> bytes:
    return program.PREFIX_KEY.pack(prefix.length, prefix.network)


def _prefix(key: bytes) -> Prefix:
    length, network = program.PREFIX_KEY.unpack(key)
    return Prefix(network, length)
