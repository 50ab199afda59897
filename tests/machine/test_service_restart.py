# SPDX-License-Identifier: Apache-2.0
"""From one process of the service to the next: the program stays, every packet is judged, blocks are in force."""

from __future__ import annotations

import json
import time

import pytest

from packetwatch import program
from tests.machine.machine import PEER, wait_for
from tests.machine.service import CONFIG, SCANNER, UNIT, bpftool

SOMEBODY, OTHER = "192.0.2.78", "192.0.2.79"
DIES_ONCE = """
import signal

try:
    os.unlink("/var/lib/packetwatch/die")
except OSError:
    pass
else:
    def {step}(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)
"""
FAULTY = "[scan]\nports = many\n"


@pytest.fixture
def protected(service):
    """Running, and SCANNER is blocked."""
    service.start().scan()
    return service


def restart(service):
    service.systemctl("restart")


def kill(service):
    pid = service.pid
    service.kill()
    service.is_back(pid)


def kill_often(service):
    for _ in range(10):
        pid = service.pid
        service.kill()
        service.is_back(pid, 5)


def reexec(service):
    service.machine.run(["systemctl", "daemon-reexec"])
    restart(service)


@pytest.mark.parametrize("again", (restart, kill, reexec))
def test_no_packet_goes_unjudged(protected, again):
    """Two sources connect all the time, one of them blocked: all they sent is counted, and she never got through."""
    link, before = protected.link() + protected.handshakes(), protected.status()["ledger"]["syns"]
    with protected.traffic(SOMEBODY, SCANNER) as traffic:
        time.sleep(0.3)
        again(protected)
        time.sleep(0.3)
        sent = traffic.end()
    assert sent[SCANNER]["answered"] == sent[SOMEBODY]["silent"] == 0
    assert sent[SOMEBODY]["answered"] > 100 and sent[SCANNER]["silent"] > 100
    status = protected.status()
    assert status["adopted"] and status["protecting"]
    assert status["ledger"]["syns"] - before == sent.total
    assert status["ledger"]["connections_lost"] == 0
    recorded = status["ledger"]["connections"]
    wait_for(lambda: protected.count("connection") >= recorded, "the records")
    twice = protected.count("connection") - recorded  # written, but not yet given back to the ring when it was killed
    assert twice == 0 or again is kill and twice < 100
    assert protected.link() + protected.handshakes() == link
    assert protected.ask("why", SOMEBODY)["evidence"] == "established"
    assert protected.blocked() == [SCANNER]


def test_ten_kills_in_a_row(protected):
    link = protected.link()
    with protected.traffic(SOMEBODY, SCANNER) as traffic:
        kill_often(protected)
        sent = traffic.end()
    assert protected.show("ActiveState", "NRestarts") == ["active", "10"]
    assert protected.link() == link
    assert sent[SCANNER]["answered"] == sent[SOMEBODY]["silent"] == 0


def test_kills_faster_than_it_starts(protected):
    """Ten in five seconds, whatever it is doing just then."""
    link = protected.link()
    for _ in range(10):
        protected.kill()
        time.sleep(0.5)
    wait_for(protected.is_active, "it is up", 20)
    assert protected.link() == link
    assert protected.blocked() == [SCANNER]
    assert not protected.reaches(SCANNER)


def test_a_restart_does_not_compile(protected):
    """bcc is gone, so that a loader could not even begin."""
    protected.machine.run(["sh", "-c", "mv /usr/lib/python3/dist-packages/bcc /root/bcc"])
    try:
        restart(protected)
        assert protected.status()["adopted"]
    finally:
        protected.machine.run(["sh", "-c", "mv /root/bcc /usr/lib/python3/dist-packages/bcc"])


def test_trackers_live_on(service):
    """Two ports before, the third after: a scan."""
    service.start()
    with service.machine.peer_address(SCANNER):
        assert service.machine.connect_all((81, 82), SCANNER) == ["refused"] * 2
        restart(service)
        assert service.machine.connect(83, SCANNER) == "refused"
        assert service.machine.connect(84, SCANNER, timeout_s=0.4) == "dropped"
    assert service.records("scan", 1)[0]["PACKETWATCH_PORTS"] == "81,82,83"


