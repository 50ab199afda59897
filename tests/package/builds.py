# SPDX-License-Identifier: Apache-2.0
"""Packages as `make deb` and `make rpm` build them, in two versions, and stand-ins for what EL would bring."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
OLD, NEW = "0.0.1~git1", "0.0.1~git2"

#: What the .rpm asks for, and rpm itself for its scriptlets.
PROVIDED = (
    "python3 = 3.9.18",
    "python3-bcc",
    "python3-systemd",
    "libbpf",
    "kernel-headers",
    "systemd",
    "/bin/sh",
)


class Built(NamedTuple):
    """One version."""

    version: str
    deb: pathlib.Path
    rpm: pathlib.Path


def build(version: str, into: pathlib.Path) -> Built:
    command = ["make", "-s", "deb", "rpm", f"VERSION={version}", f"PACKAGES={into}"]
    done = run(*command, cwd=ROOT).splitlines()
    deb, rpm = map(pathlib.Path, done[-2:])
    return Built(version, deb, rpm)


def with_other_conffile(built: Built, into: pathlib.Path) -> Built:
    """The same version with another packetwatch.conf, as a release brings one; the .rpm stays what it is."""
    tree = into / "tree"
    run("dpkg-deb", "-R", built.deb, tree)
    conffile = tree / "etc/packetwatch/packetwatch.conf"
    conffile.write_text("# Of another release.\n" + conffile.read_text())
    deb = into / built.deb.name
    run("dpkg-deb", "--root-owner-group", "-b", tree, deb)
    return built._replace(deb=deb)


def publish(versions: Sequence[Built], into: pathlib.Path, url: str, home: pathlib.Path) -> None:
    """Repositories of these versions by `make repo`, signed with a key made for them in `home`."""
    packages = home / "packages"
    packages.mkdir()
    for each in versions:
        shutil.copy(each.deb, packages)
        shutil.copy(each.rpm, packages)
    key = "packages@packetwatch.example"
    with_key = ["env", f"GNUPGHOME={home}"]
    run(*with_key, "gpg", "--batch", "--passphrase", "", "--quick-generate-key", key, "rsa3072", "sign", "never")
    try:
        place = (f"PACKAGES={packages}", f"REPO={into}", f"REPO_URL={url}", f"VERSION={versions[-1].version}")
        run(*with_key, "make", "-s", "repo", f"REPO_KEY={key}", *place)
    finally:
        run(*with_key, "gpgconf", "--kill", "all")


def stand_in(into: pathlib.Path) -> pathlib.Path:
    """An empty .rpm that claims to be all that ours needs: the files come from Debian's packages."""
    options = [option for name in PROVIDED for option in ("--provides", name)]
    made = into / "stand-in.rpm"
    fpm = ["env", "GEM_HOME=build/gems", "build/gems/bin/fpm", "-s", "empty", "-t", "rpm", "-n", "stand-in"]
    run(*fpm, "-a", "noarch", "--rpm-os", "linux", "-p", made, *options, cwd=ROOT)
    return made


def control(deb: pathlib.Path) -> dict[str, str]:
    """The fields of a .deb; the description's first line only."""
    return dict(re.findall(r"^([A-Z][\w-]*): (.*)$", run("dpkg-deb", "-f", deb), re.MULTILINE))


def run(*command: object, cwd: object = None) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=str(cwd or ROOT), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
