# SPDX-License-Identifier: Apache-2.0
"""The smoke script of the Vagrantfile's machines, unchanged on booted ones: it passes, it can fail, it leaves nothing."""

from __future__ import annotations

import pytest

from tests.machine.machine import wait_for
from tests.package.builds import ROOT

SMOKE = ROOT / "tests/vagrant/smoke.sh"
SCANNER, DEVICE = "198.51.100.2", "pw-smoke"
CHECKS = (
    "the service is active",
    "it protects",
    "metrics at 127.0.0.1:9773",
    "and recorded",
    "the scanner is blocked",
    "and shut out",
    "nobody else is",
    "unblocked it is answered again",
    "it protects as before",
)


@pytest.fixture
def smoke(host, new):
    """What the script says and its exit status, on a machine with the package."""
    host.install(new)
    host.machine.copy(SMOKE, "/srv/smoke.sh")
    before = surroundings(host)
    yield lambda: host.sh("/srv/smoke.sh 2>&1", check=False)
    wait_for(lambda: surroundings(host) == before, "all is as it was")


def surroundings(host):
    """What the script may touch on its way."""
    watched = [row["name"] for row in host.status()["interfaces"]] if host.is_active() else []
    links = host.sh("ip -brief link; ip route show table all; ip -6 route show table all; lsns -t net -n -o NPROCS").stdout
    files = host.sh("find /etc/packetwatch /run/packetwatch /run/netns 2>/dev/null; ls -A /tmp", check=False).stdout
    return watched, links, files, host.blocked() if watched else []


def test_passes(smoke):
    done = smoke()
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    told = [line[6:] for line in done.stdout.splitlines() if line.startswith("ok    ")]
    assert set(CHECKS) <= set(told)
    assert told.count("the package's files are as it brought them") == 2


@pytest.mark.parametrize(
    "harm, complaint",
    (
        ("echo >>/usr/lib/packetwatch/packetwatch/cli.py", "the package's files differ"),
        ("packetwatch allow add 198.51.100.0/24", "the scanner is blocked: not within"),
        ("printf '[metrics]\\nlisten = off\\n' >/etc/packetwatch/packetwatch.conf.d/off.conf; systemctl restart packetwatch",
         "no metrics"),
    ),
)
def test_fails_where_something_is_wrong(host, smoke, harm, complaint):
    host.sh(harm)
    done = smoke()
    assert done.returncode == 1 and complaint in done.stdout, done.stdout