def test_counters_go_on_in_metrics_and_status(protected):
    before = protected.metrics()
    kill(protected)
    assert not protected.reaches(SCANNER)
    after = protected.metrics()
    labels = '{family="ipv4",interface="host0"}'
    assert after[f"packetwatch_syns_total{labels}"] == before[f"packetwatch_syns_total{labels}"] + 1 == 4
    assert after[f"packetwatch_scans_total{labels}"] == 1
    assert after['packetwatch_blocks_total{reason="scan"}'] == 1
    assert after["conn_count_total"] == 4
    ledger = protected.status()["ledger"]
    assert ledger["syns"] == 4 and ledger["connections_dropped"] == 1


def test_what_was_done_by_hand_lives_on(service):
    service.start()
    service.ask("block", "add", "198.51.100.0/24", "--reason", "test", "--duration", "1h")
    service.ask("allow", "add", OTHER)
    kill(service)
    assert service.blocked() == ["198.51.100.0/24"]
    assert {"prefix": OTHER, "reason": "manual"} in service.ask("allow", "list")


def test_a_faulty_configuration_at_a_restart_changes_nothing(protected):
    link = protected.link()
    protected.configure(FAULTY)
    with protected.traffic(SCANNER) as traffic:
        restart(protected)
        sent = traffic.end()
    assert sent[SCANNER]["answered"] == 0
    assert protected.link() == link
    status = protected.status()
    assert not status["config"]["ok"] and "faulty configuration" in status["config"]["error"]
    assert "faulty configuration" in protected.text
    assert protected.metrics()["packetwatch_config_last_reload_successful"] == 0
    told = protected.told()
    assert f"{CONFIG}:2: scan.ports: " in told and "last good settings" in told
    kill(protected)  # and again
    assert protected.blocked() == [SCANNER]
    protected.configure("")
    protected.systemctl("reload")
    assert protected.status()["config"]["ok"]
    assert "faulty" not in protected.text


def test_the_last_good_settings_are_those_of_the_last_reload(service):
    service.start()
    service.configure("[scan]\nports = 5\n")
    service.systemctl("reload")
    service.configure(FAULTY)
    restart(service)
    with service.machine.peer_address(SCANNER):
        assert service.machine.connect_all(range(81, 86), SCANNER) == ["refused"] * 5
        assert service.machine.connect(86, SCANNER, timeout_s=0.4) == "dropped"


def test_last_good_settings_of_a_newer_version_are_good_but_for_what_is_new(service):
    """A rollback, with a setting left behind that only the version from before the rollback knew."""
    service.start("[scan]\nports = 5\n")
    kept = "/var/lib/packetwatch/last-good.json"
    old = json.loads(service.machine.read(kept))
    old["settings"] += "\n[scan]\nnewer = 7\n"
    service.machine.run(["sh", "-c", 'cat >"$1"', "sh", kept], input=json.dumps(old))
    service.configure("[scan]\nports = 5\nnewer = 7\n")
    restart(service)
    assert service.is_active() and service.status()["protecting"]
    assert "left out, as this version does not know it: last-good.json:" in service.told()
    with service.machine.peer_address(SCANNER):
        assert service.machine.connect_all(range(81, 86), SCANNER) == ["refused"] * 5
        assert service.machine.connect(86, SCANNER, timeout_s=0.4) == "dropped"


def test_without_last_good_settings_it_exits_78_for_good(service):
    service.configure(FAULTY)
    assert service.systemctl("start", check=False) != 0
    time.sleep(0.5)
    assert service.show("ActiveState", "NRestarts", "ExecMainStatus") == ["failed", "0", "78"]
    assert f"{CONFIG}:2: scan.ports: " in service.told()
    assert service.show("NFileDescriptorStore") == ["0"]


def test_an_address_in_use_at_a_restart_leaves_protection_up(protected):
    """It cannot start then, is started again and again, and what is in the kernel stays."""
    link_id, _ = protected.link()
    protected.configure("[metrics]\nlisten = 127.0.0.1:9774\n")
    taken = "import socket, time; s = socket.create_server(('127.0.0.1', 9774)); time.sleep(60)"
    machine = protected.machine
    machine.run(["systemd-run", "--unit=taken", "python3", "-c", taken])
    try:
        wait_for(lambda: machine.run(["ss", "-ltnH", "sport = 9774"]).stdout, "the address is taken")
        protected.systemctl("restart", "--no-block")
        wait_for(lambda: int(protected.show("NRestarts")[0]) >= 2, "it tries again", 20)
        assert link_id in {link["id"] for link in bpftool("link", "show")}
        assert not protected.reaches(SCANNER)
        assert "127.0.0.1:9774" in protected.told()
    finally:
        machine.run(["systemctl", "stop", "taken"])
    wait_for(protected.is_active, "it is up", 20)
    assert protected.link()[0] == link_id


