# SPDX-License-Identifier: Apache-2.0
"""A machine with a package manager, dpkg with apt or rpm with dnf, behind the same words."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Union

from tests.machine.machine import Machine
from tests.machine.service import Service
from tests.package.builds import Built, stand_in

Done = subprocess.CompletedProcess


class Host(Service):
    """Packetwatch as its package makes it, on one machine."""

    kept_suffix = ""  #: of the packaged file beside an edited one

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._seen: set[pathlib.Path] = set()

    def prepare(self, scratch: pathlib.Path) -> None:
        raise NotImplementedError

    def begin(self) -> Host:
        self.machine.run(["systemctl", "unmask", "packetwatch.service"], check=False)
        self.purge()
        self.machine.run(["systemctl", "reset-failed", "packetwatch.service"], check=False)
        self.mark()
        return self

    def take(self, package: pathlib.Path) -> str:
        """Where the package is on the machine."""
        if package not in self._seen:
            self.machine.copy(package, f"/srv{package}")
            self._seen.add(package)
        return f"/srv{package}"

    def purge(self) -> None:
        raise NotImplementedError

    def file(self, built: Built) -> pathlib.Path:
        raise NotImplementedError

    def sh(self, script: str, *arguments: str, check: bool = True) -> Done[str]:
        return self.machine.run(["sh", "-c", script, "sh", *arguments], check, timeout=120)

    def from_outside(self, code: str, *arguments: str) -> str:
        """What a Python program of the test's host printed in the machine's network."""
        enter = ["nsenter", "-t", str(self.machine.leader), "-n", "/usr/bin/python3", "-c", code, *arguments]
        return subprocess.run(enter, check=True, capture_output=True, text=True, timeout=30).stdout

    def is_enabled(self) -> str:
        return self.machine.run(["systemctl", "is-enabled", "packetwatch.service"], check=False).stdout.strip()


class Dpkg(Host):
    """Debian's packages."""

    kept_suffix = ".dpkg-dist"
    _apt = "env DEBIAN_FRONTEND=noninteractive apt-get -qqy -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold"

    def prepare(self, scratch: pathlib.Path) -> None:
        self.sh("rm -f /etc/apt/sources.list.d/*; : >/etc/apt/sources.list")  # nothing can be fetched here
        self.sh("rm -f /etc/dpkg/dpkg.cfg.d/*")  # what keeps documentation out of the root

    def file(self, built: Built) -> pathlib.Path:
        return built.deb

    def install(self, built: Built, check: bool = True, before: str = "") -> Done[str]:
        """Also an upgrade or a downgrade. `before` is a command in front, such as `unshare`."""
        script = f'{before} {self._apt} --allow-downgrades install "$1"'
        return self.sh(script, self.take(built.deb), check=check)

    def remove(self) -> None:
        self.sh(f"{self._apt} remove packetwatch")

    def purge(self) -> None:
        self.sh("dpkg --purge packetwatch")

    def verify(self) -> str:
        """What differs from what was installed."""
        return self.sh("dpkg -V packetwatch", check=False).stdout

    def version(self) -> str:
        return self.sh("dpkg-query -W -f '${Version}' packetwatch").stdout


class Dnf(Host):
    """dnf and rpm with their own database, on a system whose files came from Debian's packages."""

    kept_suffix = ".rpmnew"
    _dnf = "dnf -y --disablerepo='*' --releasever=9 --setopt=cachedir=/var/cache/dnf"

    def prepare(self, scratch: pathlib.Path) -> None:
        self.sh("mkdir -p /usr/share/licenses /usr/share/man/man5 /usr/share/man/man8")  # of EL's package filesystem
        self.sh(f'{self._dnf} install "$1"', self.take(stand_in(scratch)))

    def file(self, built: Built) -> pathlib.Path:
        return built.rpm

    def install(self, built: Built, check: bool = True, before: str = "") -> Done[str]:
        """Also an upgrade or a downgrade."""
        verb = "downgrade" if self._is_newer_than(built) else "install"
        done = self.sh(f'{before} {self._dnf} {verb} "$1"', self.take(built.rpm), check=check)
        # dnf ends well when a scriptlet has not.
        assert "scriptlet failed" not in done.stdout + done.stderr, done.stdout + done.stderr
        return done

    def _is_newer_than(self, built: Built) -> bool:
        found = self.sh("rpm -q --qf '%{VERSION}' packetwatch", check=False)
        return found.returncode == 0 and found.stdout > built.version

    def remove(self) -> None:
        self.sh(f"{self._dnf} remove packetwatch")

    def purge(self) -> None:
        """rpm knows no purge: what an administrator would type."""
        self.sh("! rpm -q --quiet packetwatch || rpm -e packetwatch")
        self.sh("rm -rf /etc/packetwatch /var/lib/packetwatch /var/log/packetwatch")

    def verify(self) -> str:
        return self.sh("rpm -V packetwatch", check=False).stdout

    def version(self) -> str:
        return self.sh("rpm -q --qf '%{VERSION}' packetwatch").stdout


AnyHost = Union[Dpkg, Dnf]
