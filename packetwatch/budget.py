# SPDX-License-Identifier: Apache-2.0
"""What the log may write in a day, as a leaky bucket. Pure: it says when to save, others act."""

from __future__ import annotations

_DAY_NS = 86_400 * 1_000_000_000
_BURST = 0.25  # of a day's size that may be written at once
_RECOVERED = 0.5  # of the burst that must have leaked away before saving ends


class Budget:
    """Saving begins when the bucket is full and ends when half of it has leaked away.

    While saving the caller writes less than the leak (see daemon), so that a day never has more
    than the burst and one day's leak.
    """

    def __init__(self, daily_bytes: int) -> None:
        """daily_bytes: 0 has no limit."""
        self.daily_bytes = daily_bytes
        self.saving = False
        self._level = 0.0
        self._then_ns = 0

    def spend(self, size: int, now_ns: int) -> bool:
        """Counts bytes written; returns whether to save now."""
        if not self.daily_bytes:
            self.saving = False
            return False
        leak = self.daily_bytes * (1 - _BURST) * (now_ns - self._then_ns) / _DAY_NS
        self._level = max(0.0, self._level - leak) + size
        self._then_ns = now_ns
        burst = self.daily_bytes * _BURST
        self.saving = self._level >= burst * (_RECOVERED if self.saving else 1)
        return self.saving
