# SPDX-License-Identifier: Apache-2.0
"""What `make repo` makes: apt and dnf install from it with our key, and from nothing that is not signed with it."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from tests.machine.machine import Machine, build_root
from tests.package.builds import publish, run
from tests.package.conftest import SYSTEMS
from tests.package.host import Dnf, Dpkg

HERE = "/srv/repo"


@pytest.fixture(scope="module")
def repo(old, new, tmp_path_factory):
    """Both versions, signed with a key of its own; and the same unsigned or changed, each in its own folder."""
    made = tmp_path_factory.mktemp("repo")
    publish([old, new], made / "signed", f"file://{HERE}/signed", tmp_path_factory.mktemp("gnupg"))
    _spoil(made, new)
    return made


def _spoil(made: pathlib.Path, new) -> None:
    for name in ("unsigned", "changed", "package"):
        shutil.copytree(made / "signed", made / name)
        for file in made.glob(f"{name}/packetwatch.*"):
            file.write_text(file.read_text().replace("/signed", f"/{name}"))
    for file in ("apt/InRelease", "dnf/repodata/repomd.xml.asc"):
        (made / "unsigned" / file).unlink()
    for file in ("apt/InRelease", "dnf/repodata/repomd.xml"):
        with open(made / "changed" / file, "r+") as text:
            changed = text.read().replace("stable", "staple").replace("<revision>", "<revision>1")
            text.seek(0)
            text.write(changed)
    # Metadata that is right about a package that is not: another one in its place.
    shutil.copy(new.rpm, made / "package/dnf")
    with open(made / "package/apt" / new.deb.name, "ab") as file:
        file.write(b"\n")


class Apt:
    """A machine's apt, and what is to be typed there."""

    refusal = "not signed|NO_PUBKEY|Hash Sum mismatch|hash sum|unexpected size|signature"

    def __init__(self, host: Dpkg) -> None:
        self.host = host

    def add(self, kind: str) -> None:
        self.host.sh(
            f"install -Dm644 {HERE}/{kind}/packetwatch.asc /etc/apt/keyrings/packetwatch.asc;"
            f"install -Dm644 {HERE}/{kind}/packetwatch.sources /etc/apt/sources.list.d/packetwatch.sources;"
            "rm -rf /var/lib/apt/lists/*"
        )

    def install(self, version: str = ""):
        name = f"packetwatch={version}" if version else "packetwatch"
        apt = "DEBIAN_FRONTEND=noninteractive apt-get -qy -o APT::Sandbox::User=root"
        return self.host.sh(f"{apt} update && {apt} install --allow-downgrades {name}", check=False)


class Yum:
    """A machine's dnf."""

    refusal = "GPG|gpg|not signed|signature"

    def __init__(self, host: Dnf) -> None:
        self.host = host

    def add(self, kind: str) -> None:
        here = f"{HERE}/{kind}/packetwatch.repo"
        self.host.sh(f"install -Dm644 {here} /etc/yum.repos.d/packetwatch.repo; dnf -q clean all")

    def install(self, version: str = ""):
        name = f"packetwatch-{version}" if version else "packetwatch"
        return self.host.sh(f"dnf -y --releasever=9 install {name}", check=False)


@pytest.fixture(scope="module", params=SYSTEMS)
def booted(request, repo, tmp_path_factory):
    family, release, packages = SYSTEMS[request.param]
    with Machine(build_root(packages, release)) as machine:
        host = family(machine)
        host.prepare(tmp_path_factory.mktemp("stand-in"))
        machine.copy(repo, HERE)
        yield Yum(host) if family is Dnf else Apt(host)


@pytest.fixture
def client(booted):
    booted.host.begin()
    return booted


def test_installs_the_newest_from_the_signed_repository(client, new):
    client.add("signed")
    done = client.install()
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.host.version() == new.version and client.host.is_active()


def test_installs_the_version_that_is_asked_for(client, old):
    client.add("signed")
    done = client.install(old.version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.host.version() == old.version


@pytest.mark.parametrize("kind", ("unsigned", "changed", "package"))
def test_refuses(client, kind):
    client.add(kind)
    done = client.install()
    assert done.returncode != 0
    assert any(word in done.stdout + done.stderr for word in client.refusal.split("|")), done.stdout + done.stderr
    assert client.host.sh("test ! -e /usr/bin/packetwatch").returncode == 0


def test_without_a_key_make_repo_says_what_to_name(tmp_path):
    with pytest.raises(AssertionError, match="make repo REPO_KEY=ID"):
        run("make", "-s", "repo", "REPO_KEY=", f"REPO={tmp_path}/repo", f"PACKAGES={tmp_path}")
