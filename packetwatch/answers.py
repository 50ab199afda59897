# SPDX-License-Identifier: Apache-2.0
"""What the resident answers its clients: one method per operation of operations.py, as plain data.

Who may ask, and whether a request is well formed, is control.py's and operations.py's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

from packetwatch import __version__, address, clock, lists, rules, why
from packetwatch.changes import Changes
from packetwatch.metricnames import IGNORED, MALFORMED, MODES
from packetwatch.operations import FAILED, NOT_PERMITTED, USAGE, Refused, Request, prefix_of
from packetwatch.clock import SECOND
from packetwatch.resident import Resident

_REASON_MAX = 200
_EVER = -(1 << 63)  # what was entered before this boot has a CLOCK_BOOTTIME below 0
_DURATION_MAX_S = 3650 * 86400


class Answers:
    """Bound to one resident; called with a request."""

    def __init__(
        self,
        resident: Resident,
        changes: Changes,
        reload: Callable[[], Any],
        outside: Callable[[], Mapping[str, Any]],
    ) -> None:
        """reload: re-reads the configuration, raising Refused; outside: what status tells of the loop."""
        self._resident = resident
        self._changes = changes
        self._outside = outside
        self.table: dict[str, Callable[[Request], Any]] = {
            "status": lambda request: self.status(),
            "version": lambda request: {"version": __version__},
            "confirm": changes.confirm,
            "reload": lambda request: reload(),
            "mode": self.mode,
            "block.list": self.block_list,
            "block.add": self.block_add,
            "block.remove": self.block_remove,
            "why": self.why,
            "allow.list": lambda request: self.allow_list(),
            "allow.add": self.allow_add,
            "allow.remove": self.allow_remove,
        }

    def __call__(self, request: Request) -> Any:
        return self._changes.make(request, self.table[request["do"]])

    # status

    def status(self) -> dict[str, Any]:
        r = self._resident
        total, ailments, interfaces = r.ledger.total(), r.ailments(), self._interfaces()
        problems = [i["fault"] for i in interfaces if i["fault"]] + ailments
        problems += filter(None, [r.reload.error, r.save_fault, self._changes.fault])
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime_s": (clock.boot_ns() - r.started_ns) // SECOND,
            "since": clock.rfc3339(r.started_ns + clock.wall_offset_ns()),
            "mode": r.mode,
            "mode_origin": "set by hand" if r.mode_by_hand else "configuration",
            "protecting": r.mode == "enforce" and bool(r.attachments.by_index) and not ailments,
            "problems": problems,
            "pending": self._changes.status(),
            "interfaces": interfaces,
            "handshakes": r.handshakes.state(),
            "ledger": total.terms(),
            "by_interface": {name: account.terms() for name, account in r.ledger.accounts().items()},
            "scans": sum(total.counters.scans),
            "probes": sum(total.counters.probes),
            "acks": sum(total.counters.acks),
            "challenges": sum(total.counters.dropped[4:]),
            "proven": total.counters.proven,
            "blocks_frozen": total.counters.frozen,
            "blocked_now": r.blocked_now(),
            "would_drop": sum(total.counters.would_drop),
            "malformed": dict(zip(MALFORMED, total.counters.malformed)),
            "ignored": dict(zip(IGNORED, total.counters.ignored)),
            "tables": {name: {"entries": e, "capacity": c} for name, (e, c) in r.tables().items()},
            "sinks": [
                {"name": s.name, "written": s.written, "refused": s.refused, "last_error": s.last_error}
                for s in r.drain.sinks
            ],
            "config": {
                "ok": r.reload.ok,
                "loaded_at": clock.rfc3339(r.reload.wall_ns),
                "error": r.reload.error or None,
                "restart_needed": list(r.reload.pending),
                "differs": list(r.reload.differs),
            },
            "adopted": r.adopted,
            **self._outside(),
        }

    def _interfaces(self) -> list[dict[str, Any]]:
        attachments = self._resident.attachments
        by_name = {a.name: a for a in attachments.by_index.values()}
        rows = []
        for name in dict.fromkeys([*attachments.wanted, *by_name]):
            a = by_name.get(name)
            row: dict[str, Any] = {"name": name, "attached": a is not None, "fault": attachments.faults.get(name, "")}
            if a is not None:
                link_id, program_id = attachments.ids(a)
                row.update(mode=a.mode, seat=a.seat, ifindex=a.at.ifindex, link_id=link_id, program_id=program_id)
            rows.append(row)
        return rows

    # mode

    def mode(self, request: Request) -> dict[str, Any]:
        r, wanted, forgotten = self._resident, request.get("mode"), 0
        if wanted is not None:
            if wanted not in MODES:
                raise Refused(f"no such mode: {address.shown(wanted)}", "enforce or observe", USAGE)
            if wanted == "enforce" and r.mode == "observe" and not request.get("keep"):
                forgotten = r.clear_blocks("switched to enforce")
            r.set_mode(wanted)
        return {"mode": r.mode, "configured": r.settings.mode, "forgotten": forgotten}

    # blocks

    def block_list(self, request: Request) -> Iterator[dict[str, Any]]:
        observing, would = self._resident.mode == "observe", bool(request.get("would"))
        if would and not observing:
            raise Refused("the mode is enforce: it blocks, nothing is only noted", "packetwatch block list", FAILED)
        since_s = _seconds(request, "since_s")
        oldest = clock.boot_ns() - since_s * SECOND if since_s is not None else _EVER
        return self._blocked(oldest, would, observing)

    def _blocked(self, oldest_ns: int, would: bool, observing: bool) -> Iterator[dict[str, Any]]:
        r, now = self._resident, clock.boot_ns()
        for block in r.kernel.blocks.read():
            if block.in_force(now) and block.since_ns >= oldest_ns:
                source = address.prefix_text(block.prefix)
                told = r.drain.history.block(source)  # not of an earlier process, nor of the longest ago
                reason = told.reason if told and told.reason else "port scan"
                yield _row(source, reason, block.until_ns, block.since_ns, block.dropped, observing)
        for entry in r.lists.block_entries() if not would else ():
            manual = r.lists.manual_blocks.get(entry.prefix)
            since = manual.since_wall_ns - clock.wall_offset_ns() if manual else None
            if since is None or since >= oldest_ns:
                reason = manual.reason if manual and manual.reason else entry.reason
                dropped = r.kernel.sources.dropped(entry.prefix)
                yield _row(address.prefix_text(entry.prefix), reason, entry.until_ns, since, dropped, observing)

    def block_add(self, request: Request) -> dict[str, Any]:
        r, prefix = self._resident, prefix_of(request)
        seconds = _seconds(request, "duration_s")
        duration = r.settings.block_duration_ns if seconds is None else seconds * SECOND
        reason = re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", " ", request.get("reason") or "")[:_REASON_MAX]
        force = bool(request.get("force"))
        text, covered = address.prefix_text(prefix), r.lists.shielded(prefix)
        if covered and not force:
            names = ", ".join(f"{address.prefix_text(e.prefix)} ({e.reason})" for e in covered[:3])
            raise Refused(f"{text} covers what is always allowed: {names}", "--force blocks it anyway", NOT_PERMITTED)
        entry = lists.manual(prefix, duration, reason, force)
        try:
            r.put_manual_block(entry)
        except OSError as fault:
            raise Refused(f"{text} could not be blocked: {fault.strerror}", "packetwatch status shows the tables")
        by_hand = [e for e in r.lists.allow_entries() if e.reason in rules.BY_HAND]
        stays = rules.why_allowed(prefix.network, by_hand)
        return {
            "prefix": text,
            "until": _when(entry.until_wall_ns, 0),
            "note": f"{text} stays allowed: the allow list has it ({stays.reason})" if stays else None,
        }

    def block_remove(self, request: Request) -> dict[str, Any]:
        r = self._resident
        if request.get("all"):
            return {"removed": r.clear_blocks("removed by hand") + r.clear_manual_blocks()}
        prefix = prefix_of(request)
        removed = int(r.remove_manual_block(prefix))
        removed += r.unblock(prefix, "removed by hand")
        if removed:
            return {"removed": removed}
        text = address.prefix_text(prefix)
        if prefix in r.settings.block:
            raise Refused(f"{text} is blocked by the configuration", "take it out there and reload", NOT_PERMITTED)
        block = r.kernel.block_of(prefix.network, clock.boot_ns())
        if block is not None and block.prefix.length < prefix.length:
            name = address.prefix_text(block.prefix)
            raise Refused(f"{text} is blocked with its network {name}", f"packetwatch block remove {name}", FAILED)
        raise Refused(f"{text} is not blocked", "packetwatch block list", FAILED)

    def why(self, request: Request) -> dict[str, Any]:
        prefix = prefix_of(request)
        if prefix.length != address.BITS:
            raise Refused(f"{address.prefix_text(prefix)} is not one address", "packetwatch block list", USAGE)
        return why.why(self._resident, prefix.network)

    # allow

    def allow_list(self) -> list[dict[str, Any]]:
        entries = self._resident.lists.allow_entries()
        return [
            {"prefix": address.prefix_text(e.prefix), "reason": e.reason, **({"detail": e.detail} if e.detail else {})}
            for e in entries
        ]

    def allow_add(self, request: Request) -> dict[str, Any]:
        prefix = prefix_of(request)
        text = address.prefix_text(prefix)
        try:
            self._resident.put_manual_allow(lists.manual(prefix, None))
        except OSError as fault:
            raise Refused(f"{text} could not be allowed: {fault.strerror}", "packetwatch status shows the tables")
        return {"prefix": text}

    def allow_remove(self, request: Request) -> dict[str, Any]:
        r, prefix = self._resident, prefix_of(request)
        if r.remove_manual_allow(prefix):
            return {"removed": 1}
        text = address.prefix_text(prefix)
        entry = next((e for e in r.lists.allow_entries() if e.prefix == prefix), None)
        if entry is None:
            raise Refused(f"{text} is not on the allow list", "packetwatch allow list", FAILED)
        raise Refused(f"{text} is allowed: {entry.reason}", "that is a setting: change it and reload", NOT_PERMITTED)


def _row(prefix: str, reason: str, until_ns: int, since_ns: Optional[int], dropped: int, would: bool) -> dict[str, Any]:
    offset = clock.wall_offset_ns()
    since = clock.rfc3339(since_ns + offset) if since_ns is not None else None
    until = _when(until_ns, offset)
    return {"prefix": prefix, "reason": reason, "until": until, "since": since, "dropped": dropped, "would": would}


def _when(until_ns: int, offset_ns: int) -> str:
    return clock.rfc3339(until_ns + offset_ns) if until_ns else "forever"


def _seconds(request: Request, name: str) -> Optional[int]:
    value: Optional[int] = request.get(name)
    if value is not None and not 0 <= value <= _DURATION_MAX_S:
        raise Refused(f"{name} is not a number of seconds up to {_DURATION_MAX_S}", "", USAGE)
    return value
