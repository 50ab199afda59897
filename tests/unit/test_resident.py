# SPDX-License-Identifier: Apache-2.0
"""When housekeeping is due: each second where something happens, and else as late as nobody notices."""

from __future__ import annotations

import types

import pytest

from packetwatch.clock import SECOND
from packetwatch.resident import Resident

NOW = 1000 * SECOND


@pytest.mark.parametrize("busy_for, block_ends, manual_ends, watchdog_quarter, due", [
    (1, None, None, 9, 1),
    (0.1, 5, None, 9, 1),
    (0, None, None, 9, 2),
    (0, None, None, 1.5, 1.5),
    (0, None, None, 0.5, 1),
    (0, 1.25, None, 9, 1.25),
    (0, 0.1, None, 9, 1),  # at most once a second
    (0, 5, None, 9, 2),
    (0, None, 1.25, 9, 1.25),
    (0, 1.75, 1.25, 1.5, 1.25),
])
def test_housekeeping_is_due(busy_for, block_ends, manual_ends, watchdog_quarter, due):
    def at(seconds):
        return 0 if seconds is None else NOW + int(seconds * SECOND)

    resident = Resident.__new__(Resident)
    resident._quiet_ns, resident._next_end_ns = at(busy_for), at(block_ends)
    resident.lists = types.SimpleNamespace(next_end_ns=lambda: at(manual_ends))
    assert resident.next_look_ns(NOW, int(watchdog_quarter * SECOND)) == at(due)
