# SPDX-License-Identifier: Apache-2.0
"""The life of a package on booted systems: Debian's with apt, and the .rpm with dnf and stand-ins for EL's names."""

from __future__ import annotations

import json
import re
import socket
import time

import pytest

from packetwatch.sinks.metrics import PRELOAD_S
from tests.machine.machine import wait_for
from tests.machine.service import CONFIG, SCANNER, UNIT, bpftool
from tests.package.host import Dpkg

SOMEBODY = "192.0.2.78"
EDITED = "# edited\n[scan]\nwindow = 61s\n"
#: What a package manager or systemd may leave behind that is not the package's doing.
OTHERS = "|".join((
    "/var/lib/(dpkg|apt|rpm|dnf|private)", "/var/log/(apt|dpkg|dnf|hawkey|journal)", "/var/cache", "/var/backups",
    "/var/lib/systemd/(catalog|random-seed|timers)", "/run/(systemd|log|user|utmp|dbus|udev)", "/etc/ld.so.cache",
    "/usr/lib/sysimage", "/usr/lib/python3[^ ]*/__pycache__", "/root|/srv|/tmp",
))
SCRAPE = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
LIST = f"""
find / -xdev -mindepth 1 \\( -path /proc -o -path /sys -o -path /dev \\) -prune -o -print |
    grep -Ev '^({OTHERS})' | sort
find /run/packetwatch /sys/fs/bpf -mindepth 1 2>/dev/null | sort
cut -d: -f1 /etc/passwd /etc/group
cut -d' ' -f2 /proc/mounts | sort
ip -details link show | grep -o 'prog/xdp id .*'
"""


def exposure(host):
    out = host.sh("systemd-analyze security --no-pager packetwatch.service").stdout
    return float(re.search(r"Overall exposure level for \S+: ([\d.]+)", out)[1])


def everything(host):
    """Files, users, groups, mounts and attached programs: what a purge must not leave behind."""
    return set(host.sh(LIST, check=False).stdout.splitlines())


def is_loaded(program):
    """Whether the kernel has it yet, which frees what nobody holds a moment later."""
    return program in [each["id"] for each in bpftool("prog", "show")]


def test_a_fresh_install_protects(host, new):
    begun = time.monotonic()
    host.install(new)
    assert host.is_active() and host.is_enabled() == "enabled"
    host.machine.connect(9)
    host.records("connection", 1)
    print(f"from unpacking to the first record: {time.monotonic() - begun:.1f} s")
    host.scan()
    assert not host.reaches(SCANNER) and host.reaches(SOMEBODY)
    assert host.ask("version")["version"] == host.version() == new.version
    explained = host.sh("journalctl --sync; journalctl -x PACKETWATCH_EVENT_TYPE=block").stdout
    assert "Subject: Blocked until " in explained
    assert exposure(host) <= 2.0
    assert host.verify() == ""


def test_use_leaves_the_package_as_it_was(host, new):
    host.install(new)
    compiled = host.sh("find /usr/lib/packetwatch -name '*.pyc' -newermt @0 -printf '%p %T@\\n' | sort").stdout
    assert "cli.cpython" in compiled
    host.sh("packetwatch status; packetwatch check; packetwatch block list; packetwatch --help; rm -rf /tmp/state")
    places = "--socket /tmp/state.sock --state /tmp/state --metrics-listen off"
    host.sh(f"! timeout 5 packetwatch run --interface lo {places}")
    host.systemctl("restart")
    assert host.verify() == ""
    assert host.sh("find /usr/lib/packetwatch -name '*.pyc' -newermt @0 -printf '%p %T@\\n' | sort").stdout == compiled


@pytest.mark.parametrize("way", ("up", "down"))
def test_an_upgrade_goes_unnoticed(host, old, new, way):
    """And a downgrade. 1,000 new connections a second meanwhile; an edited conffile stays as it is."""
    first, second = (old, new) if way == "up" else (new, old)
    host.install(first)
    host.machine.write(CONFIG, EDITED)
    host.systemctl("reload")
    host.scan()
    sources = [SOMEBODY, *(f"192.0.2.{n}" for n in range(80, 84))]
    link, before, pid = host.link(), host.status()["ledger"]["syns"], host.pid
    with host.traffic(*sources, SCANNER) as traffic:
        time.sleep(0.3)
        host.install(second)
        time.sleep(0.3)
        sent = traffic.end()
    assert all(sent[source]["silent"] == 0 for source in sources)
    assert sent[SCANNER]["answered"] == 0 and sent[SCANNER]["silent"] > 0
    status = host.status()
    assert status["ledger"]["syns"] - before == sent.total
    assert status["ledger"]["connections_lost"] == 0
    assert host.link() == link and host.pid != pid
    assert host.blocked() == [SCANNER]
    assert status["version"] == host.version() == second.version
    assert host.machine.read(CONFIG) == EDITED
    print(f"{sent.total} connections, all of them judged")


