# SPDX-License-Identifier: Apache-2.0
"""`puppet apply` on booted systems, with Debian's Puppet and a signed repository of two versions."""

from __future__ import annotations

import contextlib
import pathlib
import re
import subprocess
import time

import pytest

from tests.machine.machine import PUPPET, Machine, build_root
from tests.machine.service import CONFIG
from tests.package import builds
from tests.puppet.host import CHANGED, FAILED, REPO, UNCHANGED, Puppet

DROP_IN = f"{CONFIG}.d/50-puppet.conf"


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    return [builds.build(each, tmp_path_factory.mktemp("build")) for each in (builds.OLD, builds.NEW)]


@pytest.fixture(scope="module")
def published(versions, tmp_path_factory):
    made = tmp_path_factory.mktemp("published") / "repo"
    builds.publish(versions, made, f"file://{REPO}", tmp_path_factory.mktemp("gnupg"))
    return made


@contextlib.contextmanager
def booted_with(puppet, release, published):
    with Machine(build_root(PUPPET[release], release)) as machine:
        host = Puppet(machine)
        host.prepare(pathlib.Path())
        machine.copy(published, REPO)
        assert machine.run(["puppet", "--version"]).stdout.startswith(puppet)
        yield host


@pytest.fixture(scope="module")
def booted(published):
    """With Debian 12's Puppet."""
    with booted_with("7.", "bookworm", published) as host:
        yield host


@pytest.fixture
def fresh(booted):
    return booted.begin()


@pytest.fixture
def host(booted):
    """With the module's defaults in force."""
    booted.converge(metrics_listen="127.0.0.1:9773")
    booted.mark()
    return booted


def test_the_first_run_installs_and_the_second_changes_nothing(fresh):
    assert fresh.converge() == CHANGED
    assert fresh.is_active() and fresh.is_enabled() == "enabled" and fresh.status()["protecting"]
    pid = fresh.pid
    code, said = fresh.apply()
    assert code == UNCHANGED, said
    assert fresh.pid == pid
    assert fresh.verify() == ""


def test_a_canary_has_never_dropped_anything(fresh):
    """Installed while somebody scans: the settings are there before the package, so its first start observes."""
    scanner = ["/usr/bin/python3", "-c", _SCAN, "192.0.2.1"]
    with fresh.machine.peer_address("192.0.2.77"):
        scan = subprocess.Popen(fresh.machine.beside(scanner), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert fresh.converge(mode="observe") == CHANGED
            time.sleep(0.5)
            sent, silent = map(int, scan.communicate("\n", timeout=20)[0].split())
        finally:
            scan.kill()
    assert silent == 0 and sent > 100
    status = fresh.status()
    assert status["mode"] == "observe" and status["ledger"]["connections_dropped"] == 0
    assert status["scans"] >= 1 and fresh.blocked() == ["192.0.2.77"]


def test_a_changed_setting_is_a_reload(host):
    pid = host.pid
    assert host.converge(scan_ports=5, allow=["192.0.2.10"]) == CHANGED
    assert host.pid == pid and host.ask("check")["settings"]["scan.ports"] == "5"
    assert host.status()["config"]["ok"]
    assert "192.0.2.10" in [row["prefix"] for row in host.ask("allow", "list")]
    assert host.converge(scan_ports=5, allow=["192.0.2.10"]) == UNCHANGED


def test_a_setting_that_needs_it_is_a_restart(host):
    pid = host.pid
    assert host.converge(ring_size="8M") == CHANGED
    assert host.pid != pid and host.is_active()
    assert host.converge(ring_size="8M") == UNCHANGED


def test_a_stopped_service_is_started(host):
    host.systemctl("stop")
    assert host.converge(metrics_listen="127.0.0.1:9773") == CHANGED
    assert host.is_active()


def test_a_pinned_version_is_installed_up_and_down(host):
    for version in (builds.OLD, builds.NEW):
        assert host.converge(package_ensure=version) == CHANGED
        assert host.version() == host.status()["version"] == version
        assert host.converge(package_ensure=version) == UNCHANGED


@pytest.mark.parametrize("name, value, told", (
    ("allow", ["10.0.0.1/8"], "10.0.0.0/8"),  # right by its form: only the product's own check sees it
    ("scan_ports", 1, "scan_ports"),
))
def test_a_bad_value_fails_the_run_and_nothing_else(host, name, value, told):
    pid, settings = host.pid, host.machine.read(DROP_IN)
    code, said = host.apply(**{name: value})
    assert code in (1, *FAILED) and told in said
    assert host.pid == pid and host.is_active() and host.machine.read(DROP_IN) == settings
    assert host.status()["config"]["ok"]


def test_headers_that_nobody_has_are_a_notice(host):
    """This kernel is none of Debian's. The run succeeds, and nothing waits for them."""
    code, said = host.apply(running_headers=True)
    assert code in (UNCHANGED, CHANGED), said
    release = host.machine.run(["uname", "-r"]).stdout.strip()
    assert re.search(rf"linux-headers-{re.escape(release)} is not to be had", said)
    assert host.fact()["headers"]["running"] is False


def test_absent_leaves_nothing(host):
    assert host.converge(ensure="absent") == CHANGED
    assert host.converge(ensure="absent") == UNCHANGED
    assert host.sh("ls -d /etc/packetwatch /var/lib/packetwatch /usr/lib/packetwatch", check=False).stdout == ""
    assert not host.is_active()


def test_with_puppet_8(published):
    """Debian 13's, through all of it."""
    with booted_with("8.", "trixie", published) as host:
        host.begin()
        assert [host.converge(package_ensure=builds.OLD) for _ in range(2)] == [CHANGED, UNCHANGED]
        link, pid = host.link(), host.pid
        assert host.converge(package_ensure=builds.OLD, scan_ports=5) == CHANGED
        assert host.pid == pid and host.ask("check")["settings"]["scan.ports"] == "5"
        assert host.converge(package_ensure=builds.NEW, scan_ports=5) == CHANGED
        assert host.version() == host.status()["version"] == builds.NEW and host.link() == link
        code, said = host.apply(package_ensure=builds.NEW, allow=["10.0.0.1/8"])
        assert code in FAILED and "10.0.0.0/8" in said and host.is_active()
        assert host.fact()["version"] == builds.NEW
        assert [host.converge(ensure="absent") for _ in range(2)] == [CHANGED, UNCHANGED]


_SCAN = """
import itertools, select, socket, sys
sent = silent = 0
for port in itertools.cycle(range(81, 99)):
    if select.select([sys.stdin], [], [], 0.02)[0]:
        break
    sent += 1
    with socket.socket() as link:
        link.settimeout(0.9)
        link.bind(("192.0.2.77", 0))
        try:
            link.connect((sys.argv[1], port))
        except ConnectionRefusedError:
            pass
        except OSError:
            silent += 1
print(sent, silent)
"""
