# SPDX-License-Identifier: Apache-2.0
"""The service started and stopped: what it reports, records, may do, and leaves behind."""

from __future__ import annotations

import datetime
import re
import time

from packetwatch import program
from tests.machine.machine import ADDRESS, ADDRESS6, PEER, PEER6, wait_for
from tests.machine.service import CLOSED_PORT, OPEN_PORT, SCANNER, UNIT, bpftool, ids_of, listener, proc_status

CAP_NET_ADMIN, CAP_BPF = 1 << 12, 1 << 39
#: The machine has the host's clock, which is not ours to set: so the service is told another.
STEP = """
import os
_sound = wall_offset_ns

def wall_offset_ns():
    return _sound() + (7_200_000_000_000 if os.path.exists("/var/lib/packetwatch/step") else 0)
"""
UNCOUNTED = "[Journal]\nRateLimitIntervalSec=30s\nRateLimitBurst=100\n"


def test_a_fresh_start_is_ready_with_its_link(service):
    service.machine.write("/etc/resolv.conf", "nameserver 192.0.2.99\n")  # nobody: as before the network is up
    begun = time.monotonic()
    service.start()
    assert time.monotonic() - begun < 5  # a look-up would take 10 s
    assert service.is_active()
    assert service.text == "enforce, watching host0 (native)"
    link_id, program_id = service.link()
    link = next(link for link in bpftool("link", "show") if link["id"] == link_id)
    assert (link["type"], link["prog_id"]) == ("xdp", program_id)
    status = service.status()
    assert status["protecting"] and not status["problems"] and not status["adopted"]
    assert status["watchdog"] == {"enabled": True, "interval_s": 10.0}
    assert status["log_format"] == "journal"


def test_a_scan_over_real_tcp_is_told_and_ended(service):
    service.start().scan()
    assert not service.reaches(SCANNER)
    assert not service.reaches(SCANNER, 81)
    ledger = service.status()["ledger"]
    assert ledger == {
        "syns": 5,
        "connections": 3,
        "connections_folded": 0,
        "connections_dropped": 2,
        "connections_lost": 0,
    }
    assert service.machine.connect(81) == "refused"  # the default gateway is never blocked


def test_records_are_structured_in_the_journal(service):
    service.start().scan()
    connection = service.records("connection", 3)[0]
    fields = {name: value for name, value in connection.items() if name.startswith("PACKETWATCH_")}
    assert fields.pop("PACKETWATCH_TIMESTAMP").endswith("Z") and fields.pop("PACKETWATCH_SRC_PORT").isdigit()
    assert fields == {
        "PACKETWATCH_EVENT_TYPE": "connection",
        "PACKETWATCH_IN_IFACE": "host0",
        "PACKETWATCH_SRC_IP": SCANNER,
        "PACKETWATCH_DEST_IP": ADDRESS,
        "PACKETWATCH_DEST_PORT": "81",
        "PACKETWATCH_PROTO": "TCP",
        "PACKETWATCH_PORT_STATE": "closed",
    }
    assert connection["MESSAGE"].startswith(f"New connection: {SCANNER}:")
    assert (connection["_SYSTEMD_UNIT"], connection["SYSLOG_IDENTIFIER"]) == (UNIT, "packetwatch")
    (scan,), (block,) = service.records("scan", 1), service.records("block", 1)
    assert scan["PACKETWATCH_PORTS"] == "81,82,83"
    assert block["PACKETWATCH_REASON"] == "port scan"
    assert [record["PRIORITY"] for record in (connection, block, scan)] == ["6", "5", "4"]
    assert len({record["MESSAGE_ID"] for record in (connection, block, scan)}) == 3


def test_warnings_are_few(service):
    service.start().scan()
    service.records("block", 1)
    found = service.machine.journal(service.since, "--priority=warning", f"--unit={UNIT}")
    assert [record["PACKETWATCH_EVENT_TYPE"] for record in found] == ["scan"]


