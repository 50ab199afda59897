# SPDX-License-Identifier: Apache-2.0
"""The service and a journald that restarts, hangs or is not there: never waited for, and every record accounted for."""

from __future__ import annotations

import time

from tests.machine.machine import wait_for
from tests.machine.service import SCANNER

JOURNALD = "systemd-journald"
SOCKETS = ("systemd-journald.socket", "systemd-journald-dev-log.socket")
SOMEBODY = "192.0.2.78"
KEPT = 16_384  # records that wait for journald, as sinks/journal.py has it


def balance(service):
    """Connections that journald has, and those that were lost on the way, as ledger and metrics agree."""
    ledger, metrics = service.status()["ledger"], service.metrics()
    lost = 'packetwatch_connections_lost_total{family="ipv4",interface="host0",where="journal"}'
    assert ledger["connections_lost"] == metrics.get(lost, 0)
    assert ledger["syns"] == sum(count for term, count in ledger.items() if term != "syns")
    return ledger["connections"], ledger["connections_lost"]


def test_a_restart_of_journald_loses_nothing(service):
    service.start("[log]\nfold_rate = 0\n")
    pid = service.pid
    with service.traffic(SCANNER) as traffic:
        for _ in range(2):
            service.machine.run(["systemctl", "restart", JOURNALD])
            time.sleep(0.3)
        sent = traffic.end()
    wait_for(lambda: service.count("connection") == sent.total, "the records")
    assert balance(service) == (sent.total, 0)
    assert service.show("MainPID", "NRestarts") == [pid, "0"]


def test_a_journald_that_hangs_does_not_hold_up_the_loop(service):
    service.drop_in("WatchdogSec=2")
    service.start("[log]\nfold_rate = 0\n")
    pid = service.pid
    service.machine.run(["systemctl", "kill", "--signal=STOP", JOURNALD])
    try:
        service.connect_often(20_000, SOMEBODY)
        time.sleep(3)  # the watchdog would have bitten
        begun = time.monotonic()
        status = service.status()
        assert time.monotonic() - begun < 2
        lost = status["ledger"]["connections_lost"]
        assert 0 < lost <= 20_000 - KEPT
        sink = status["sinks"][0]
        assert sink["name"] == "journal" and sink["refused"] >= lost and "EAGAIN" in sink["last_error"]
        service.scan()  # and is blocked all the same
        assert not service.reaches(SCANNER)
    finally:
        service.machine.run(["systemctl", "kill", "--signal=CONT", JOURNALD])
    wait_for(lambda: service.count("connection") == balance(service)[0], "what waited")
    assert service.show("MainPID", "NRestarts") == [pid, "0"]
    losses = wait_for(lambda: service.records("loss"), "the loss record")
    assert {loss["PACKETWATCH_WHERE"] for loss in losses} == {"journal"}
    told = sum(int(loss["PACKETWATCH_COUNT"]) for loss in losses)  # of connections, and of the scan and its block
    assert 0 < balance(service)[1] <= told <= service.status()["sinks"][0]["refused"]
    assert {loss["PRIORITY"] for loss in losses} == {"4"}


def test_without_journald_records_wait_for_it(service):
    service.start("[log]\nfold_rate = 0\n")
    service.machine.run(["systemctl", "stop", *SOCKETS, JOURNALD])
    try:
        service.connect_often(500, SCANNER)
        service.machine.run(["packetwatch", "status"])
    finally:
        service.machine.run(["systemctl", "start", *SOCKETS, JOURNALD])
    wait_for(lambda: service.count("connection") == 500, "what waited")
    assert balance(service) == (500, 0)


def test_a_start_without_journald(service):
    """The log's socket is not there yet: the service is ready and protects."""
    service.machine.run(["systemctl", "stop", *SOCKETS, JOURNALD])
    try:
        service.start("[log]\nformat = journal\n").scan()
        assert not service.reaches(SCANNER)
    finally:
        service.machine.run(["systemctl", "start", *SOCKETS, JOURNALD])
    service.records("scan", 1)
