# SPDX-License-Identifier: Apache-2.0
"""A BPF ring buffer of records of one size, read through mmap. Knows nothing of their meaning.

Source: kernel/bpf/ringbuf.c. One page holds the consumer position (ours to write), the next the
producer position, then follow the data pages, mapped twice in a row so that no record wraps.
"""

from __future__ import annotations

import mmap
import threading

HEADER_BYTES = 8
_BUSY = 1 << 31
_DISCARD = 1 << 30


class Ring:
    """`peek` gives whole frames (8-byte header and record each), `advance` frees them.

    In that order, so that a reader killed between the two leaves its records for the next one.
    """

    def __init__(self, fd: int, size: int, record: int) -> None:
        """size: bytes of the ring (a power of two times the page); record: bytes, a multiple of 8."""
        page = mmap.PAGESIZE
        self.fd = fd
        self.size = size
        self.frame = HEADER_BYTES + record
        self._record = record
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_page = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._view = memoryview(self._producer_page)
        self._producer = self._view[:page].cast("Q")
        self._data = self._view[page:]
        self._barrier = threading.Lock()

    def backlog(self) -> int:
        """Bytes produced and not yet freed."""
        return self._producer[0] - self._consumer[0]

    def peek(self, limit: int) -> memoryview:
        """Up to `limit` finished frames, oldest first; valid until `advance`."""
        start = self._consumer[0]
        count = min((self._producer[0] - start) // self.frame, limit)
        with self._barrier:  # orders the data after the position where the CPU does not
            offset = start & (self.size - 1)
            frames = self._data[offset : offset + count * self.frame]
            headers = frames.cast("I")[:: self.frame // 4].tolist() if count else []
        if headers.count(self._record) != count:
            count = next(i for i, header in enumerate(headers) if header != self._record)
        return frames[: count * self.frame]

    def advance(self, frames: memoryview) -> None:
        """Gives back what `peek` returned."""
        self._consumer[0] += len(frames)

    def close(self) -> None:
        """Unmaps; the descriptor is its owner's. No frames of `peek` may be in use."""
        for view in (self._consumer, self._producer, self._data, self._view):
            view.release()
        self._consumer_page.close()
        self._producer_page.close()