def test_the_catalog_explains_every_record(service):
    service.start().scan()
    service.systemctl("stop")
    out = service.machine.run(["journalctl", "-x", "-q", service.since, f"--unit={UNIT}"]).stdout
    for subject in (
        "Packetwatch has started",
        f"New TCP connection from {SCANNER}",
        "Port scan of ",
        "Blocked until ",
        "Packetwatch has stopped",
    ):
        assert f"Subject: {subject}" in out
    explained = [line for line in out.splitlines() if line.startswith("░░")]
    assert not [line for line in explained if "PACKETWATCH_" in line or "@" in line]


def test_the_journal_has_every_record(service):
    """Also where journald is set to suppress what comes fast; sent no faster than it writes, or some would be lost."""
    service.machine.write("/etc/systemd/journald.conf.d/test.conf", UNCOUNTED)
    service.machine.run(["systemctl", "restart", "systemd-journald"])
    service.start("[log]\nfold_rate = 0\n")
    for sent in range(2_000, 20_001, 2_000):
        service.connect_often(2_000, SCANNER)
        wait_for(lambda: service.count("connection") >= sent, f"{sent} records", 60)
    ledger = service.status()["ledger"]
    assert (ledger["syns"], ledger["connections"], ledger["connections_lost"]) == (20_000, 20_000, 0)
    assert service.count("connection") == 20_000
    assert service.records("loss") == []


def test_above_the_fold_rate_sums_make_up_the_rest(service):
    service.start("[log]\nfold_rate = 10\nfold_burst = 100\n")
    service.connect_often(2_000, SCANNER)
    wait_for(lambda: folded(service) + service.count("connection") == 2_000, "single records and sums")
    ledger = service.status()["ledger"]
    assert ledger["connections"] == service.count("connection") < 300
    assert ledger["connections_folded"] == folded(service)


def folded(service):
    return sum(int(record["PACKETWATCH_COUNT"]) for record in service.records("summary"))


