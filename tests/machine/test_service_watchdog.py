# SPDX-License-Identifier: Apache-2.0
"""What starves the watchdog, and what does not: killed, the service comes back with its blocks and its link."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.machine.machine import wait_for
from tests.machine.service import SCANNER

WATCHDOG_S = 2
#: Makes a call fail while a file is there. Appended to the installed module, since nobody can break it from outside.
FAULT = """
import os
_sound = {call}

def _faulty(self, *arguments):
    if os.path.exists("/var/lib/packetwatch/fault"):
        {fault}
    return _sound(self, *arguments)

{call} = _faulty
"""


#: As after a sleep: the boot clock has gone on, systemd's stood still. The sleep itself is not to be had here.
SLEPT = """
import os
_awake = boot_ns

def boot_ns():
    return _awake() + (600_000_000_000 if os.path.exists("/var/lib/packetwatch/slept") else 0)
"""


@pytest.fixture
def watched(service):
    """Running under an impatient watchdog, and SCANNER is blocked."""
    service.drop_in(f"WatchdogSec={WATCHDOG_S}")
    service.start().scan()
    return service


def starved(service, pid):
    service.is_back(pid)
    assert service.show("NRestarts") == ["1"]
    assert "Watchdog timeout" in service.told()


def test_a_stopped_process_is_killed_and_followed(watched):
    link, pid = watched.link(), watched.pid
    watched.kill("STOP")
    assert not watched.reaches(SCANNER)
    starved(watched, pid)
    assert watched.link() == link
    assert watched.blocked() == [SCANNER]
    assert watched.status()["adopted"]


def test_a_link_that_was_taken_away_is_made_again(watched):
    (link_id, _), pid = watched.link(), watched.pid
    subprocess.run(["bpftool", "link", "detach", "id", str(link_id)], check=True)
    wait_for(lambda: watched.text == "host0: the program was taken off the interface", "it says so")
    status = watched.status()
    assert not status["protecting"] and "host0: the program was taken off the interface" in status["problems"]
    starved(watched, pid)
    assert watched.link()[0] != link_id
    assert watched.status()["protecting"] and watched.status()["adopted"]
    assert not watched.reaches(SCANNER)


@pytest.mark.parametrize(
    ("module", "call", "fault", "told"),
    (
        ("kernel", "Kernel.raw_settings", "raise OSError(1, 'Operation not permitted')", "the maps cannot be read"),
        ("ring", "Ring.peek", "return memoryview(b'')", "the ring of connections does not move"),
        ("drain", "Drain.run", "__import__('time').sleep(60)", None),
    ),
)
def test_a_fault_within_starves_it(service, module, call, fault, told):
    with service.altered(f"packetwatch/{module}.py", lambda text: text + FAULT.format(call=call, fault=fault)):
        service.drop_in(f"WatchdogSec={WATCHDOG_S}")
        service.start().scan()
        link, pid = service.link(), service.pid
        service.machine.run(["touch", "/var/lib/packetwatch/fault"])
        service.reaches("192.0.2.78")  # something to drain
        if told:
            wait_for(lambda: service.text.startswith(told), "it says so")
    starved(service, pid)
    assert service.link() == link
    assert not service.reaches(SCANNER)


def test_idle_networks_and_missing_interfaces_do_not(service):
    """One never was there, one goes while it is watched, and there is no traffic."""
    machine = service.machine
    machine.run(["ip", "link", "add", "goes0", "type", "veth", "peer", "name", "goes1"])
    machine.run(["ip", "link", "set", "goes0", "up"])
    service.drop_in(f"WatchdogSec={WATCHDOG_S}")
    service.start("[packetwatch]\ninterface = goes0 never0\n")
    pid = service.pid
    assert service.text == "enforce, watching goes0 (native)"
    machine.run(["ip", "link", "del", "goes0"])
    wait_for(lambda: service.text == "enforce, waiting for an interface", "it has seen that")
    time.sleep(3 * WATCHDOG_S)
    assert service.show("MainPID", "NRestarts", "ActiveState") == [pid, "0", "active"]
    assert [row["fault"] for row in service.status()["interfaces"]] == [
        "goes0: no such interface; waiting for it",
        "never0: no such interface; waiting for it",
    ]


def test_a_machine_that_was_suspended_does_not(service):
    with service.altered("packetwatch/clock.py", lambda text: text + SLEPT):
        service.drop_in(f"WatchdogSec={WATCHDOG_S}")
        service.start("[block]\nfirst = 1h\nproof = none\n").scan()
        pid = service.pid
        service.machine.run(["touch", "/var/lib/packetwatch/slept"])
        time.sleep(3 * WATCHDOG_S)
        assert service.show("MainPID", "NRestarts", "ActiveState") == [pid, "0", "active"]
        assert not service.reaches(SCANNER) and service.blocked() == [SCANNER]


def test_a_short_stop_loses_nothing(watched):
    pid = watched.pid
    watched.kill("STOP")
    watched.connect_often(1000, "192.0.2.78")
    watched.kill("CONT")
    wait_for(lambda: watched.count("connection") == 1003, "the records")
    assert watched.show("MainPID", "NRestarts") == [pid, "0"]
    ledger = watched.status()["ledger"]
    assert (ledger["connections"], ledger["connections_lost"]) == (1003, 0)
