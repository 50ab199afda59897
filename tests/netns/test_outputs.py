# SPDX-License-Identifier: Apache-2.0
"""Where a running resident writes to, in which form, and that no reader or disk stops it."""

from __future__ import annotations

import datetime
import fcntl
import grp
import json
import os
import re
import select
import signal
import stat
import time
import zoneinfo

from .resident import wait_for
from .traffic import CLOSED, HOST4, OPEN, OUT4, SILENT

QUIET = "interface = v0\nmetrics.listen = off\n"
ZONE = "Asia/Kolkata"
TIME = r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)"
F_SETPIPE_SZ = 1031  # linux/fcntl.h


def test_the_text_log_line_by_line(resident, wire):
    """A scan, its block, what it dropped and its end, in the zone of whoever watches."""
    source, settings = wire.somebody(), QUIET + "log.format = text\nblock.duration = 2s"
    watch = resident(wire.host, settings, env={"TZ": ZONE})
    with wire.listen(80):
        wire.knock(source, 80, 81, 82, 80, 80)
        wire.knock(OUT4, 80)
        watch.line(f"{TIME}: Unblocked {source} .*")
    host = re.escape(source)
    expected = [
        f"{TIME}: Started in enforce mode on v0: watching v0, XDP mode native; local times are IST \\(UTC\\+0530\\)",
        f"{TIME}: Started in enforce mode: watching v0; .*; local times are IST \\(UTC\\+0530\\)",
        f"{TIME}: New connection: {host}:\\d+ -> {HOST4}:80",
        f"{TIME}: New connection: {host}:\\d+ -> {HOST4}:81",
        f"{TIME}: New connection: {host}:\\d+ -> {HOST4}:82",
        f"{TIME}: Port scan detected: {host} -> {HOST4} on ports 80,81,82",
        f"{TIME}: Blocked {host} for 2s \\(port scan\\)",
        f"{TIME}: New connection: {OUT4}:\\d+ -> {HOST4}:80",
        f"{TIME}: Dropped 2 connections from {host} since {TIME}",
        f"{TIME}: Unblocked {host} \\(expired\\)",
    ]
    lines = [line.rstrip("\n") for line in watch.lines]
    assert len(lines) == len(expected)
    for pattern, line in zip(expected, lines):
        match = re.fullmatch(pattern, line)
        assert match, f"{line!r} is not {pattern!r}"
        when = datetime.datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=zoneinfo.ZoneInfo(ZONE))
        assert -1 < (datetime.datetime.now(datetime.timezone.utc) - when).total_seconds() < 15


def test_auto_is_text_on_a_terminal_and_json_in_a_pipe(resident, wire):
    ours, theirs = os.openpty()
    on_terminal = resident(wire.host, QUIET, stdout=theirs)
    os.close(theirs)
    assert on_terminal.status()["log_format"] == "text"
    assert re.match(TIME + ": Started in enforce mode on v0", os.read(ours, 4096).decode())
    assert on_terminal.stop() == 0
    os.close(ours)
    in_a_pipe = resident(wire.host, QUIET)
    assert in_a_pipe.status()["log_format"] == "json"
    assert in_a_pipe.record("start", mode="enforce")["timestamp"].endswith("Z")
    in_a_pipe.write(QUIET + "log.format = text")
    in_a_pipe.done("reload")
    source = wire.somebody()
    wire.knock(source, 4000)
    in_a_pipe.line(f"{TIME}: New connection: {source}:\\d+ -> {HOST4}:4000")
    in_a_pipe.write(QUIET + "log.connections = summary\nlog.anonymize = yes")
    in_a_pipe.done("reload")
    wire.knock(source, 4000)
    in_a_pipe.line(r'\{.*"event_type":"summary".*"src_ip":"198\.51\.100\.0".*"count":1.*\}')
    in_a_pipe.write(QUIET + "log.connections = off")
    in_a_pipe.done("reload")
    before = len(in_a_pipe.lines)
    wire.knock(source, 4000, 4001, 4002)
    in_a_pipe.line(r'\{.*"event_type":"block".*\}')
    kinds = {json.loads(line)["event_type"] for line in in_a_pipe.lines[before:]}
    assert kinds == {"scan", "block"}


def test_anonymous_connections_but_not_blocks(resident, wire):
    watch = resident(wire.host, QUIET + "log.format = json\nlog.anonymize = yes")
    four, six = wire.somebody(), wire.somebody(ipv6=True)
    wire.knock(four, 80, 81, 82)
    wire.knock(six, 80)
    watch.record("block", src_ip=four)
    watch.record("connection", src_ip="2001:db8:5::")
    assert {record["src_ip"] for record in watch.records("connection")} == {"198.51.100.0", "2001:db8:5::"}


