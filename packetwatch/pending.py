# SPDX-License-Identifier: Apache-2.0
"""A change that waits for its confirmation: what was there before it, until when it waits, and how a file holds it.

No I/O, no clock. Not for making changes or rolling them back: see changes.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

from packetwatch import address, configfiles
from packetwatch.address import Prefix
from packetwatch.config import ConfigError
from packetwatch.operations import Request
from packetwatch.settings import BY_KEY, ROWS, Settings, dump
from packetwatch.state import Manual, manual, manual_row, wall_time

FILE = "pending.json"  #: in the state directory
VERSION = 1
LEAST_S, MOST_S = 1, 3600
_SECOND = 1_000_000_000


class Pending(NamedTuple):
    """A change by its operation, and of what was before it that which belongs to it. Times are wall time in ns."""

    do: str
    since_ns: int
    until_ns: int
    prefix: Optional[Prefix] = None  #: of block.add and allow.remove
    entry: Optional[Manual] = None  #: that the prefix had in this list
    mode: Optional[str] = None  #: set by hand before
    settings: Optional[Settings] = None  #: in force before a reload

    @property
    def words(self) -> str:
        """As it was typed."""
        return WORDS[self.do] + (f" {address.prefix_text(self.prefix)}" if self.prefix else "")

    def until_boot_ns(self, wall_offset_ns: int, now_ns: int) -> int:
        """Its end as CLOCK_BOOTTIME. A clock that is behind does not prolong it."""
        return max(1, min(self.until_ns - wall_offset_ns, now_ns + self.until_ns - self.since_ns))


#: The operations that can wait, in the words of the command line.
WORDS = {"block.add": "block add", "allow.remove": "allow remove", "mode": "mode enforce", "reload": "reload"}


def replaces(request: Request, prefix: Optional[Prefix], waiting: Pending) -> bool:
    """Whether a change made for good is of the very entry or mode that waits: nothing is left to roll back then.

    A reload never is: whoever loads the files once more, as Puppet does, has not said that he can still get in.
    """
    do = request["do"]
    if waiting.do == "block.add":
        return do in ("block.add", "block.remove") and (prefix == waiting.prefix or bool(request.get("all")))
    if waiting.do == "allow.remove":
        return bool(do == "allow.add" and prefix == waiting.prefix)
    return bool(waiting.do == "mode" and do == "mode" and request.get("mode") == "observe")


def has_changed(waiting: Pending, mode_before: str, mode: str, answer: Mapping[str, Any]) -> bool:
    """Whether there is anything to roll back, by the answer of the operation."""
    if waiting.do == "mode":
        return mode != mode_before
    return waiting.do != "reload" or any(BY_KEY[key].live for key in answer["changed"])


def rolled_back(files: Settings, before: Settings) -> Settings:
    """What a reload puts in force as it was before; what needs a restart as the files say: a restart takes that."""
    live = {row.field: getattr(before, row.field) for row in ROWS if row.live}
    return dataclasses.replace(files, **live)


def encode(waiting: Pending) -> bytes:
    return json.dumps(
        {
            "version": VERSION,
            "do": waiting.do,
            "since": waiting.since_ns,
            "until": waiting.until_ns,
            "prefix": address.prefix_text(waiting.prefix) if waiting.prefix else None,
            "entry": manual_row(waiting.entry) if waiting.entry else None,
            "mode": waiting.mode,
            "settings": dump(waiting.settings) if waiting.settings else None,
        }
    ).encode()


def decode(text: bytes) -> Pending:
    """Raises ValueError for what `encode` could not have written; settings of a newer version lose what is unknown."""
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']!r}, this Packetwatch knows {VERSION}")
        waiting = Pending(
            data["do"],
            wall_time(data["since"]),
            wall_time(data["until"]),
            None if data["prefix"] is None else address.parse_prefix(data["prefix"]),
            None if data["entry"] is None else manual(data["entry"]),
            data["mode"],
            None if data["settings"] is None else _settings(data["settings"]),
        )
        _check(waiting)
        return waiting
    except (KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise ValueError(f"no pending change: {fault!r}") from None


def _settings(text: str) -> Settings:
    try:
        return configfiles.kept(FILE, text)[0]
    except ConfigError as error:
        raise ValueError(f"faulty settings: {error.faults[0]}") from None


def _check(waiting: Pending) -> None:
    do, prefix, entry = waiting.do, waiting.prefix, waiting.entry
    if do not in WORDS:
        raise ValueError("an unknown change")
    if not LEAST_S * _SECOND <= waiting.until_ns - waiting.since_ns <= MOST_S * _SECOND:
        raise ValueError("an end that cannot be")
    if (prefix is not None) != (do in ("block.add", "allow.remove")) or (do == "allow.remove" and entry is None):
        raise ValueError("a change without what belongs to it")
    if entry is not None and entry.prefix != prefix:
        raise ValueError("an entry of another prefix")
    if waiting.mode not in (None, "enforce", "observe"):
        raise ValueError("an unknown mode")
    if (waiting.settings is not None) != (do == "reload"):
        raise ValueError("a change and settings that do not fit")
