# SPDX-License-Identifier: Apache-2.0
"""Vagrant with a libvirt and a Debian box of its own, under plain qemu. Everything ends with the process."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import subprocess
import tempfile
from typing import Optional

from tests.machine.machine import PACKAGES, build_root

HERE = pathlib.Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = pathlib.Path(os.environ.get("PACKETWATCH_TEST_CACHE", CHECKOUT / "build")) / "vagrant"

#: A machine cannot fetch anything, so Puppet and all that our package needs are in the box.
IN_BOX = (*PACKAGES, "initramfs-tools", "linux-image-cloud-amd64", "openssh-server", "puppet-agent", "sudo")
#: In memory, and gone with the namespaces; VAGRANT_DOTFILE_PATH keeps .vagrant out of the checkout.
PLACES = {"VAGRANT_CWD": CHECKOUT, "VAGRANT_HOME": "/run/vagrant", "VAGRANT_DOTFILE_PATH": "/run/vagrant-machines"}


def build_box(release: str) -> pathlib.Path:
    """A Vagrant box of a Debian release; built once, then reused."""
    script = HERE / "box.sh"
    recipe = " ".join([release, *IN_BOX, script.read_text()])
    box = CACHE / f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.box"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock, tempfile.TemporaryDirectory() as mountpoint:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not box.exists():
            unshare = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private"]
            _run([*unshare, script, build_root(IN_BOX, release), mountpoint, box], 600)
    return box


class Libvirt:
    """Its own libvirtd from entry to exit."""

    def __enter__(self) -> Libvirt:
        namespaces = ["unshare", "--mount", "--propagation", "private", "--net"]
        namespaces += ["--pid", "--fork", "--kill-child", "--mount-proc"]
        self._guardian = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *namespaces, HERE / "libvirt.sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the test run, which then ends this in its own order
        )
        assert self._guardian.stdout is not None
        if self._guardian.stdout.readline() != "ready\n":
            self.__exit__()
            raise RuntimeError("libvirtd does not answer")
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guardian.communicate(timeout=20)
        self._guardian.kill()
        self._guardian.wait()

    def vagrant(
        self, *words: object, check: bool = True, timeout_s: float = 60, packages: Optional[pathlib.Path] = None
    ) -> subprocess.CompletedProcess[str]:
        """`vagrant WORDS` for the checkout's Vagrantfile, with qemu as the driver."""
        settings = {**PLACES, "PACKETWATCH_DRIVER": "qemu", "PACKETWATCH_PACKAGES": packages}
        given = [f"{name}={value}" for name, value in settings.items() if value]
        return _run([*self._enter(), "env", *given, "vagrant", *words], timeout_s, check)

    def virsh(self, *words: object) -> str:
        return _run([*self._enter(), "virsh", "--quiet", "--connect", "qemu:///system", *words], 60).stdout

    @property
    def leader(self) -> int:
        """The pid of the first process in its namespaces."""
        guardian = self._guardian.pid
        return int(pathlib.Path(f"/proc/{guardian}/task/{guardian}/children").read_text())

    def _enter(self) -> list[str]:
        return ["nsenter", "-t", str(self.leader), "-m", "-n", "-p", "--"]


def _run(command: list[object], timeout_s: float, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done
