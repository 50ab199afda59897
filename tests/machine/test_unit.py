# SPDX-License-Identifier: Apache-2.0
"""The unit file on a real systemd: clean, hardened, its user and directories, descriptors kept over a restart."""

from __future__ import annotations

import re

import pytest

from tests.machine.machine import wait_for

UNIT = "packetwatch.service"

#: Stands in for the monitor: it asks systemd to keep two pipes' read ends, whose writers are gone, so that poll
#: reports a hang-up on them as it reports an error on bpf maps; or it finds what is kept.
STAND_IN = r"""#!/usr/bin/python3
import os, signal, sys
sys.path.insert(0, "/usr/lib/packetwatch")
from packetwatch import notify
from systemd import daemon

def pipe(text):
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return reader

kept = notify.inherited()
if not kept:
    notify.store("kept", pipe(b"written before"))
    daemon.notify("FDSTORE=1\nFDNAME=polled", fds=[pipe(b"x")])
    notify.barrier()
held = " ".join(f"{name}:{os.read(fd, 99).decode()}" for name, fd in kept)
notify.ready(f"found <{held}>")
signal.sigwait([signal.SIGTERM])
"""


@pytest.fixture(scope="module")
def stand_in(machine):
    """The unit with the stand-in as its program, everything else as it ships."""
    machine.write("/usr/local/bin/stand-in", STAND_IN, 0o755)
    override = "[Service]\nExecStart=\nExecStart=/usr/local/bin/stand-in\n"
    machine.write(f"/run/systemd/system/{UNIT}.d/stand-in.conf", override)
    machine.run(["systemctl", "daemon-reload"])
    yield machine
    machine.run(["systemctl", "stop", UNIT])


def test_verify_is_clean(machine):
    done = machine.run(["systemd-analyze", "verify", "--man=no", f"/usr/lib/systemd/system/{UNIT}"])
    assert (done.stdout, done.stderr) == ("", "")


def test_exposure_is_at_most_2(machine):
    unit = f"/usr/lib/systemd/system/{UNIT}"
    out = machine.run(["systemd-analyze", "security", "--no-pager", "--offline=yes", unit]).stdout
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", out)
    assert level and float(level[1]) <= 2.0, out


def test_limits(machine):
    # What systemd is to set: a test host may lack CAP_SYS_RESOURCE, and systemd sets what it can without a word.
    names = ("LimitMEMLOCK", "LogRateLimitBurst", "LogRateLimitIntervalUSec", "FileDescriptorStoreMax")
    assert machine.show(UNIT, *names) == {
        "LimitMEMLOCK": "infinity",
        "LogRateLimitBurst": "10000000",
        "LogRateLimitIntervalUSec": "1s",
        "FileDescriptorStoreMax": "256",
    }


def test_what_a_hardening_line_could_defeat(machine):
    """The lines that issue after issue of this kind come from; the settings themselves are tested as a service."""
    shown = machine.show(UNIT, "IPAddressDeny", "PrivateNetwork", "PrivateUsers", "ProcSubset", "ProtectKernelModules")
    assert shown == {
        "IPAddressDeny": "",
        "PrivateNetwork": "no",
        "PrivateUsers": "no",
        "ProcSubset": "all",
        "ProtectKernelModules": "no",
    }
    calls = set(machine.show(UNIT, "SystemCallFilter")["SystemCallFilter"].split())
    assert calls >= {"bpf", "capset", "fchown", "prctl", "prlimit64", "sendmsg", "mmap"}
    assert not calls & {"ptrace", "mount", "init_module", "setuid", "setrlimit", "reboot"}


def test_the_user_owns_what_is_its_own(machine):
    name, _, uid, gid, _, home, shell = machine.run(["getent", "passwd", "packetwatch"]).stdout.strip().split(":")
    assert (name, uid, home) == ("packetwatch", gid, "/var/lib/packetwatch")
    assert 0 < int(uid) < 1000 and shell.endswith("nologin")
    where = ["/var/lib/packetwatch", "/var/log/packetwatch", "/etc/packetwatch/packetwatch.conf.d"]
    assert machine.run(["stat", "-c", "%a %U %G", *where]).stdout.splitlines() == [
        "700 packetwatch packetwatch",
        "755 packetwatch packetwatch",
        "755 root root",
    ]