@pytest.fixture
def upgraded(protected):
    """The installed kernel half has become another than the one that runs."""
    with protected.altered("bpf/packetwatch.c", lambda text: text + "/* another */\n"):
        yield protected


def test_an_upgrade_swaps_the_program_under_the_same_link(upgraded):
    protected = upgraded
    link_id, program_id = protected.link()
    assert not protected.reaches(SCANNER)
    before = protected.status()
    with protected.traffic(SOMEBODY, SCANNER) as traffic:
        restart(protected)
        sent = traffic.end()
    assert sent[SCANNER]["answered"] == sent[SOMEBODY]["silent"] == 0
    assert protected.link()[0] == link_id
    assert protected.link()[1] != program_id
    status = protected.status()
    assert not status["adopted"] and status["program"] != before["program"]
    assert status["ledger"]["syns"] == before["ledger"]["syns"] + sent.total
    row, = protected.ask("block", "list")
    assert row["prefix"] == SCANNER
    assert abs(1 + sent[SCANNER]["sent"] - row["dropped"]) < 20  # but for those of the swap, and SYNs sent again
    restart(protected)
    assert protected.status()["adopted"]
    assert protected.status()["ledger"]["syns"] == status["ledger"]["syns"]
    wait_for(lambda: program_id not in {each["id"] for each in bpftool("prog", "show")}, "the old program is gone")


@pytest.mark.parametrize("step", ("replace", "forget"))
def test_an_upgrade_that_is_killed_is_gone_on_with(upgraded, step):
    """The start dies at that step, once: the next finds two kernel halves, and the old one may still judge."""
    protected, machine = upgraded, upgraded.machine
    (link_id, program_id), seen = protected.link(), protected.handshakes()
    before = protected.status()["ledger"]["syns"]
    machine.run(["install", "-o", "packetwatch", "/dev/null", "/var/lib/packetwatch/die"])
    with protected.altered("packetwatch/handover.py", lambda text: text + DIES_ONCE.format(step=step)):
        with protected.traffic(SOMEBODY, SCANNER) as traffic:
            protected.systemctl("restart", check=False)
            wait_for(protected.is_active, "it is up", 20)
            sent = traffic.end()
    assert protected.show("NRestarts") == ["1"], protected.told()
    assert sent[SCANNER]["answered"] == sent[SOMEBODY]["silent"] == 0
    assert protected.link()[0] == link_id and protected.link()[1] != program_id
    assert protected.blocked() == [SCANNER]
    assert protected.status()["ledger"]["syns"] == before + sent.total
    assert protected.handshakes()[0] == seen[0] and protected.handshakes()[1] != seen[1]
    assert protected.ask("why", SOMEBODY)["evidence"] == "established"
    assert protected.show("NFileDescriptorStore") == [str(len(program.MAPS) + 5)]  # and programs, links, memory


def test_an_upgrade_to_other_layouts_keeps_link_and_blocks(upgraded):
    """Nothing can be copied from map to map then: the blocks come from the state file."""
    protected = upgraded
    link_id, program_id = protected.link()
    with protected.altered("packetwatch/program.py", lambda text: text.replace("\nLAYOUT = ", "\nLAYOUT = 10_000 + ")):
        restart(protected)
        assert protected.link()[0] == link_id
        assert protected.link()[1] != program_id
        assert protected.blocked() == [SCANNER]
        before = protected.status()["ledger"]["syns"]
        assert not protected.reaches(SCANNER)
        assert protected.status()["ledger"]["syns"] == before + 1
        restart(protected)
        assert protected.status()["adopted"]
        assert protected.show("NFileDescriptorStore") == [str(len(program.MAPS) + 5)]
    wait_for(lambda: program_id not in {each["id"] for each in bpftool("prog", "show")}, "the old program is gone")


def test_a_second_daemon_is_refused(protected):
    done = protected.machine.run(["packetwatch", "run"], check=False)
    assert done.returncode == 1 and "running already" in done.stderr
    assert protected.is_active() and protected.blocked() == [SCANNER]


def test_blocks_survive_a_reboot(protected):
    protected.ask("block", "add", "198.51.100.0/24", "--duration", "forever")
    protected.systemctl("enable")
    protected.machine.reboot()
    wait_for(protected.is_active, f"{UNIT} is up", 20)
    assert sorted(protected.blocked()) == [SCANNER, "198.51.100.0/24"]
    assert not protected.reaches(SCANNER)
    assert protected.machine.connect(81) == "refused", PEER
    protected.systemctl("disable")
