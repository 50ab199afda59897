# SPDX-License-Identifier: Apache-2.0
"""The harness itself: a machine boots, keeps what it should over a reboot, and leaves nothing behind."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from tests.machine.machine import ADDRESS, CACHE, CHECKOUT, PEER, Machine, wait_for


def traces():
    """Everything of the host that a machine could leave behind; what else runs on the host does not count."""
    mounts = [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if str(CACHE) in line]
    links = [name for _, name in socket.if_nameindex() if name.startswith("ve-")]
    paths = [path for top in ("/sys/fs/cgroup", "/run") for path in walk(top) if is_trace(path)]
    kept = set(os.listdir(CACHE)) - {"mnt"}  # the empty folder that every machine mounts on
    return mounts, links, paths, list(processes()), kept


def walk(top):
    """Every path below; what vanishes meanwhile is passed over."""
    for folder, folders, files in os.walk(top):
        yield from (pathlib.Path(folder, name) for name in folders + files)


def is_trace(path):
    named = re.fullmatch(r"pw\d+x\d+", path.name)
    return named or path.name in ("payload", "supervisor") or "nspawn" in path.parts


def processes():
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith((b"boot.sh", b"systemd-nspawn")) for word in words):
            yield words


def test_nothing_is_left(root):
    before = traces()
    with Machine(root) as machine:
        assert machine.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
        assert traces() != before
    assert traces() == before


def test_nothing_is_left_of_a_killed_run(root):
    before = traces()
    code = "from tests.machine.machine import *\nwith Machine(build_root()) as m: print(m.leader, flush=True); input()"
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    leader = pathlib.Path("/proc", run.stdout.readline().strip())
    assert leader.exists()
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_for(lambda: traces() == before and not leader.exists(), "the machine is gone")


def test_two_machines_at_once_do_not_meet(root, bare_machine):
    with Machine(root) as other:
        other.write("/etc/mark", "other")
        assert other.run(["hostname"]).stdout != bare_machine.run(["hostname"]).stdout
        assert bare_machine.run(["test", "-e", "/etc/mark"], check=False).returncode == 1


def test_the_peer_connects(bare_machine):
    with_port = "import socket; s = socket.create_server(('', 80)); print(flush=True); print(s.accept()[1][0])"
    server = subprocess.Popen(bare_machine.inside(["python3", "-c", with_port]), stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    with bare_machine.peer_address("192.0.2.77") as source:
        assert bare_machine.connect(80, source) == "connected"
    assert server.communicate(timeout=10)[0] == "192.0.2.77\n"
    assert bare_machine.connect(81) == "refused"
    assert bare_machine.connect(81, "2001:db8::2") == "refused"
    bare_machine.run(["ip", "route", "add", "blackhole", f"{PEER}/32"])
    assert bare_machine.connect(81, timeout_s=0.3) == "dropped"
    bare_machine.run(["ip", "route", "del", "blackhole", f"{PEER}/32"])


def test_a_failing_command_is_an_error(bare_machine):
    with pytest.raises(AssertionError, match="ended with 7"):
        bare_machine.run(["sh", "-c", "exit 7"])


def test_a_reboot_keeps_files_and_network(bare_machine):
    bare_machine.write("/var/lib/kept", "kept")
    bare_machine.write("/run/lost", "lost")
    bare_machine.reboot()
    assert bare_machine.read("/var/lib/kept") == "kept"
    assert bare_machine.run(["test", "-e", "/run/lost"], check=False).returncode == 1
    assert f"default via {PEER}" in bare_machine.run(["ip", "route"]).stdout
    assert ADDRESS in bare_machine.run(["ip", "address"]).stdout
