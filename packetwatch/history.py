# SPDX-License-Identifier: Apache-2.0
"""What was recorded of each source lately: scans, blocks and their ends. Pure, bounded, and gone with the process."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Optional

from packetwatch.event import Notice

SOURCES = 4096  #: beyond those the one longest without a record is forgotten
RECORDS = 16  #: of each source
EARNED = frozenset({"port scan", "slow scan", "honeypot"})  #: reasons of the kernel half's blocks
TOLD = frozenset({"scan", "block", "unblock"})


class History:
    """Records by source, as text."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, deque[Notice]] = OrderedDict()

    def take(self, notices: Iterable[Notice]) -> None:
        for notice in notices:
            if notice.event_type in TOLD and notice.source is not None:
                self._records.setdefault(notice.source, deque(maxlen=RECORDS)).append(notice)
                self._records.move_to_end(notice.source)
        while len(self._records) > SOURCES:
            self._records.popitem(last=False)

    def block(self, source: str) -> Optional[Notice]:
        """The record of the last block that the source has earned; those by hand are others'."""
        blocks = (each for each in reversed(self.of(source)) if each.event_type == "block")
        return next((each for each in blocks if each.reason in EARNED), None)

    def of(self, source: str) -> list[Notice]:
        """Oldest first."""
        return list(self._records.get(source, ()))
