# SPDX-License-Identifier: Apache-2.0
"""Changes that are rolled back unless they are confirmed in time; one at a time waits.

What is needed for the way back is on the disk before the change is made. What a change does is answers.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

from packetwatch import address, clock, pending
from packetwatch.clock import SECOND
from packetwatch.operations import FAILED, NOT_PERMITTED, OPERATIONS, USAGE, Refused, Request, prefix_of
from packetwatch.pending import Pending
from packetwatch.resident import Resident, tell
from packetwatch.settings import Settings
from packetwatch.sinks.text import local

CONFIRM = "packetwatch confirm"
REVERT = CONFIRM + " --revert"
_AGAIN_NS = 10 * SECOND  # until a roll back that failed is tried again

Act = Callable[[Request], Any]


class Changes:
    """Bound to one resident."""

    def __init__(self, resident: Resident, take_back: Callable[[Settings], None]) -> None:
        """take_back: puts the settings before a reload in force again, raising OSError."""
        self._resident = resident
        self._take_back = take_back
        self._waiting: Optional[Pending] = None
        self._offset_ns = 0  # wall time minus CLOCK_BOOTTIME when it was made: a clock step moves no end
        self._due_ns = 0  # CLOCK_BOOTTIME
        self._moved = False  # whether the way back has ended or changed a block
        self._late = False  # its end came while no process was there
        self._last = ""  # what was rolled back last, for whoever confirms too late
        self.fault = ""  #: why it could not be rolled back; it is tried again

    def status(self) -> Optional[dict[str, str]]:
        """What waits, and until when."""
        waiting = self._waiting
        if waiting is None:
            return None
        since, until = (clock.rfc3339(ns) for ns in (waiting.since_ns, waiting.until_ns))
        return {"change": waiting.words, "since": since, "until": until, "confirm": CONFIRM, "revert": REVERT}

    @property
    def due_ns(self) -> int:
        """CLOCK_BOOTTIME of the way back; 0: nothing waits."""
        return self._due_ns if self._waiting is not None else 0

    # changes

    def make(self, request: Request, act: Act) -> Any:
        """Does what is asked for, with or without a confirmation to wait for. Raises Refused."""
        if "confirm_s" in request:
            return self._make_waiting(request, act)
        result, waiting = act(request), self._waiting
        if waiting is None or not OPERATIONS[request["do"]].changes:
            return result
        if waiting.do == request["do"] == "reload":
            return {**result, "pending": self.status()}
        if pending.replaces(request, prefix_of(request) if "prefix" in request else None, waiting):
            self._forget()
            tell(f"{waiting.words}: nothing to roll back any more, it was changed by hand")
            return {**result, "settled": waiting.words}
        return result

    def _make_waiting(self, request: Request, act: Act) -> Any:
        r, mode = self._resident, self._resident.mode
        waiting = self._before(request)
        self._keep(waiting)
        try:
            result = act(request)
        except BaseException:
            self._forget()
            raise
        if not pending.has_changed(waiting, mode, r.mode, result):
            self._forget()
        else:
            tell(f"{waiting.words}: rolled back at {clock.rfc3339(waiting.until_ns)} unless it is confirmed")
        return {**result, "pending": self.status()}

    def _before(self, request: Request) -> Pending:
        """What a change would have to be rolled back to. Raises Refused where it cannot wait."""
        r, do, seconds = self._resident, request["do"], request["confirm_s"]
        if not pending.LEAST_S <= seconds <= pending.MOST_S:
            raise Refused(f"confirm_s is not from {pending.LEAST_S} to {pending.MOST_S} seconds", "", USAGE)
        if do == "mode" and request.get("mode") != "enforce":
            raise Refused("only a change to enforce can wait for a confirmation", "leave confirm_s out", USAGE)
        self._refuse_second()
        offset = clock.wall_offset_ns()
        since = clock.boot_ns() + offset
        waiting = Pending(do, since, since + seconds * SECOND)
        if do == "reload":
            return waiting._replace(settings=r.settings)
        if do == "mode":
            return waiting._replace(mode=r.mode_by_hand)
        prefix = prefix_of(request)
        entries = r.lists.saved_blocks(offset) if do == "block.add" else tuple(r.lists.manual_allow.values())
        return waiting._replace(prefix=prefix, entry=next((e for e in entries if e.prefix == prefix), None))

    def _refuse_second(self) -> None:
        if self._waiting is not None:
            until = local(self._waiting.until_ns)
            message = f"{self._waiting.words} waits for its confirmation until {until}, and one change at a time can"
            raise Refused(message, f"{CONFIRM}, or {REVERT}", NOT_PERMITTED)

    def _keep(self, waiting: Pending) -> None:
        directory = self._resident.directory
        try:
            directory.save_as(pending.FILE, pending.encode(waiting))
        except OSError as fault:
            message = f"{waiting.words} was not done: the way back cannot be kept in {directory.path}: {fault.strerror}"
            raise Refused(message, "make room there, or leave --confirm out") from None
        self._wait(waiting)

    def _wait(self, waiting: Pending) -> None:
        self._waiting, self._offset_ns = waiting, clock.wall_offset_ns()
        self._moved, self._last = False, ""
        self._due_ns = waiting.until_boot_ns(self._offset_ns, clock.boot_ns())

    # confirmation

    def confirm(self, request: Request) -> dict[str, Any]:
        """Ends the wait: for good, or at once with the way back. Raises Refused."""
        self.expire(clock.boot_ns())
        waiting, revert = self._waiting, bool(request.get("revert"))
        if waiting is None:
            raise Refused("nothing waits for a confirmation" + (f": {self._last}" if self._last else ""), "", FAILED)
        try:
            self._end(waiting, revert)
        except OSError as fault:
            what = "rolled back" if revert else "confirmed"
            raise Refused(f"{waiting.words} could not be {what}: {fault.strerror}", "packetwatch status") from None
        return {"change": waiting.words, "reverted": revert}

    def _end(self, waiting: Pending, revert: bool) -> None:
        if revert:
            self._roll_back(waiting, "rolled back by hand")
        else:
            self._resident.directory.remove(pending.FILE)  # first: else the next start would roll it back
            self._forget()
            tell(f"{waiting.words}: confirmed")

    def expire(self, now_ns: int) -> None:
        """Once a second: rolls back what was not confirmed; what cannot be rolled back is told of, and tried again."""
        if self._waiting is None or now_ns < self._due_ns:
            return
        try:
            self._roll_back(self._waiting, "not confirmed")
        except OSError as error:
            self._due_ns = now_ns + _AGAIN_NS
            fault = f"{self._waiting.words} was not confirmed and cannot be rolled back: {error.strerror or error}"
            if fault != self.fault:
                tell(fault)
            self.fault = fault

    # a start

    def restore(self, waiting: Optional[Pending]) -> bool:
        """What an earlier process left, before the lists are applied; whether it is over.

        Then settings are the caller's, the rest is as before the change already, and settle() is due.
        """
        if waiting is None:
            return False
        self._wait(waiting)
        self._late = self._due_ns <= clock.boot_ns()
        if self._late:
            self._set_back(waiting)
        return self._late

    def settle(self) -> None:
        """After the start, when the state directory is ours."""
        if self._late and self._waiting is not None:
            self._forgive(self._waiting)
            self._close(self._waiting, "not confirmed")
        self._late = False

    # the way back

    def _roll_back(self, waiting: Pending, reason: str) -> None:
        """Raises OSError, and it waits on; doing it once more does no harm."""
        self._set_back(waiting)
        if waiting.settings is not None:
            self._take_back(waiting.settings)
            self._forgive(waiting)
        elif waiting.do == "mode":
            self._resident.apply_settings()
        else:
            self._resident.apply_lists()
        self._close(waiting, reason)

    def _forgive(self, waiting: Pending) -> None:
        """Ends what settings that are gone have blocked; of blocks from before a reboot nobody knows the beginning."""
        since = waiting.since_ns - self._offset_ns
        if waiting.settings is not None and since > 0:
            self._resident.forgive(since)

    def _set_back(self, waiting: Pending) -> None:
        """Lists and mode as they were, not yet in the kernel half."""
        r, entry = self._resident, waiting.entry
        if waiting.do == "mode":
            r.mode_by_hand = waiting.mode
        elif waiting.do == "allow.remove" and entry is not None:
            r.lists.manual_allow[entry.prefix] = entry
        elif waiting.do == "block.add" and waiting.prefix is not None:
            self._moved |= r.lists.manual_blocks.pop(waiting.prefix, None) is not None
            now = clock.boot_ns() + self._offset_ns
            if entry is not None and (not entry.until_wall_ns or entry.until_wall_ns > now):
                r.lists.put_block(entry, self._offset_ns)
                self._moved = True

    def _close(self, waiting: Pending, reason: str) -> None:
        r = self._resident
        r.save()
        self._record(waiting, reason)
        self._last = f"{waiting.words} was rolled back at {local(clock.boot_ns() + clock.wall_offset_ns())}"
        self._forget()
        tell(f"{waiting.words}: {reason}" + (", rolled back" if reason == "not confirmed" else ""))

    def _record(self, waiting: Pending, reason: str) -> None:
        r = self._resident
        if waiting.do == "mode":
            message = f"{waiting.words}: {reason}; the mode before is in force again"
            r.say("start", mode=r.mode, reason=reason, message=message)
        if waiting.do != "block.add" or waiting.prefix is None or not self._moved:
            return
        source, shown = address.prefix_text(waiting.prefix), r.shown_mode()
        back = r.lists.until(waiting.prefix)
        if back is None:
            r.say("unblock", source=source, reason=reason, mode=shown)
        else:
            r.say("block", source=source, until_ns=back, reason=reason, mode=shown, message="back to what it was")

    def _forget(self) -> None:
        self._waiting, self.fault = None, ""
        try:
            self._resident.directory.remove(pending.FILE)
        except OSError as error:
            path = self._resident.directory.path / pending.FILE
            tell(f"{path}: {error.strerror}; remove it, else the next start rolls the change back")
