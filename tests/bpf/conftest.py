# SPDX-License-Identifier: Apache-2.0
"""The loaded programs of the tier, one each for all its tests; after every test the ledger must balance."""

from __future__ import annotations

import pytest

from tests.bpf import harness


@pytest.fixture(scope="session")
def product_rig():
    rig = harness.Rig(harness.load_product())
    yield rig
    rig.kernel.close()


@pytest.fixture(scope="session")
def clocked_rig():
    kernel, clock = harness.load_clocked()
    yield harness.Rig(kernel, clock)
    kernel.close()


@pytest.fixture
def rig(product_rig):
    """The program as it ships."""
    product_rig.reset()
    yield product_rig
    product_rig.check_ledger()


@pytest.fixture
def clocked(clocked_rig):
    """The same source with small tables and a clock that stands still until the test sets it."""
    clocked_rig.reset()
    yield clocked_rig
    clocked_rig.check_ledger()