def test_the_service_is_neither_enabled_nor_started(machine):
    assert machine.run(["systemctl", "is-enabled", UNIT], check=False).stdout == "disabled\n"
    assert machine.show(UNIT, "ActiveState") == {"ActiveState": "inactive"}


def test_descriptors_outlive_restart_and_kill_but_not_stop(stand_in):
    def start(verb):
        stand_in.run(["systemctl", verb, UNIT])
        return stand_in.show(UNIT, "StatusText", "NFileDescriptorStore")

    assert start("start") == {"StatusText": "found <>", "NFileDescriptorStore": "1"}  # the polled one is dropped
    assert start("restart") == {"StatusText": "found <kept:written before>", "NFileDescriptorStore": "1"}
    stand_in.run(["systemctl", "stop", UNIT])
    assert start("start")["StatusText"] == "found <>"


def test_a_killed_service_comes_back_at_once_and_always(stand_in):
    stand_in.run(["systemctl", "restart", UNIT])
    for _ in range(10):
        pid = stand_in.show(UNIT, "MainPID")["MainPID"]
        stand_in.run(["systemctl", "kill", "-s", "KILL", UNIT])
        wait_for(lambda: is_back(stand_in, pid), "the restart", 5)
    assert stand_in.show(UNIT, "NFileDescriptorStore") == {"NFileDescriptorStore": "1"}


def is_back(machine, old_pid):
    shown = machine.show(UNIT, "ActiveState", "MainPID")
    return shown["ActiveState"] == "active" and shown["MainPID"] != old_pid


def test_the_process_has_three_capabilities_and_its_directories(stand_in):
    stand_in.run(["systemctl", "restart", UNIT])
    pid = stand_in.show(UNIT, "MainPID")["MainPID"]
    status = dict(line.split(":\t", 1) for line in stand_in.read(f"/proc/{pid}/status").splitlines())
    bits = [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")]
    assert bits == [1 << 12 | 1 << 38 | 1 << 39] * 4  # NET_ADMIN, PERFMON, BPF
    assert status["NoNewPrivs"] == "1"
    assert stand_in.show(UNIT, "WatchdogUSec") == {"WatchdogUSec": "10s"}
    assert stand_in.run(["stat", "-c", "%a %U", "/run/packetwatch"]).stdout == "755 packetwatch\n"
    stand_in.run(["systemctl", "stop", UNIT])
    assert stand_in.run(["test", "-e", "/run/packetwatch"], check=False).returncode == 1


def test_exit_78_is_final(stand_in):
    stand_in.write("/usr/local/bin/stand-in", "#!/bin/sh\nexit 78\n", 0o755)
    stand_in.run(["systemctl", "start", UNIT], check=False)
    assert stand_in.show(UNIT, "ActiveState", "NRestarts") == {"ActiveState": "failed", "NRestarts": "0"}
    stand_in.write("/usr/local/bin/stand-in", STAND_IN, 0o755)
    stand_in.run(["systemctl", "reset-failed", UNIT])


def test_is_in_no_circle_with_cloud_init(machine):
    """On cloud images cloud-init waits for the network, and sysinit.target for cloud-init."""
    units = {
        "networking": "After=network-pre.target\nBefore=network.target\n",
        "cloud-init": "Requires=networking.service\nAfter=networking.service\nBefore=sysinit.target\n",
    }
    for name, order in units.items():
        text = f"[Unit]\nDefaultDependencies=no\n{order}[Service]\nType=oneshot\nExecStart=/bin/true\n"
        machine.write(f"/run/systemd/system/{name}.service", f"{text}[Install]\nWantedBy=multi-user.target\n")
    names = [f"{name}.service" for name in units]
    machine.run(["systemctl", "--runtime", "enable", *names, UNIT])
    try:
        told = machine.run(["systemd-analyze", "verify", "--man=no", "multi-user.target"], check=False).stderr
        assert "cycle" not in told, told
        assert machine.run(["systemctl", "list-dependencies", "multi-user.target"]).stdout.count("cloud-init") == 1
    finally:
        machine.run(["systemctl", "--runtime", "disable", *names, UNIT])
        machine.run(["sh", "-c", "rm /run/systemd/system/networking.service /run/systemd/system/cloud-init.service"])
        machine.run(["systemctl", "daemon-reload"])
