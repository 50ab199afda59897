# SPDX-License-Identifier: Apache-2.0
"""The gems, each profile once a run."""

from __future__ import annotations

import functools
import json
import shutil

import pytest

from tests.puppet.gems import INSTALL_S, MODULE, PROFILES, Gems

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
def strings(puppet8, tmp_path_factory):
    """What puppet-strings makes of the module, in a format. It works on a copy, since it leaves a cache behind."""

    def generate(format):
        copy = tmp_path_factory.mktemp("strings") / "packetwatch"
        shutil.copytree(MODULE, copy, ignore=shutil.ignore_patterns("spec", ".*"))
        puppet8.run("puppet", "strings", "generate", "--format", format, "--out", "made", cwd=copy)
        return (copy / "made").read_text()

    return generate


@pytest.fixture(scope="session")
def interface(strings):
    """The module's classes, types, functions and tasks as data."""
    return json.loads(strings("json"))