def test_the_file_is_readable_by_adm_and_follows_a_rotation(resident, wire, tmp_path):
    path, old = tmp_path / "log.json", tmp_path / "log.json.1"
    watch = resident(wire.host, QUIET + f"log.format = text\nlog.file = {path}")
    first, second = wire.somebody(), wire.somebody()
    wire.knock(first, 80)
    found(path, first)
    assert_adm_reads(path)
    path.rename(old)
    wire.knock(first, 81)
    wait_for(lambda: connections(old, first) == [80, 81], "the record in the file that was moved away")
    watch.send(signal.SIGHUP)
    wait_for(path.exists, "the new file")
    wire.knock(second, 80)
    found(path, second)
    assert_adm_reads(path)
    assert connections(old, second) == [] and connections(path, first) == []
    watch.stop()
    assert json.loads(path.read_text().splitlines()[-1])["event_type"] == "stop"


def test_the_file_follows_a_rotation_although_the_settings_are_faulty(resident, wire, tmp_path):
    path, old = tmp_path / "log.json", tmp_path / "log.json.1"
    watch = resident(wire.host, QUIET + f"log.format = text\nlog.file = {path}")
    path.rename(old)
    watch.write(QUIET + f"log.format = text\nlog.file = {path}\nscan.ports = many")
    watch.send(signal.SIGHUP)
    wait_for(path.exists, "the new file")
    source = wire.somebody()
    wire.knock(source, 80)
    found(path, source)


def connections(path, source):
    records = map(json.loads, path.read_text().splitlines())
    return [record["dest_port"] for record in records if record.get("src_ip") == source]


def found(path, source):
    return wait_for(lambda: connections(path, source), f"{source} in {path}")


def assert_adm_reads(path):
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert grp.getgrgid(status.st_gid).gr_name == "adm"


# readers and disks that fail


def test_a_full_disk_is_a_loss_and_no_stop(resident, wire, tmp_path):
    """Standard output fails; the file, which works, tells of it."""
    with open("/dev/full", "wb") as full:
        path = tmp_path / "kept.json"
        watch = resident(wire.host, QUIET + "log.format = json", "--log-file", str(path), stdout=full)
    source = wire.somebody()
    wire.knock(source, 80, 81)
    loss = wait_for(lambda: losses(path), "the loss")[0]
    assert loss["where"] == "stdout" and "ENOSPC" in loss["reason"] and loss["count"] > 0
    terms = watch.ledger()
    assert terms["syns"] == terms["connections_lost"] == 2
    assert connections(path, source) == [80, 81]
    sinks = {sink["name"]: sink for sink in watch.status()["sinks"]}
    assert sinks["stdout"]["written"] == 0 and sinks["file"]["refused"] == 0


def losses(path):
    records = map(json.loads, path.read_text().splitlines())
    return [record for record in records if record["event_type"] == "loss"]


def test_a_file_that_fails_is_told_on_standard_output(resident, wire):
    watch = resident(wire.host, QUIET + "log.format = json\nlog.file = /dev/full")
    wire.knock(wire.somebody(), 80)
    loss = watch.record("loss", where="file")
    assert "ENOSPC" in loss["reason"] and loss["message"]
    assert watch.ledger()["connections"] == 1


def test_a_broken_pipe_is_a_loss_and_no_stop(resident, wire):
    reader, writer = os.pipe()
    watch = resident(wire.host, QUIET + "log.format = json", stdout=writer)
    os.close(writer)
    os.close(reader)
    source = wire.somebody()
    with wire.listen(80):
        assert wire.knock(source, 81, 82, 80, 80) == [CLOSED, CLOSED, OPEN, SILENT]
    wait_for(lambda: watch.status()["ledger"]["connections_lost"] == 3, "three losses")
    assert watch.ledger() == {
        "syns": 4, "connections": 0, "connections_folded": 0, "connections_dropped": 1, "connections_lost": 3,
    }
    assert watch.status()["sinks"][0]["last_error"].startswith("EPIPE")


def test_a_reader_that_sleeps_costs_records_not_the_monitor(resident, wire):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, F_SETPIPE_SZ, 4096)
    watch = resident(wire.host, QUIET + "log.format = json\nlog.fold_rate = 0", stdout=writer)
    os.close(writer)
    wire.flood(20_000)
    wait_for(lambda: watch.status()["ledger"]["syns"] >= 20_000, "the flood")
    begun = time.monotonic()
    terms = watch.ledger()
    assert time.monotonic() - begun < 5
    assert terms["connections_lost"] > 1000 and terms["syns"] == 20_000
    source = wire.somebody()
    assert wire.knock(source, 5, 6, 7, 8)[-1] == SILENT  # it still blocks
    with open(reader, "rb") as stream:
        lines = awake(stream, 3)
        watch.send(signal.SIGTERM)
        lines += stream.readlines()
    told = [json.loads(line) for line in lines]
    lost = [record for record in told if record["event_type"] == "loss"]
    assert all(record["where"] == "stdout" and "EAGAIN" in record["reason"] for record in lost)
    singles = sum(record["event_type"] == "connection" for record in told)
    refused_notices = 2  # the scan's and its block's
    assert singles + sum(record["count"] for record in lost) == terms["syns"] + 3 + refused_notices
    assert told[-1]["event_type"] == "stop"


def awake(stream, silence_s):
    """Reads on until nothing more comes."""
    data = b""
    while select.select([stream], [], [], silence_s)[0]:
        data += os.read(stream.fileno(), 1 << 16)
    return data.splitlines()
