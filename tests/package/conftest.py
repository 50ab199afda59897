# SPDX-License-Identifier: Apache-2.0
"""Two versions of the packages, and for each family of systems a booted machine that can take them."""

from __future__ import annotations

import pytest

from tests.machine.machine import PACKAGES, PUPPET, Machine, build_root
from tests.package import builds
from tests.package.host import Dnf, Dpkg

#: Family, Debian's release below it, and what that root holds.
SYSTEMS = {
    "debian-12": (Dpkg, "bookworm", PACKAGES),
    "debian-13": (Dpkg, "trixie", PUPPET["trixie"]),
    "el": (Dnf, "bookworm", (*PACKAGES, "dnf", "rpm")),
}


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/package/" in item.nodeid:
            item.add_marker(pytest.mark.timeout(900))  # the first one waits for the root to be built


@pytest.fixture(scope="session")
def old(tmp_path_factory):
    built = builds.build(builds.OLD, tmp_path_factory.mktemp("old"))
    return builds.with_other_conffile(built, tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="session")
def new(tmp_path_factory):
    return builds.build(builds.NEW, tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module", params=SYSTEMS)
def booted(request, tmp_path_factory):
    """A machine of each kind, and how packages get on it."""
    family, release, packages = SYSTEMS[request.param]
    with Machine(build_root(packages, release)) as machine:
        host = family(machine)
        host.prepare(tmp_path_factory.mktemp("stand-in"))
        yield host


@pytest.fixture
def host(booted):
    """Packetwatch has never been here."""
    return booted.begin()
