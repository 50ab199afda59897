# SPDX-License-Identifier: Apache-2.0
"""What survives a stop and a reboot: blocks, what people allowed and blocked by hand, the last good settings,
what names of servers stood for.

Files in the state directory, versioned, replaced whole. Ends are wall time here (ns since 1970,
0 is forever). A file that is newer or corrupt is kept aside and told of, never a crash loop.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Optional, TypeVar

from packetwatch import address
from packetwatch.address import BITS, Prefix

T = TypeVar("T")

VERSION = 2
_KNOWN = (1, VERSION)  #: in the first, blocks are of single addresses
_INPUTS, _SERVERS = "last-good.json", "servers.json"
_BYTES_MAX = 192 * 1024 * 1024  # table.blocks at its most takes half of it
#: Whatever stands there instead of a file, a start neither hangs at it nor writes elsewhere.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class SavedBlock(NamedTuple):
    """A source blocked by the kernel half."""

    address: bytes
    until_wall_ns: int
    since_wall_ns: int
    length: int = BITS  #: of the prefix whose network the address is

    def until_boot_ns(self, wall_offset_ns: int, now_ns: int) -> int:
        """Its end as CLOCK_BOOTTIME. A clock that is behind, as at a boot without a battery, does not prolong it."""
        if not self.until_wall_ns:
            return 0
        longest = now_ns + self.until_wall_ns - self.since_wall_ns
        return max(1, min(self.until_wall_ns - wall_offset_ns, longest))


class Manual(NamedTuple):
    """What somebody blocked or allowed by hand."""

    prefix: Prefix
    until_wall_ns: int = 0
    since_wall_ns: int = 0
    reason: str = ""
    forced: bool = False


class Saved(NamedTuple):
    """The content of the state file."""

    blocks: tuple[SavedBlock, ...] = ()
    manual_blocks: tuple[Manual, ...] = ()
    manual_allow: tuple[Manual, ...] = ()
    mode: Optional[str] = None  #: set by hand, against the configuration


class StateError(Exception):
    """The state directory cannot be used; `hint` is the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def encode(saved: Saved) -> bytes:
    return json.dumps(
        {
            "version": VERSION,
            "blocks": [
                [address.prefix_text(Prefix(b.address, b.length)), b.until_wall_ns, b.since_wall_ns]
                for b in saved.blocks
            ],
            "manual_blocks": [manual_row(entry) for entry in saved.manual_blocks],
            "manual_allow": [manual_row(entry) for entry in saved.manual_allow],
            "mode": saved.mode,
        }
    ).encode()


def decode(text: bytes) -> Saved:
    """Raises ValueError for whatever `encode` of this version, or one before, could not have written."""
    try:
        data = json.loads(text)
        if data["version"] not in _KNOWN:
            raise ValueError(f"version {data['version']!r}, this Packetwatch knows {VERSION}")
        if data["mode"] not in (None, "enforce", "observe"):
            raise ValueError("an unknown mode")
        blocks = tuple(_block(*row) for row in data["blocks"])
        by_hand, allowed = (tuple(map(manual, data[name])) for name in ("manual_blocks", "manual_allow"))
        return Saved(blocks, by_hand, allowed, data["mode"])
    except (KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise ValueError(f"not a state file: {fault!r}") from None


def _block(source: str, until: Any, since: Any) -> SavedBlock:
    network, length = address.parse_prefix(source)
    return SavedBlock(network, wall_time(until), wall_time(since), length)


def manual_row(entry: Manual) -> list[Any]:
    """An entry as a file holds it."""
    return [address.prefix_text(entry.prefix), *entry[1:]]


def manual(row: list[Any]) -> Manual:
    """Raises ValueError or TypeError for what is none."""
    prefix, until, since, reason, forced = row
    return Manual(address.parse_prefix(prefix), wall_time(until), wall_time(since), str(reason)[:200], bool(forced))


def wall_time(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no time")
    return value


class Directory:
    """The state directory, 0700."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            probe = self.path / ".probe"
            os.close(os.open(probe, _WRITE, 0o600))
            probe.unlink()
        except OSError as fault:
            raise StateError(
                f"state directory {path}: {fault.strerror}",
                "make it writable for this user, or name another: --state DIR",
            ) from None

    def hold(self) -> None:
        """Keeps every other resident off for as long as this process lives. Raises StateError where one has it."""
        self._held = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._held)
            raise StateError(
                f"state directory {self.path}: another packetwatch uses it", "give this one its own: --state DIR"
            ) from None
        except OSError:
            pass  # a file system without locks

    def load(self) -> tuple[Saved, Optional[str]]:
        """What was saved, and a sentence if a file had to be put aside."""
        saved, aside = self.load_as("state.json", decode)
        return saved or Saved(), aside

    def load_as(self, name: str, read: Callable[[bytes], T]) -> tuple[Optional[T], Optional[str]]:
        """What `read` makes of a file, None where there is none, and a sentence if it had to be put aside."""
        file = self.path / name
        try:
            text = self._read(file)
            return read(text) if text is not None else None, None
        except (ValueError, StateError) as fault:
            aside = file.with_name(f"{name}.unread-{time.strftime('%Y%m%dT%H%M%S')}")
            os.replace(file, aside)
            return None, f"{file} could not be read ({fault}); kept as {aside}, started without it"

    def save(self, saved: Saved) -> None:
        """Raises OSError (no space, read-only); the file before stays whole."""
        self.save_as("state.json", encode(saved))

    def remove(self, name: str) -> None:
        """Raises OSError where it cannot be."""
        (self.path / name).unlink(missing_ok=True)

    def load_inputs(self) -> Optional[dict[str, Any]]:
        """The inputs of the last good settings, as `save_inputs` got them."""
        return self._load(_INPUTS)

    def save_inputs(self, inputs: dict[str, Any]) -> None:
        self.save_as(_INPUTS, json.dumps(inputs).encode())

    def load_servers(self) -> Optional[dict[str, Any]]:
        """What names of servers stood for at last, as `save_servers` got it; none is no fault."""
        try:
            return self._load(_SERVERS)
        except StateError:
            return None

    def save_servers(self, answers: dict[str, Any]) -> None:
        """Raises OSError."""
        self.save_as(_SERVERS, json.dumps(answers).encode())

    def _load(self, name: str) -> Optional[dict[str, Any]]:
        text = self._read(self.path / name)
        try:
            data = json.loads(text) if text is not None else None
        except (ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) else None

    def _give_to_owner(self, fd: int) -> None:
        """Run by hand as root in the service's directory, it must not leave what the service cannot read."""
        home, file = os.stat(self.path), os.fstat(fd)
        if file.st_uid == 0 != home.st_uid:
            os.fchown(fd, home.st_uid, home.st_gid)

    @staticmethod
    def _read(file: Path) -> Optional[bytes]:
        try:
            with open(file, "rb", opener=lambda path, flags: os.open(path, _READ)) as stream:
                return stream.read(_BYTES_MAX) or b""
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise StateError(f"{file}: {fault.strerror}", "check its owner and mode") from None

    def save_as(self, name: str, text: bytes) -> None:
        """Raises OSError; the file before stays whole."""
        temporary = self.path / f".{name}.new"
        fd = os.open(temporary, _WRITE, 0o600)
        try:
            self._give_to_owner(fd)
            view = memoryview(text)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, self.path / name)