def test_disabled_stays_disabled(host, old, new):
    host.install(old)
    host.systemctl("disable", "--now")
    host.install(new)
    assert host.is_enabled() == "disabled" and not host.is_active()


def test_disabled_but_running_is_upgraded(host, old, new):
    host.install(old)
    host.systemctl("disable")
    host.install(new)
    assert host.is_enabled() == "disabled" and host.status()["version"] == new.version


def test_masked_stays_masked(host, old, new):
    host.install(old)
    host.machine.run(["systemctl", "mask", "--now", UNIT])
    done = host.install(new)
    assert host.is_enabled() == "masked" and not host.is_active()
    assert "Traceback" not in done.stdout + done.stderr


def test_masked_before_is_never_started(host, new):
    host.machine.run(["systemctl", "mask", UNIT])
    host.install(new)
    assert host.is_enabled() == "masked" and not host.is_active()


def test_a_removal_detaches_and_a_reinstallation_runs(host, new):
    host.install(new)
    host.machine.write(CONFIG, EDITED)
    host.machine.write(f"{CONFIG}.d/50-own.conf", "[scan]\nports = 4\n")
    program = host.link()[1]
    host.remove()
    assert not host.is_active()
    wait_for(lambda: not is_loaded(program), "the program is gone")
    assert host.sh("ls /usr/lib/packetwatch /usr/bin/packetwatch", check=False).stdout == ""
    host.install(new)
    assert host.is_active() and host.is_enabled() == "enabled"
    assert host.ask("check")["settings"]["scan.ports"] == "4"
    if isinstance(host, Dpkg):  # rpm leaves the edited file as packetwatch.conf.rpmsave
        assert host.machine.read(CONFIG) == EDITED


def test_a_purge_leaves_nothing(host, new):
    before = everything(host)
    host.install(new)
    host.machine.write(f"{CONFIG}.d/50-own.conf", "[log]\nfile = /var/log/packetwatch/packetwatch.json\n")
    host.systemctl("restart")
    host.scan()
    program = host.link()[1]
    assert everything(host) != before and is_loaded(program)
    host.remove()
    host.purge()
    wait_for(lambda: not is_loaded(program), "the program is gone")
    wait_for(lambda: not host.sh("ls /run/packetwatch", check=False).stdout, "the runtime directory is gone")
    left = everything(host) - before
    if not isinstance(host, Dpkg):  # rpm never takes a user away
        left -= {"packetwatch"}
    assert left == set()


def test_a_start_that_fails_says_so_and_does_not_fail_the_installation(host, new):
    host.machine.write(f"{CONFIG}.d/50-own.conf", "[scan]\nports = many\n")
    done = host.install(new)
    assert "journalctl -u packetwatch" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr + host.told()
    host.sh(f"rm {CONFIG}.d/50-own.conf")
    assert host.install(new).returncode == 0


def test_an_image_gets_the_service_enabled_and_not_started(host, new):
    """As in a chroot: systemd is there, but does not run."""
    host.install(new, before="unshare -m sh -c 'mount -t tmpfs none /run/systemd && exec \"$@\"' sh")
    assert host.is_enabled() == "enabled" and not host.is_active()


def test_python_may_change_beneath_a_running_service(host, new):
    """Its library and ours gone, as between two versions of Python: everything needed is in memory already."""
    host.install(new)
    time.sleep(PRELOAD_S + 1)
    pid, away = host.pid, "/usr/lib/python3* /usr/lib/packetwatch/packetwatch"
    host.sh(f"for each in {away}; do mv $each $each.away; done")
    try:
        answers = [ask_from_outside(host, do) for do in ({"do": "reload"}, {"do": "status"}, {"do": "block.list"})]
        with host.machine.peer_address(SCANNER):
            host.machine.connect_all((81, 82, 83), SCANNER)
        scraped = host.from_outside(SCRAPE, "http://127.0.0.1:9773/metrics")
    finally:
        host.sh("for each in /usr/lib/python3*.away /usr/lib/packetwatch/*.away; do mv $each ${each%.away}; done")
    assert all(answer["ok"] for answer in answers)
    assert "packetwatch_syns_total" in scraped
    assert len(host.records("scan", 1)) == 1 and host.pid == pid
    assert not re.search("Traceback|Error", host.told())


def ask_from_outside(host, request):
    """One answer of the control socket, by a client that needs no Python on the machine."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(f"/proc/{host.machine.leader}/root/run/packetwatch/packetwatch.sock")
        link.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(link.makefile().readline())
