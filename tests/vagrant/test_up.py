# SPDX-License-Identifier: Apache-2.0
"""`vagrant up debian-12` for real: the package by the module that is in it, and the smoke test, on another kernel."""

from __future__ import annotations

import pathlib
import platform
import subprocess
import sys

import pytest

from tests.machine.machine import wait_for
from tests.package import builds
from tests.vagrant.libvirt import CHECKOUT, Libvirt, build_box
from tests.vagrant.systems import SYSTEMS

SYSTEM = SYSTEMS["debian-12"]
UP_S = 1200  #: ten times what a quiet machine needs for each step

pytestmark = pytest.mark.timeout(2 * UP_S)  # the first one waits for the box to be built


@pytest.fixture
def libvirt():
    box = build_box(SYSTEM["codename"])
    with Libvirt() as libvirt:
        libvirt.vagrant("box", "add", "--name", SYSTEM["boxes"]["libvirt"], box)
        yield libvirt


def test_a_machine_takes_the_package_and_passes_the_smoke_test(libvirt, tmp_path):
    new = builds.build(builds.NEW, tmp_path)
    up = libvirt.vagrant("up", SYSTEM["id"], "--provider=libvirt", packages=new.deb.parent, timeout_s=UP_S)
    told = [line.partition(f"{SYSTEM['id']}: ")[2] for line in up.stdout.splitlines()]
    print("\n".join(told))
    assert "ok    and shut out" in told and "ok    it protects as before" in told
    version, kernel = libvirt.vagrant("ssh", SYSTEM["id"], "-c", "packetwatch version; uname -r").stdout.split("\n")[:2]
    assert version == f"packetwatch {new.version}"
    assert kernel != platform.release()
    libvirt.vagrant("destroy", "-f", SYSTEM["id"])
    assert libvirt.virsh("list", "--all", "--name").split() == []


def test_nothing_outlives_the_test_run():
    code = "from tests.vagrant.libvirt import Libvirt\nwith Libvirt() as it: print(it.leader, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        leader = pathlib.Path("/proc", run.stdout.readline().strip())
        namespace = (leader / "ns/pid").readlink()
        inside = [process for process in processes() if is_in(process, namespace)]
        assert {(process / "comm").read_text().strip() for process in inside} >= {"libvirtd", "virtlogd"}
        run.kill()
    wait_for(lambda: not any(is_in(process, namespace) for process in processes()), "libvirtd is gone")


def processes():
    return list(pathlib.Path("/proc").glob("[0-9]*"))


def is_in(process, namespace):
    try:
        return (process / "ns/pid").readlink() == namespace
    except OSError:
        return False
