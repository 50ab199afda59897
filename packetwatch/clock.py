# SPDX-License-Identifier: Apache-2.0
"""The clocks: CLOCK_BOOTTIME, which the kernel half stamps with, and its distance to wall time."""

from __future__ import annotations

import time
from datetime import datetime, timezone

SECOND = 1_000_000_000  #: ns


def boot_ns() -> int:
    """Since boot, suspended time included: what maps and rings hold."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wall_offset_ns() -> int:
    """CLOCK_REALTIME minus CLOCK_BOOTTIME, read anew for every batch, so right after a clock step."""
    return time.clock_gettime_ns(time.CLOCK_REALTIME) - boot_ns()


def rfc3339(wall_ns: int) -> str:
    """UTC, to the second."""
    return datetime.fromtimestamp(wall_ns // 1_000_000_000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
