# SPDX-License-Identifier: Apache-2.0
"""The smoke script of the Vagrantfile's machines, unchanged on booted ones: passes, fails, leaves nothing."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.machine.machine import wait_for
from tests.package.builds import ROOT

SMOKE = "/srv/smoke.sh"
CHECKS = (
    "the package's files are as it brought them",
    "the service is active",
    "it protects",
    "metrics at 127.0.0.1:9773",
    "systemd-analyze security: N, at most 2.0",
    "a network beside this host",
    "the new interface is watched",
    "a connection is answered",
    "and recorded",
    "the scanner is blocked",
    "and shut out",
    "nobody else is",
    "unblocked it is answered again",
    "it protects as before",
    "the package's files are as it brought them",
)
UNIT_DIR, CONF_DIR = "/run/systemd/system/packetwatch.service.d", "/etc/packetwatch/packetwatch.conf.d"
#: What is done to the machine, and what the script then complains about.
HARMS = {
    "a changed file": ("echo >>/usr/lib/packetwatch/packetwatch/cli.py", "the package's files differ"),
    "no service": ("systemctl stop packetwatch", "the service is active: not within"),
    "observe": ("packetwatch mode observe", "it protects: not within"),
    "no metrics": (
        f"printf '[metrics]\\nlisten = off\\n' >{CONF_DIR}/a.conf; systemctl restart packetwatch",
        "no metrics",
    ),
    "exposure": (
        f"mkdir -p {UNIT_DIR}; printf '[Service]\\nSystemCallFilter=\\n' >{UNIT_DIR}/a.conf; systemctl daemon-reload",
        "systemd-analyze security: ",
    ),
    "own interfaces": (
        f"printf '[packetwatch]\\ninterface = host0\\n' >{CONF_DIR}/a.conf; packetwatch reload",
        "the new interface is watched: not within",
    ),
    "an allowed scanner": ("packetwatch allow add 198.51.100.0/24", "the scanner is blocked: not within"),
}


@pytest.fixture
def smoke(host, new):
    """Runs the script on a machine with the package."""
    host.install(new)
    host.machine.copy(ROOT / "tests/vagrant/smoke.sh", SMOKE)
    yield lambda limit_s=30: host.sh(f"SMOKE_LIMIT_S={limit_s} {SMOKE} 2>&1", check=False)
    host.sh(f"rm -rf {UNIT_DIR}; systemctl daemon-reload")


def surroundings(host):
    """What the script may touch on its way."""
    names = host.sh(
        "ip -brief address; ip route show table all; ip -6 route show table all; lsns -t net -n -o NS;"
        "find /etc/packetwatch /run/packetwatch /tmp | sort; ls /run/netns 2>/dev/null; true"
    ).stdout
    running = host.is_active()
    return names, running and [row["name"] for row in host.status()["interfaces"]], running and host.blocked()


def test_passes_and_leaves_nothing(host, smoke):
    before = surroundings(host)
    done = smoke()
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    assert re.sub(r"security: [\d.]+", "security: N", done.stdout) == "".join(f"ok    {check}\n" for check in CHECKS)
    assert surroundings(host) == before


@pytest.mark.parametrize("booted", ["debian-12"], indirect=True)
@pytest.mark.parametrize("harm", HARMS)
def test_fails_where_something_is_wrong_and_leaves_nothing(host, smoke, harm):
    command, complaint = HARMS[harm]
    host.sh(command)
    before = surroundings(host)
    done = smoke(limit_s=1)
    assert done.returncode == 1
    assert f"FAIL  {complaint}" in done.stdout, done.stdout
    wait_for(lambda: surroundings(host) == before, "all is as it was")


@pytest.mark.parametrize("booted", ["debian-12"], indirect=True)
def test_takes_its_network_along_when_it_is_killed(host, smoke):
    """The block of its scanner ends by itself, a minute later."""
    names, interfaces, _ = surroundings(host)
    command = host.machine.inside(["sh", "-c", f"echo $$; exec {SMOKE}"])
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        pid = process.stdout.readline().strip()
        while "the new interface is watched" not in process.stdout.readline():
            assert process.poll() is None
        host.sh(f"kill -KILL {pid}")
    wait_for(lambda: surroundings(host)[:2] == (names, interfaces), "all is as it was")
