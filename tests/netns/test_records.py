# SPDX-License-Identifier: Apache-2.0
"""What a running resident records of connections and scans, in JSON and to those who follow it."""

from __future__ import annotations

import datetime
import json
import re
import select
import signal
import subprocess
import time

import pytest

from packetwatch.client import Client

from .resident import CONTROL, environment, wait_for
from .traffic import CLOSED, HOST4, HOST6, SILENT


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, "interface = v0\nmetrics.listen = off\nlog.format = json")


def age(record):
    """Seconds since the time a record bears."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
    return (datetime.datetime.now(datetime.timezone.utc) - moment(record["timestamp"])).total_seconds()


def moment(timestamp):
    return datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00"))


@pytest.mark.parametrize("ipv6", [False, True], ids=["IPv4", "IPv6"])
def test_a_connection_in_json(watch, wire, ipv6):
    source = wire.somebody(ipv6)
    assert wire.knock(source, 4000) == [CLOSED]
    record = watch.record("connection", src_ip=source)
    assert 0 <= age(record) < 1
    port = record["src_port"]
    assert isinstance(port, int) and 1024 <= port < 65536
    assert record == {
        "timestamp": record["timestamp"],
        "event_type": "connection",
        "in_iface": "v0",
        "src_ip": source,
        "src_port": port,
        "dest_ip": HOST6 if ipv6 else HOST4,
        "dest_port": 4000,
        "proto": "TCP",
        "port_state": "closed",
    }


def test_a_record_is_written_within_half_a_second(watch, wire):
    source, begun = wire.somebody(), time.monotonic()
    wire.knock(source, 4000)
    watch.record("connection", src_ip=source)
    assert time.monotonic() - begun < 0.5


def test_a_scan_and_its_block_in_json(watch, wire):
    source = wire.somebody()
    wire.knock(source, 4001, 4002, 4003)
    block = watch.record("block", src_ip=source)
    scan = watch.record("scan", src_ip=source)
    assert {"in_iface": "v0", "dest_ip": HOST4, "proto": "TCP", "ports": [4001, 4002, 4003]}.items() <= scan.items()
    assert scan["closed_ports"] == scan["ports"]
    assert moment(block["until"]) - moment(block["timestamp"]) == datetime.timedelta(minutes=1)
    assert (block["reason"], block["rule"]) == ("port scan", "scan:closed") and block["in_iface"] == "v0"
    assert scan["timestamp"] == block["timestamp"] == watch.records("connection", src_ip=source)[-1]["timestamp"]


def test_a_retransmitted_syn_is_a_record_of_its_own(watch, wire):
    """Nobody answers this source: the watched side has no way back to it."""
    with routed_away(wire, "203.0.113.1"):
        assert wire.knock("203.0.113.1", 4000, wait_s=1.4) == [SILENT]
    first, second = watch.records("connection", src_ip="203.0.113.1")
    assert first["src_port"] == second["src_port"]


class routed_away:
    def __init__(self, wire, source):
        self.wire, self.source = wire, source

    def __enter__(self):
        self.wire.outside.ip(f"route add local {self.source} dev lo")

    def __exit__(self, *_):
        self.wire.outside.ip(f"route del local {self.source} dev lo")


def test_the_start_says_what_is_done_and_to_whom_not(watch):
    start = next(record for record in watch.records("start") if "in_iface" not in record)
    assert start["mode"] == "enforce"
    for words in ("watching v0", "scanners are blocked", "never blocked: own address", "Ctrl-C stops it"):
        assert words in start["message"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_tail_follows(watch, wire, form):
    source = wire.somebody()
    command = [*CONTROL, "tail", "--socket", str(watch.socket), "-o", form]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as tail:
        try:
            wait_for(lambda: knocked(wire, source, tail), "a record")
            line = tail.stdout.readline()
        finally:
            tail.send_signal(signal.SIGINT)
    if form == "text":
        words = f"New connection: {source}:\\d+ -> {HOST4}:4000\n"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: " + words, line)
    else:
        assert json.loads(line) in watch.records("connection", src_ip=source)
    assert tail.returncode == 130


def knocked(wire, source, tail):
    """Until the first record has come: before, nobody knows whether it follows already."""
    wire.knock(source, 4000)
    return select.select([tail.stdout], [], [], 0.1)[0]


def test_the_socket_answers_while_a_client_says_nothing(watch):
    silent = [Client(str(watch.socket))._ask({"do": "tail"}) for _ in range(3)]
    begun = time.monotonic()
    assert watch.status()["protecting"]
    assert time.monotonic() - begun < 1
    for link, stream in silent:
        stream.close()
        link.close()
