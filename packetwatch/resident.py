# SPDX-License-Identifier: Apache-2.0
"""The resident's state and what it does to it: settings, interfaces, lists, blocks, folds, losses.

Every method is a step of the loop in daemon.py or the work of a command in operations.py.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, NamedTuple, Optional

from packetwatch import address, attachments, budget, clock, handover, handshakes, interfaces, lists, netlink
from packetwatch import program, state, thresholds
from packetwatch.address import Prefix
from packetwatch.drain import Drain
from packetwatch.event import BLOCKED, Alert, Notice
from packetwatch.handover import Opened
from packetwatch.kernel import Block, Kernel
from packetwatch.clock import SECOND
from packetwatch.reports import Drops, Folds, Losses, Storms
from packetwatch.settings import Settings
from packetwatch.sinks.ledger import Ledger
from packetwatch.sinks.records import clean
from packetwatch.servers import Server
from packetwatch.store import Store

_SETTLE_S = 0.05  # in which a packet that met the old settings or program is through
_SAVING_RATE = 1  # single records a second and interface while the day's size is used up
_SAVING_SUMMARY_NS = 60 * SECOND
_QUIET_AFTER_NS = 3 * SECOND  # summaries are out by then
_REST_NS = 2 * SECOND  # between two looks at a host where nothing happens
_LOOK_EVERY_NS = 10 * SECOND
_SAVE_EVERY_NS = 5 * SECOND
_COOKIES_NS = 600 * SECOND  # life of a key
_LOOKS = 1000  # a second, at acknowledgments that may have no connection
_SAVING = "log.daily_size is used up: connections are summed per minute until there is room again"
_SAVED = "log.daily_size has room again: connections are recorded one by one"


def tell(text: str) -> None:
    """A line for whoever runs the service; records go elsewhere."""
    try:
        print(f"packetwatch: {clean(text)}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads it; that must not stop the loop


class Reload(NamedTuple):
    """How the last attempt to take settings ended."""

    ok: bool
    wall_ns: int  #: of the last that succeeded
    error: str = ""
    pending: tuple[str, ...] = ()  #: keys that need a restart
    differs: tuple[str, ...] = ()  #: keys whose values are not those of the files, after a reload that was rolled back


class Resident:
    """One per process; owns the kernel half, the lists and the state file."""

    def __init__(self, settings: Settings, opened: Opened, store: Store, directory: state.Directory) -> None:
        self.settings = settings
        self.kernel = opened.kernel
        self.digest = opened.digest
        self.adopted = opened.adopted
        begun = bool(self.kernel.settings().seed)  # else a start was killed before it put anything in
        self._has_blocks = begun or opened.previous is not None  # newer ones than the state file
        self.memory = opened.memory
        self.directory = directory
        self.store = store
        self.started_ns = clock.boot_ns()
        self.reload = Reload(True, time.time_ns())
        self.mode_by_hand: Optional[str] = None
        self.ledger = Ledger(self.kernel.counters)
        note = self.memory.read()
        if note.get("layout") != program.LAYOUT:
            note = {}
        self.ledger.restore(note.get("ledger", {}))
        if not opened.adopted:
            self.ledger.names = {}
        self._rule_names = thresholds.names_in_force(self.kernel)
        self.drain = Drain(self.kernel, self.ledger, self._on_alert, self._name_rule)
        self.drain.refused.update(note.get("refused", {}))
        self.lists = lists.Lists(self.kernel, settings)
        self.attachments = attachments.Attachments(self.kernel, store, self.ledger)
        self.attachments.last_id = note.get("last_attachment", -1)
        self.handshakes = handshakes.Handshakes(self.kernel, store, opened.refused)
        self.budget = budget.Budget(settings.log_daily_size)
        self.blocks_by_hand: int = note.get("blocks_by_hand", 0)
        self.links: list[netlink.Link] = []
        self.servers: frozenset[Server] = frozenset()  #: for the next look around
        self.unsaved = False
        self.save_fault = ""  #: why the state is not on the disk; it is tried again
        self._seed = self.kernel.settings().seed or int.from_bytes(os.urandom(8), "little")
        self.folds = Folds(self.kernel, self.ledger, self.say, opened.adopted)
        self.drops = Drops(self.kernel, self.ledger, self.say, self.started_ns)
        self.losses = Losses(self.say, note.get("losses", {}))
        self.storms = Storms(self.say, self.started_ns, self.ledger.total().counters.frozen)
        self._saved_ns = 0
        self._next_end_ns = 1  # CLOCK_BOOTTIME of the next end of a block; 0: none; 1: look
        self._ended: set[bytes] = set()
        self._spent = 0
        self._counters: Any = None  # as they were a second ago
        self._quiet_ns = self._looked_ns = 0
        self._cookies_due_ns = 0
        self._tracked_count, self._tracked_due_ns = (0, 0), 0

    # settings

    @property
    def mode(self) -> str:
        return self.mode_by_hand or self.settings.mode

    def shown_mode(self) -> Optional[str]:
        """For records: told where it is not the usual one."""
        return "observe" if self.mode == "observe" else None

    def apply_settings(self) -> None:
        """Puts what the kernel half reads in force; takes effect with the next packet."""
        s = self.settings
        rate = _SAVING_RATE if self.budget.saving else s.log_fold_rate
        interval = SECOND // rate if rate else 0
        frames = self.kernel.parameters.ring_bytes // self.kernel.connections.frame
        per_cpu = max(1, frames // (4 * (os.cpu_count() or 1)))
        names = thresholds.names(s)
        if names != self._rule_names and self.drain.sinks:
            self.drain.run()  # what the rules till now have found goes under their names
        self._rule_names = names
        narrowed = self.kernel.settings().network_bits != s.block_ipv6_prefix
        thresholds.put_ports(self.kernel, s)
        self.kernel.apply(
            thresholds.of(s)._replace(
                fold_interval_ns=interval,
                fold_burst_ns=interval * (rate if self.budget.saving else s.log_fold_burst),
                seed=self._seed,
                lists_generation=max(1, self.kernel.settings().lists_generation),
                wakeup_mask=(1 << (per_cpu.bit_length() - 1)) - 1,
                observe=int(self.mode == "observe"),
                generation=self.folds.generation,
            )
        )
        if narrowed:
            self._end_blocks_of_other_networks()

    def _name_rule(self, number: int) -> str:
        return thresholds.name_rule(self._rule_names, number)

    def restore(self, saved: state.Saved) -> None:
        """What the state file holds; blocks only where the kernel half has not kept them itself."""
        offset, now = clock.wall_offset_ns(), clock.boot_ns()
        self.mode_by_hand = saved.mode
        self.lists.manual_allow = {m.prefix: m for m in saved.manual_allow}
        for entry in saved.manual_blocks:
            self.lists.put_block(entry, offset)
        for b in saved.blocks if not self._has_blocks else ():
            block = Block(b.address, b.until_boot_ns(offset, now), max(0, b.since_wall_ns - offset), 0, 0, b.length)
            if block.in_force(now):
                self._put(block)

    def _end_blocks_of_other_networks(self) -> None:
        """Those that the kernel half does not look for any more."""
        for block in list(self.kernel.blocks.read()):
            if block.length not in (address.BITS, self.settings.block_ipv6_prefix):
                self.unblock(block.prefix, "block.ipv6_prefix has changed")

    def _put(self, block: Block) -> None:
        try:
            self.kernel.blocks.put(block)
        except OSError:
            self.losses.refused += 1

    # interfaces and lists

    def prepare(self, opened: Opened, hosts: set[bytes]) -> None:
        """Lists first, then what was attached, then what is wanted: no packet meets a half-filled kernel half."""
        self.links = netlink.links()
        self.lists.host = self._host(netlink.default_routes(), hosts)
        self.apply_lists()
        self.attachments.adopt(opened.links, self.links)
        previous = opened.previous[1] if opened.previous else None
        links = {a.link: self.kernel.prog for a in self.attachments.by_index.values()}
        handover.replace(self.kernel, previous, {**links, **self.handshakes.adopt(opened.handshakes)})
        self.handshakes.attach()
        if self.handshakes.fault:
            tell(f"handshakes are not seen, so no source counts as established: {self.handshakes.fault}")
        if opened.previous is not None:
            self._take_over(opened, *opened.previous)
            self._end_copied_blocks()
        self.look_around(hosts)

    def _end_copied_blocks(self) -> None:
        """What the kernel half before has blocked, and these lists and settings would not."""
        self._end_blocks_of_other_networks()
        for block in list(self.kernel.blocks.read()):
            if self.lists.reaches(block.prefix):
                self.unblock(block.prefix, "allowed")

    def _take_over(self, opened: Opened, digest: str, previous: Kernel) -> None:
        """What the kernel half before has counted and recorded goes on under its interfaces' names."""
        time.sleep(_SETTLE_S)
        names = {int(k): v for k, v in opened.memory.read().get("ledger", {}).get("names", {}).items()}
        for attachment, name in {**names, **self.ledger.names}.items():
            self.ledger.absorb(name, previous.counters(attachment))
        for generation in (0, 1):
            self.folds.summarise(previous, generation)
        self.drain.run_on(previous)
        handover.forget(digest, previous, self.store)

    def _host(self, routes: list[netlink.DefaultRoute], hosts: set[bytes]) -> lists.Host:
        gateways = interfaces.gateways(routes)
        return lists.Host(frozenset(netlink.local_prefixes()), frozenset(gateways), frozenset(hosts), self.servers)

    def look_around(self, hosts: set[bytes]) -> None:
        """Reads interfaces and routes anew and follows; `hosts` are the remote hosts of sessions."""
        self.links = netlink.links()
        routes = netlink.default_routes()
        host = self._host(routes, hosts)
        if host != self.lists.host:
            before, self.lists.host = self.lists.host, host
            try:
                self.apply_lists()
            except OSError:
                self.lists.host = before  # so that it is tried again
                raise
        wanted = interfaces.wanted(self.settings.interface, self.links, routes)
        for change in self.attachments.follow(wanted, self.links, self.settings.xdp_mode):
            self.say(change.event_type, in_iface=change.interface, message=change.text, mode=self.mode)
        for text in self.attachments.news():
            tell(text)

    def apply_lists(self) -> None:
        """Allow beats block: who is allowed from now on loses the block that a scan earned."""
        allowed = self.lists.apply()
        for block in list(self.kernel.blocks.read()) if allowed else ():
            near = any(prefix.covers(block.prefix) or block.prefix.covers(prefix) for prefix in allowed)
            if near and self.lists.reaches(block.prefix):
                self.unblock(block.prefix, "allowed")

    def put_manual_block(self, entry: state.Manual) -> None:
        """Raises OSError when the kernel's table is full."""
        before = dict(self.lists.manual_blocks)
        until = self.lists.put_block(entry, clock.wall_offset_ns())
        try:
            self.apply_lists()
        except OSError:
            self.lists.manual_blocks = before
            raise
        self.blocks_by_hand += 1
        self.save()
        source = address.prefix_text(entry.prefix)
        reason = entry.reason or "by hand"
        self.say("block", source=source, until_ns=until, reason=reason, mode=self.shown_mode())

    def remove_manual_block(self, prefix: Prefix) -> bool:
        if self.lists.manual_blocks.pop(prefix, None) is None:
            return False
        self.apply_lists()
        self.save()
        self.say("unblock", source=address.prefix_text(prefix), reason="removed by hand", mode=self.shown_mode())
        return True

    def clear_manual_blocks(self) -> int:
        return sum(self.remove_manual_block(prefix) for prefix in list(self.lists.manual_blocks))

    def clear_blocks(self, reason: str) -> int:
        """Ends every block that a scan earned."""
        return sum(self.unblock(block.prefix, reason) for block in list(self.kernel.blocks.read()))

    def forgive(self, since_ns: int) -> None:
        """Ends every block that was earned since then (CLOCK_BOOTTIME), as if it had not been."""
        self.drain.run()
        for block in list(self.kernel.blocks.read()):
            if block.since_ns >= since_ns and self.unblock(block.prefix, "not confirmed"):
                self.kernel.forget_offences(block.address)

    def put_manual_allow(self, entry: state.Manual) -> None:
        """Raises OSError when the kernel's table is full."""
        before = dict(self.lists.manual_allow)
        self.lists.manual_allow[entry.prefix] = entry
        try:
            self.apply_lists()
        except OSError:
            self.lists.manual_allow = before
            raise
        self.save()

    def remove_manual_allow(self, prefix: Prefix) -> bool:
        if self.lists.manual_allow.pop(prefix, None) is None:
            return False
        self.apply_lists()
        self.save()
        return True

    def set_mode(self, mode: str) -> None:
        """By hand; stays over reload, restart and reboot until the configured one is set again."""
        if mode == self.mode:
            return
        self.mode_by_hand = mode if mode != self.settings.mode else None
        self.apply_settings()
        self.save()
        self.say("start", mode=mode, message="mode set by hand")

    def blocked_now(self) -> int:
        """Sources and prefixes."""
        now = clock.boot_ns()
        return sum(1 for block in self.kernel.blocks.read() if block.in_force(now)) + self.lists.blocked()

    def tables(self) -> dict[str, tuple[int, int]]:
        """Name -> (entries, capacity). Trackers are never freed, only replaced: their fill is read once a minute."""
        local, sources = self.lists.sizes()
        parameters = self.kernel.parameters
        return {
            "trackers": (self._tracked()[0], parameters.trackers),
            "suspects": (self._tracked()[1], parameters.suspects),
            "blocks": (sum(1 for _ in self.kernel.blocks.read()), parameters.blocks),
            "local": (local, program.PREFIXES),
            "sources": (sources, program.PREFIXES),
        }

    def _tracked(self) -> tuple[int, int]:
        if clock.boot_ns() >= self._tracked_due_ns:
            self._tracked_count = self.kernel.tracked(), self.kernel.suspected()
            self._tracked_due_ns = clock.boot_ns() + 60 * SECOND
        return self._tracked_count

    # records

    def say(self, event_type: str, **fields: Any) -> None:
        fields.setdefault("boot_ns", clock.boot_ns())
        self.drain.say(Notice(event_type=event_type, **fields))

    def _on_alert(self, alert: Alert) -> None:
        if alert.block != BLOCKED:
            return
        self.unsaved = True
        if alert.until_ns and (not self._next_end_ns or alert.until_ns < self._next_end_ns):
            self._next_end_ns = alert.until_ns
        network, length = alert.blocked
        if network in self._ended:  # our sweep may have hit the new block instead of the old one
            self._put(Block(network, alert.until_ns, alert.boot_ns, 0, alert.attachment, length))
        if self.lists.reaches(alert.blocked):  # since a moment ago: the kernel half did not know yet
            self.unblock(alert.blocked, "allowed")

    # housekeeping

    def next_look_ns(self, now: int, at_most_ns: int) -> int:
        """When the next housekeeping is due: in a second, or a little later where nothing has happened for a while."""
        if now < self._quiet_ns:
            return now + SECOND
        rested = now + max(SECOND, min(_REST_NS, at_most_ns))
        ends = (self._next_end_ns or rested, self.lists.next_end_ns() or rested)
        return max(now + SECOND, min(rested, *ends))

    def housekeeping(self) -> None:
        now = clock.boot_ns()
        self._tell_ends(now)
        if now >= self._cookies_due_ns:
            self.kernel.turn_cookies()
            self._cookies_due_ns = now + _COOKIES_NS
        if self._is_busy(now):
            self.kernel.allow_looks(_LOOKS)
            total, mode = self.ledger.total(), self.shown_mode()
            self.folds.tell(now, total, _SAVING_SUMMARY_NS if self.budget.saving else SECOND)
            self.drops.tell(now, total, mode)
            self.losses.tell(now, total, self.drain)
            self.storms.tell(now, total, mode)
            self._note()
            self._save_space(now)
        if self.unsaved and now - self._saved_ns >= _SAVE_EVERY_NS:
            self.save()

    def _is_busy(self, now: int) -> bool:
        """Whether a counter has moved a moment ago. Where none has, a look every ten seconds is enough."""
        counters = [self.kernel.raw_counters(number) for number in self.ledger.names], dict(self.drain.refused)
        if counters != self._counters:
            self._counters, self._quiet_ns = counters, now + _QUIET_AFTER_NS
        if now < self._quiet_ns:
            return True
        if now < self._looked_ns + _LOOK_EVERY_NS:
            return False
        self._looked_ns = now
        return True

    def _tell_ends(self, now: int) -> None:
        for manual in self.lists.expired(now):
            self.say("unblock", source=address.prefix_text(manual.prefix), reason="expired", mode=self.shown_mode())
            self.apply_lists()
            self.unsaved = True
        self._ended = set()
        if not self._next_end_ns or now < self._next_end_ns:
            return
        self._next_end_ns = 0
        for block in list(self.kernel.blocks.read()):
            if block.in_force(now):
                if block.until_ns and (not self._next_end_ns or block.until_ns < self._next_end_ns):
                    self._next_end_ns = block.until_ns
            else:
                self._ended.add(block.address)
                self.unblock(block.prefix, "expired")

    def unblock(self, source: Prefix, reason: str) -> bool:
        """Ends a block that a scan earned; False where there is none."""
        block = self.kernel.blocks.remove(source)
        if block is None:
            return False
        if block.length < address.BITS:
            self.kernel.blocks.settle()
        self.drops.end(block, self.shown_mode())
        self.say("unblock", source=address.prefix_text(source), reason=reason, mode=self.shown_mode())
        self.unsaved = True
        return True

    def _save_space(self, now: int) -> None:
        spent = sum(sink.bytes_written for sink in self.drain.sinks)
        was = self.budget.saving
        if self.budget.spend(spent - self._spent, now) != was:
            self.apply_settings()
            tell(_SAVING if self.budget.saving else _SAVED)
        self._spent = spent

    def _note(self) -> None:
        self.memory.write(
            {
                "layout": program.LAYOUT,
                "ledger": self.ledger.note(),
                "losses": self.losses.told,
                "refused": self.drain.refused,
                "blocks_by_hand": self.blocks_by_hand,
                "last_attachment": self.attachments.last_id,
            }
        )

    def save(self) -> None:
        """Writes the state file, at once after what people changed; a disk that refuses is told of, and tried again."""
        self._saved_ns = clock.boot_ns()
        offset = clock.wall_offset_ns()
        blocks = tuple(
            state.SavedBlock(b.address, b.until_ns + offset if b.until_ns else 0, max(0, b.since_ns + offset), b.length)
            for b in self.kernel.blocks.read()
        )
        saved = state.Saved(
            blocks, self.lists.saved_blocks(offset), tuple(self.lists.manual_allow.values()), self.mode_by_hand
        )
        try:
            self.directory.save(saved)
            fault = ""
        except OSError as error:
            fault = f"blocks and lists cannot be saved in {self.directory.path}: {error.strerror}"
        self.unsaved = bool(fault)
        if fault != self.save_fault:
            tell(fault or f"blocks and lists are saved again in {self.directory.path}")
            self.save_fault = fault

    # health

    def ailments(self) -> list[str]:
        """What keeps the data from flowing: the watchdog is not fed while there is any."""
        found = []
        try:
            self.kernel.raw_settings()
            broken = self.attachments.broken({link.index for link in self.links})
        except OSError as fault:
            return [f"the maps cannot be read: {fault.strerror}"]
        found += [f"{name}: the program was taken off the interface" for name in broken]
        if self.kernel.connections.backlog() and not self.kernel.connections.peek(1):
            found.append("the ring of connections does not move")
        return found

    # the end

    def finish(self) -> None:
        """Everything counted is told. Whether the interfaces are let go is the store's: see daemon.py."""
        for _ in range(2):
            self.folds.summarise(self.kernel, 1 - self.folds.generation)
            self.folds.turn()
            time.sleep(_SETTLE_S)
        while self.drain.run():
            pass
        self.drain.end_moments()
        self.losses.tell(clock.boot_ns(), self.ledger.total(), self.drain, final=True)
        self.save()
        self._note()
        self.say("stop", mode=self.shown_mode())
        self.drain.run()
        untold = self.drain.close()
        if untold:
            tell(f"{untold} records could not be written any more")
