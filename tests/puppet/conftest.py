# SPDX-License-Identifier: Apache-2.0
"""The gems, each profile once a run."""

from __future__ import annotations

import functools
import json

import pytest

from tests.puppet.gems import INSTALL_S, PROFILES, Gems

gems = functools.lru_cache(None)(Gems)


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/puppet/" in item.nodeid:
            item.add_marker(pytest.mark.timeout(INSTALL_S * len(PROFILES)))  # the first one may have to install gems


@pytest.fixture(scope="session")
def puppet8():
    return gems("puppet8")


@pytest.fixture(scope="session")
def bolt():
    return gems("bolt")


@pytest.fixture(scope="session", params=["puppet8", "puppet7", "openvox8"])
def puppet(request):
    """Each implementation in turn."""
    return gems(request.param)


@pytest.fixture(scope="session")
def interface(puppet8, tmp_path_factory):
    """What puppet-strings tells of the module, as data."""
    path = tmp_path_factory.mktemp("strings") / "strings.json"
    puppet8.run("puppet", "strings", "generate", "--format", "json", "--out", str(path))
    return json.loads(path.read_text())
