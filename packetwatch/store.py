# SPDX-License-Identifier: Apache-2.0
"""Where descriptors outlive this process: systemd's store, pins, or nowhere. By name; knows not what they are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol

from packetwatch import libbpf, notify


#: What handover.py, attachments.py and handshakes.py name things; all else in a folder of pins is somebody else's.
_OURS = re.compile(r"[0-9a-f]{16}v[0-9]+_(prog|handshakes|map_[a-z_]+)|link_[0-9]+|handshakes")


class Store(Protocol):
    """Keeps descriptors under unique names."""

    keeps: str  #: for people: what happens to protection when this process is killed
    outlasts: bool  #: whether it may keep what is there over a stop that it was told of

    def inherited(self) -> dict[str, int]:
        """What an earlier process left, once; the caller owns the descriptors."""

    def put(self, name: str, fd: int) -> None: ...

    def remove(self, name: str) -> None: ...

    def end(self) -> None:
        """At a plain stop."""


class SystemdStore:
    """The service's descriptor store: survives restart, crash and SIGKILL, ends with `systemctl stop`."""

    keeps = "protection goes on if this process dies (descriptor store)"
    outlasts = True

    def inherited(self) -> dict[str, int]:
        return dict(notify.inherited())

    def put(self, name: str, fd: int) -> None:
        notify.store(name, fd)

    def remove(self, name: str) -> None:
        notify.remove(name)

    def end(self) -> None:
        """systemd empties the store itself at a stop, and keeps it over a restart: only it knows which this is."""


class PinStore:
    """Pins below a bpf file system. What cannot be pinned (a memfd) is not kept."""

    keeps = "protection goes on if this process dies (pins)"
    outlasts = False

    def __init__(self, directory: str) -> None:
        """Raises OSError where the folder is not below a bpf file system or not ours to write."""
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def inherited(self) -> dict[str, int]:
        return {path.name: libbpf.pinned(str(path)) for path in self._ours()}

    def _ours(self) -> list[Path]:
        return sorted(path for path in self._directory.iterdir() if _OURS.fullmatch(path.name))

    def put(self, name: str, fd: int) -> None:
        if name == "memory":
            return
        libbpf.pin(fd, str(self._directory / name))

    def remove(self, name: str) -> None:
        try:
            os.unlink(self._directory / name)
        except FileNotFoundError:
            pass

    def end(self) -> None:
        for path in self._ours():
            path.unlink()
        if not any(self._directory.iterdir()):
            self._directory.rmdir()


class NoStore:
    """A foreground run: killed, it detaches and fails open."""

    keeps = "if this process is killed, nothing is watched or blocked any more"
    outlasts = False

    def inherited(self) -> dict[str, int]:
        return {}

    def put(self, name: str, fd: int) -> None:
        pass

    def remove(self, name: str) -> None:
        pass

    def end(self) -> None:
        pass
