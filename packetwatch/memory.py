# SPDX-License-Identifier: Apache-2.0
"""A note to the next resident: one JSON object in a memfd that outlives this process in systemd's store.

Two halves written in turn, each with length, sequence and checksum, so that a kill in mid-write
costs the last note only. Not for anything that must survive a stop or a reboot (see state.py).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from typing import Any, Optional

_HALF = 256 * 1024
_HEADER = struct.Struct("=QII")  # sequence, length, crc32


class Memory:
    """Owns the descriptor `fd`."""

    def __init__(self, fd: Optional[int] = None) -> None:
        """Without a descriptor: a new, empty one. Raises OSError for one that is no note of ours."""
        self.fd = os.memfd_create("packetwatch-memory") if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, 2 * _HALF)
        elif os.fstat(self.fd).st_size != 2 * _HALF:
            raise OSError(22, "not a note of this version", "memory")
        self._map = mmap.mmap(self.fd, 2 * _HALF)
        self._sequence = max((note[0] for note in self._notes()), default=0)
        self._last = b""

    def read(self) -> dict[str, Any]:
        """The newest note that is whole; {} if there is none."""
        notes = sorted(self._notes(), key=lambda note: note[0])
        newest: dict[str, Any] = json.loads(notes[-1][1]) if notes else {}
        return newest

    def write(self, note: dict[str, Any]) -> None:
        text = json.dumps(note).encode()
        if text == self._last or len(text) > _HALF - _HEADER.size:
            return
        self._sequence += 1
        start = self._sequence % 2 * _HALF
        self._map[start + _HEADER.size : start + _HEADER.size + len(text)] = text
        self._map[start : start + _HEADER.size] = _HEADER.pack(self._sequence, len(text), zlib.crc32(text))
        self._last = text

    def _notes(self) -> list[tuple[int, bytes]]:
        found = []
        for start in (0, _HALF):
            sequence, length, crc = _HEADER.unpack_from(self._map, start)
            text = self._map[start + _HEADER.size : start + _HEADER.size + min(length, _HALF)]
            if sequence and zlib.crc32(text) == crc:
                found.append((sequence, text))
        return found
