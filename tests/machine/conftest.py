# SPDX-License-Identifier: Apache-2.0
"""A root file system for the run, a booted machine for each module."""

from __future__ import annotations

import pytest

from tests.machine.machine import Machine, build_root
from tests.machine.service import Service


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/machine/" in item.nodeid:
            item.add_marker(pytest.mark.timeout(900))  # the first one waits for the root to be built


@pytest.fixture(scope="session")
def root():
    return build_root()


@pytest.fixture(scope="module")
def bare_machine(root):
    """Without Packetwatch."""
    with Machine(root) as machine:
        yield machine


@pytest.fixture(scope="module")
def machine(root):
    """With Packetwatch as the packages install it; the service is not started."""
    with Machine(root) as machine:
        machine.install()
        yield machine


@pytest.fixture
def service(machine):
    """Packetwatch's unit at its defaults: without state, not running."""
    return Service(machine).begin()