def test_only_two_capabilities_are_left(service):
    service.start()
    status = proc_status(service.machine, service.pid)
    uid = service.machine.run(["id", "-u", "packetwatch"]).stdout.strip()
    assert set(status["Uid"].split()) == {uid} and uid != "0"
    sets = {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")}
    both = CAP_NET_ADMIN | CAP_BPF
    assert sets == {"CapPrm": both, "CapEff": both, "CapInh": 0, "CapAmb": 0}
    assert status["NoNewPrivs"] == "1"


def test_no_llvm_in_the_resident(service):
    service.start()
    maps = service.machine.read(f"/proc/{service.pid}/maps")
    assert "libbpf" in maps
    assert "LLVM" not in maps and "libbcc" not in maps
    tasks = service.machine.run(["systemctl", "show", UNIT, "-pControlGroup", "--value"]).stdout.strip()
    assert service.machine.read(f"/sys/fs/cgroup{tasks}/cgroup.procs").split() == [service.pid]  # the loader is gone


def test_stop_leaves_nothing(service):
    service.start().scan()
    _, program_id = service.link()
    there = ids_of(program_id, service.handshakes()[1])
    assert {kind: len(ids) for kind, ids in there.items()} == {"prog": 2, "map": len(program.MAPS), "link": 2}
    service.systemctl("stop")
    wait_for(lambda: not left(there), "the kernel frees what was loaded")  # it does so a moment later
    assert "xdp" not in service.machine.run(["ip", "-details", "link", "show", "host0"]).stdout
    assert service.machine.run(["test", "-e", "/run/packetwatch"], check=False).returncode == 1
    assert service.machine.run(["packetwatch", "status"], check=False).returncode == 3
    assert service.show("NFileDescriptorStore", "Result") == ["0", "success"]
    assert service.reaches(SCANNER)


def left(there):
    return {kind: found for kind, ids in there.items() if (found := ids & {row["id"] for row in bpftool(kind, "show")})}


def test_a_stop_is_not_for_ever(service):
    """What was blocked is blocked again at the next start."""
    service.start().scan()
    service.systemctl("stop")
    service.start()
    assert service.blocked() == [SCANNER]
    assert not service.reaches(SCANNER)


def test_without_a_default_route_it_waits_for_one(service):
    machine = service.machine
    for family, gateway in (("-4", PEER), ("-6", PEER6)):
        machine.run(["ip", family, "route", "del", "default", "via", gateway])
    try:
        service.start()
        assert service.is_active()
        assert service.text == "enforce, waiting for an interface"
        assert service.status()["interfaces"] == []
        assert not service.status()["protecting"]
        machine.run(["ip", "route", "add", "default", "via", PEER])
        wait_for(lambda: service.text == "enforce, watching host0 (native)", "it has seen the route")
        service.scan()
        assert not service.reaches(SCANNER)
    finally:
        machine.run(["ip", "route", "replace", "default", "via", PEER])
        machine.run(["ip", "route", "replace", "default", "via", PEER6])


def test_ipv6_is_watched_as_well(service):
    service.start()
    with service.machine.peer_address("2001:db8::77") as source:
        assert service.machine.connect_all((81, 82, 83), source) == ["refused"] * 3
        wait_for(lambda: service.blocked() == [source], "the block")
        assert service.machine.connect(84, source, timeout_s=0.4) == "dropped"
    assert service.records("scan", 1)[0]["PACKETWATCH_DEST_IP"] == ADDRESS6


def test_whoever_has_connected_is_established(service):
    """The service's user and rights are enough for a program on the root cgroup."""
    service.start()
    assert service.status()["handshakes"] == "seen"
    with service.machine.peer_address(SCANNER), listener(service.machine):
        assert service.machine.connect(CLOSED_PORT, SCANNER) == "refused"
        assert service.ask("why", SCANNER)["evidence"] == "seen"
        assert service.machine.connect(OPEN_PORT, SCANNER) == "connected"
    assert service.ask("why", SCANNER)["evidence"] == "established"


def test_a_kernel_that_takes_no_program_for_handshakes_has_all_the_rest(service):
    refused = re.compile(r"(int established.*?return) 1;", re.S)
    with service.altered("bpf/packetwatch.c", lambda text: refused.sub(r"\1 7;", text)):
        service.start().scan()
        status = service.status()
        assert status["protecting"] and not status["problems"]
        assert status["handshakes"].startswith("not seen: the kernel's verifier refuses the kernel half: ")
        assert "handshakes are not seen, so no source counts as established: the kernel's" in service.told()
        service.systemctl("restart")
        status = service.status()
        assert status["adopted"] and status["protecting"]
        assert status["handshakes"] == "not seen: the kernel has refused the program for the root cgroup"
        assert service.show("NFileDescriptorStore") == [str(len(program.MAPS) + 3)]  # program, link, memory


def test_a_clock_step_moves_the_times_told_and_no_block(service):
    """Two hours on, and a block lasts a minute."""
    with service.altered("packetwatch/clock.py", lambda text: text + STEP):
        service.start().scan()
        end = parsed(service.ask("block", "list")[0]["until"])
        service.machine.run(["touch", "/var/lib/packetwatch/step"])
        assert not service.reaches(SCANNER)
        service.machine.connect(81)
        record = service.records("connection", 4)[-1]
        ahead = parsed(record["PACKETWATCH_TIMESTAMP"]).timestamp() - time.time()
        assert 7195 < ahead < 7205
        time.sleep(1.5)  # when it looks for blocks that have ended
        row, = service.ask("block", "list")
        assert abs((parsed(row["until"]) - end).total_seconds() - 7200) < 2
        service.systemctl("restart")
        assert not service.reaches(SCANNER)
        assert service.records("unblock") == []


def parsed(text):
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
