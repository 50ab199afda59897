# SPDX-License-Identifier: Apache-2.0
"""The command line: what each command asks and prints, exit statuses, settings files, man pages, completion."""

from __future__ import annotations

import json
import os
import pathlib
import re
import selectors
import subprocess
import sys
import threading
import time
import types

import pytest

from packetwatch import __version__, address, cli, config, configfiles, loader, manual, overview, show
from packetwatch.config import ConfigError
from packetwatch.configfiles import Inputs
from packetwatch.control import Refused, Server
from packetwatch.event import ALLOWED, WOULD_DROP, Batch, Notice
from packetwatch.sinks.jsonlines import JsonForm
from packetwatch.sinks.text import TextForm

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECOND = 1_000_000_000
COMMANDS = {command.words: command for command in cli.COMMANDS}

STATUS = {
    "version": "0.1.0", "pid": 321, "uptime_s": 93784, "since": "2026-11-23T13:00:00Z",
    "mode": "enforce", "mode_origin": "configuration", "protecting": True, "problems": ["br0 is missing"],
    "interfaces": [
        {"name": "eth0", "attached": True, "mode": "native", "seat": "eth0", "fault": "", "ifindex": 2},
        {"name": "vlan7", "attached": True, "mode": "generic", "seat": "VLAN 7 on eth1", "fault": "", "ifindex": 3},
        {"name": "br0", "attached": False, "fault": "no such interface; waiting for it"},
    ],
    "handshakes": "not seen: no cgroup v2 is mounted",
    "ledger": {
        "syns": 1000, "connections": 900, "connections_folded": 50, "connections_dropped": 40, "connections_lost": 10
    },
    "by_interface": {
        "eth0": {"syns": 990, "connections": 890, "connections_folded": 50, "connections_dropped": 40,
                 "connections_lost": 10},
        "vlan7": {"syns": 10, "connections": 10, "connections_folded": 0, "connections_dropped": 0,
                  "connections_lost": 0},
    },
    "scans": 3, "blocked_now": 2, "would_drop": 0, "malformed": {"truncated": 4, "ip_header": 0}, "ignored": {},
    "tables": {"trackers": {"entries": 10, "capacity": 65536}, "blocks": {"entries": 2, "capacity": 65536}},
    "sinks": [{"name": "journal", "written": 953, "refused": 1, "last_error": "no buffer space"}],
    "watchdog": {"enabled": True, "interval_s": 5.0}, "keeps": "protection goes on",
    "config": {"ok": True, "loaded_at": "2026-11-23T13:00:00Z", "error": None, "restart_needed": ["ring.size"]},
    "names": [
        {"name": "ntp.example.org", "reason": "time server", "file": "/etc/ntp.conf", "addresses": [], "error": "no"},
        {"name": "puppet", "reason": "Puppet server", "file": "/p", "addresses": ["192.0.2.8"], "error": None},
    ],
    "log_format": "journal", "metrics": ["127.0.0.1:9773"], "program": "0123abcd", "adopted": True,
}
PENDING = {
    "change": "block add 192.0.2.7", "since": "2026-11-24T14:26:05Z", "until": "2026-11-24T14:28:05Z",
    "confirm": "packetwatch confirm", "revert": "packetwatch confirm --revert",
}
BLOCKS = [
    {"prefix": "192.0.2.7", "reason": "port scan", "until": "2026-11-24T14:28:05Z", "since": "2026-11-24T13:28:05Z",
     "dropped": 1234, "would": False},
    {"prefix": "2001:db8::/32", "reason": "config", "until": "forever", "since": None, "dropped": 0, "would": True},
]
WHY = {
    "address": "192.0.2.7", "verdict": "blocked", "mode": "enforce", "evidence": "established", "allowed_by": [],
    "client": {"since": "2026-11-24T13:26:05Z", "last": "2026-11-24T14:26:05Z"},
    "blocked_by": [{"prefix": "192.0.2.7", "reason": "port scan", "rule": "scan:closed", "dropped": 3,
                    "since": "2026-11-24T14:26:05Z", "until": "2026-11-24T14:28:05Z", "beats_allow": False}],
    "ports": [{"port": 81, "state": "closed", "last": "2026-11-24T14:26:05Z"}],
    "rules": [{"rule": "scan", "reached": 1, "of": 3, "window": "1m"}],
    "offences": {"count": 2, "last_until": "2026-11-24T14:28:05Z", "next_block": "4m", "proven": "2026-11-24T14:26:04Z",
                 "unanswered_challenges": 0, "contested": False},
    "history": [{"timestamp": "2026-11-24T14:26:05.000000Z", "event_type": "block", "src_ip": "192.0.2.7",
                 "until": "2026-11-24T14:28:05.000000Z", "reason": "port scan", "rule": "scan:closed"}],
}
ANSWERS = {
    "status": STATUS,
    "confirm": {"change": "block add 192.0.2.7", "reverted": False},
    "reload": {"changed": ["scan.ports"], "restart_needed": [], "pending": PENDING},
    "mode": {"mode": "observe", "configured": "enforce", "forgotten": 0},
    "block.list": BLOCKS,
    "block.add": {"prefix": "192.0.2.7", "until": "2026-11-24T14:28:05Z", "note": None, "pending": PENDING},
    "block.remove": {"removed": 1, "settled": "block add 192.0.2.7"},
    "why": WHY,
    "allow.list": [
        {"prefix": "10.0.0.1", "reason": "default gateway"},
        {"prefix": "10.0.0.2", "reason": "time server", "detail": "ntp.example.org, /etc/ntp.conf"},
    ],
    "allow.add": {"prefix": "10.0.0.0/8"},
    "allow.remove": {"removed": 1},
}


@pytest.fixture(autouse=True)
def clean_surroundings(monkeypatch, tmp_path):
    """No settings of this machine, and local time that is known."""
    for name in list(os.environ):
        if name.startswith(("PACKETWATCH_", "PW_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(configfiles, "MAIN", str(tmp_path / "etc/packetwatch.conf"))
    monkeypatch.setenv("TZ", "UTC-1")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Resident:
    """Answers as told, and remembers what it was asked."""

    def __init__(self, path):
        self.asked = []
        self.answers = dict(ANSWERS)
        self.selector = selectors.DefaultSelector()
        self.server = Server(path, self.answer)
        self.server.register(self.selector)
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.loop)
        self.thread.start()

    def answer(self, request):
        self.asked.append(request)
        answer = self.answers[request["do"]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def loop(self):
        while not self.ending.is_set():
            for key, events in self.selector.select(0.02):
                key.data(events)
        self.server.close()

    def close(self):
        self.ending.set()
        self.thread.join()


@pytest.fixture
def resident(tmp_path, monkeypatch):
    path = str(tmp_path / "s")
    monkeypatch.setenv("PACKETWATCH_SOCKET", path)
    resident = Resident(path)
    yield resident
    resident.close()


@pytest.fixture
def run(capsys):
    """Runs a command; gives (status, stdout, stderr)."""

    def run(*argv):
        status = cli.main(argv)
        return (status, *capsys.readouterr())

    return run


# what commands ask


@pytest.mark.parametrize(
    "argv, request_",
    [
        (["status"], {"do": "status"}),
        (["reload"], {"do": "reload"}),
        (["reload", "--confirm", "2m"], {"do": "reload", "confirm_s": 120}),
        (["confirm"], {"do": "confirm"}),
        (["confirm", "--revert"], {"do": "confirm", "revert": True}),
        (["mode"], {"do": "mode"}),
        (["mode", "enforce", "--confirm", "1h"], {"do": "mode", "mode": "enforce", "confirm_s": 3600}),
        (["mode", "observe"], {"do": "mode", "mode": "observe"}),
        (["mode", "enforce", "--keep"], {"do": "mode", "mode": "enforce", "keep": True}),
        (["block", "list"], {"do": "block.list"}),
        (["block", "list", "--would", "--since", "24h"], {"do": "block.list", "would": True, "since_s": 86400}),
        (
            ["block", "add", "192.0.2.7"],
            {"do": "block.add", "prefix": "192.0.2.7", "duration_s": None, "reason": "", "force": False},
        ),
        (
            ["block", "add", "--force", "--duration", "1h30m", "--reason", "tried all night", "2001:DB8::/32"],
            {"do": "block.add", "prefix": "2001:db8::/32", "duration_s": 5400, "reason": "tried all night",
             "force": True},
        ),
        (
            ["block", "add", "::ffff:192.0.2.7", "--duration", "forever"],
            {"do": "block.add", "prefix": "192.0.2.7", "duration_s": 0, "reason": "", "force": False},
        ),
        (
            ["block", "add", "::1", "--confirm", "1s"],
            {"do": "block.add", "prefix": "::1", "duration_s": None, "reason": "", "force": False, "confirm_s": 1},
        ),
        (["block", "remove", "192.0.2.0/24"], {"do": "block.remove", "prefix": "192.0.2.0/24"}),
        (["block", "remove", "--all"], {"do": "block.remove", "all": True}),
        (["allow", "list"], {"do": "allow.list"}),
        (["allow", "add", "::1"], {"do": "allow.add", "prefix": "::1"}),
        (["allow", "remove", "::1"], {"do": "allow.remove", "prefix": "::1"}),
        (["allow", "remove", "::1", "--confirm", "1m30s"], {"do": "allow.remove", "prefix": "::1", "confirm_s": 90}),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_command_asks_and_prints(resident, run, argv, request_, form):
    status, out, err = run(*argv, "-o", form)
    assert (status, err, resident.asked) == (0, "", [request_])
    assert out.endswith("\n") and not out.endswith("\n\n")
    if form == "json":
        assert json.loads(out) == ANSWERS[request_["do"]]
    else:
        assert not out.startswith(("{", "["))


@pytest.mark.parametrize(
    "argv, about",
    [
        ([], "required: COMMAND"),
        (["block"], "required: COMMAND"),
        (["frobnicate"], "invalid choice"),
        (["status", "--sockt", "/s"], "did you mean --socket?"),
        (["run", "--scan-port", "3"], "did you mean --scan-ports?"),
        (["block", "add", "192.0.2.1", "--for", "5m"], "--for is not understood (see"),
        (["run", "--scan-p=3"], "not understood"),
        (["status", "again"], "again is not understood"),
        (["--socket", "/s", "status"], "--socket comes after the command: packetwatch COMMAND --socket ..."),
        (["--interface=lo", "run"], "--interface comes after the command: packetwatch COMMAND --interface ..."),
        (["--sockt", "/s", "status"], "packetwatch: --sockt is not understood"),
        (["status", "-o", "xml"], "invalid choice"),
        (["mode", "disable"], "invalid choice"),
        (["mode", "--keep"], "--keep goes with a mode"),
        (["mode", "--confirm", "2m"], "--confirm goes with enforce"),
        (["mode", "observe", "--confirm", "2m"], "--confirm goes with enforce"),
        (["reload", "--confirm", "0s"], "out of range (duration, 1s to 1h)"),
        (["reload", "--confirm", "61m"], "out of range (duration, 1s to 1h)"),
        (["reload", "--confirm", "2"], "has no unit (2s?)"),
        (["allow", "add", "::1", "--confirm", "2m"], "--confirm is not understood"),
        (["block", "add"], "required: PREFIX"),
        (["block", "add", "10.0.0.5/8"], "the prefix is 10.0.0.0/8"),
        (["block", "add", "example.org"], "is not an IPv4 or IPv6 address"),
        (["block", "add", "fe80::1%eth0"], "has a scope"),
        (["block", "add", "::1", "--duration", "5"], "has no unit (5s?)"),
        (["block", "add", "::1", "--duration", "4000d"], "out of range"),
        (["block", "list", "--since", "forever"], "is not a duration"),
        (["block", "remove"], "either a PREFIX or --all"),
        (["block", "remove", "::1", "--all"], "either a PREFIX or --all"),
        (["allow", "add", "\x1b[2J"], "is not an IPv4 or IPv6 address"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(resident, run, argv, about):
    status, out, err = run(*argv)
    assert (status, out, resident.asked) == (2, "", [])
    assert about in err and err.count("\n") == 1 and "\x1b" not in err
    assert re.search(r"\(see packetwatch( [a-z]+)* --help\)$", err)


def test_help_and_version(run):
    for argv in ([], ["run"], ["block"], ["block", "add"]):
        status, out, err = run(*argv, "--help")
        assert (status, err) == (0, "") and out.startswith("usage: packetwatch")
    assert run("--version") == (0, f"packetwatch {__version__}\n", "")
    assert run("version") == (0, f"packetwatch {__version__}\n", "")
    assert json.loads(run("version", "-o", "json")[1]) == {"version": __version__}


# errors


def test_not_running_is_status_3(run, tmp_path):
    for argv in (["status"], ["tail"], ["reload"], ["mode"], ["block", "list"], ["allow", "add", "::1"]):
        status, out, err = run(*argv, "--socket", str(tmp_path / "none"))
        assert (status, out) == (3, "")
        assert err.startswith("packetwatch: packetwatch is not running") and err.count("\n") == 1


@pytest.mark.parametrize("status", [1, 2, 4, 78])
def test_a_refusal_gives_its_status_and_every_line(resident, run, status):
    resident.answers["reload"] = Refused("a.conf:1: x\nb.conf:2: \x1b[31my", "mend it", status, ["more"])
    assert run("reload") == (status, "", "packetwatch: a.conf:1: x\nb.conf:2: \\x1b[31my\nmore (mend it)\n")


def raising(error):
    def act(args):
        print("begun", end="")
        raise error

    return act


@pytest.mark.parametrize(
    "error, status, told",
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 1, "packetwatch: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "packetwatch: /x: Permission denied\n"),
        (
            ValueError("a\x1bb\nc"), 1,
            "packetwatch: internal error: ValueError: a\\x1bb"
            " (a fault of packetwatch; PACKETWATCH_DEBUG=1 shows where)\n",
        ),
        (RecursionError(), 1, "packetwatch: internal error: RecursionError:  "),
        (SystemExit("x"), 1, ""),
    ],
)
def test_whatever_is_raised_becomes_a_line_and_a_status(run, monkeypatch, error, status, told):
    replaced = COMMANDS["version"]._replace(act=raising(error))
    monkeypatch.setattr(cli, "COMMANDS", (replaced,))
    got, _, err = run("version")
    assert got == status and err.startswith(told) and err.count("\n") == (1 if told else 0)


def test_the_trace_is_shown_to_who_asks(run, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", (COMMANDS["version"]._replace(act=raising(ValueError("x"))),))
    monkeypatch.setenv("PACKETWATCH_DEBUG", "1")
    status, _, err = run("version")
    assert status == 1 and "Traceback" in err and "in act" in err


# status


def test_status_at_a_glance(run, resident):
    assert run("status")[1] == """\
Protection   working (mode enforce, configuration)
Problems     br0 is missing
Interfaces   eth0: watched, XDP mode native
             vlan7: watched, XDP mode generic, VLAN 7 on eth1
             br0: NOT WATCHED (no such interface; waiting for it)
Handshakes   not seen: no cgroup v2 is mounted
Up           1d2h3m4s, since 2026-11-23 14:00:00, process 321, version 0.1.0, took over from the process before
Connections  1000 = 900 recorded + 50 folded + 40 dropped + 10 lost
             eth0: 990 = 890 recorded + 50 folded + 40 dropped + 10 lost
             vlan7: 10 = 10 recorded + 0 folded + 0 dropped + 0 lost
Scans        3
Blocked now  2
Lost         10 (the loss records in the log say where and what helps)
Records      953 to journal as journal, 1 refused (no buffer space)
Malformed    4 truncated
Tables       trackers 10 of 65536, blocks 2 of 65536
Unresolved   ntp.example.org, a time server: no
Watchdog     on, every 5 s
If killed    protection goes on
Metrics      127.0.0.1:9773
Settings     in force since 2026-11-23 14:00:00
             a restart is needed for ring.size
"""


@pytest.mark.parametrize(
    "change, line",
    [
        ({"protecting": False}, "Protection   NOT WORKING (mode enforce, configuration)"),
        (
            {"protecting": False, "mode": "observe", "mode_origin": "set by hand"},
            "Protection   observing only, nothing is dropped (mode observe, set by hand)",
        ),
        ({"protecting": False, "mode": "observe", "interfaces": []}, "Protection   NOT WORKING (mode observe, conf"),
        ({"interfaces": []}, "Interfaces   none is wanted"),
        ({"would_drop": 12}, "Blocked now  2 (12 connections would have been dropped)"),
        ({"config": {"ok": False, "error": "2 faults"}}, "Settings     FAULTY: 2 faults"),
        ({"watchdog": {"enabled": False, "interval_s": 0}}, "Watchdog     off"),
        (
            {"config": {"ok": False, "error": "2 keys", "differs": ["mode"]}},
            "Settings     NOT THOSE OF THE FILES: 2 keys",
        ),
        (
            {"pending": PENDING},
            "Unconfirmed  block add 192.0.2.7: rolled back at 2026-11-24 15:28:05 unless confirmed (packetwatch conf",
        ),
        ({"metrics": []}, "Metrics      off"),
        (
            {"names": [{"name": "p", "reason": "Puppet server", "addresses": ["192.0.2.8", "::7"], "error": "silent"}]},
            "Unresolved   p, a Puppet server: silent; it was 192.0.2.8, ::7",
        ),
        ({"uptime_s": 0, "adopted": False}, "Up           0s, since 2026-11-23 14:00:00, process 321, version 0.1.0"),
        (
            {"by_interface": [{"interface": name, "family": "ipv6", "syns": 5} for name in ("eth0", "eth1")]},
            "             eth1 ipv6: 5 = 0 recorded + 0 folded + 0 dropped + 0 lost",
        ),
    ],
)
def test_status_says_what_is_wrong(change, line):
    assert any(each.startswith(line) for each in overview.status({**STATUS, **change}).split("\n"))


def test_status_of_another_version_is_shown_as_far_as_it_goes():
    for key in STATUS:
        less = {name: value for name, value in STATUS.items() if name != key}
        assert "Interfaces" in overview.status(less)
        for odd in (None, 7, "x", [], {}, [7], {"a": 7}):
            assert "Interfaces" in overview.status({**STATUS, key: odd})
    assert overview.status({}).startswith("Protection   NOT WORKING")


def hostile(value):
    """The same with text in it that would steer a terminal."""
    if isinstance(value, dict):
        return {name: hostile(each) for name, each in value.items()} | {"\x1b]0;x\x07": "\x9b31m"}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return value + "\x1b[31m\r\n\u202e\x7f\x00" if isinstance(value, str) else value


PREFIXED = ("block.add", "why", "allow.add", "allow.remove")


@pytest.mark.parametrize("operation", sorted(ANSWERS))
@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_hostile_reaches_the_terminal(resident, run, operation, form):
    resident.answers[operation] = hostile(ANSWERS[operation])
    argv = [*operation.split("."), *(["::1"] if operation in PREFIXED else [])]
    status, out, err = run(*argv, *(["--all"] if operation == "block.remove" else []), "-o", form)
    assert status == 0
    assert all(character.isprintable() or character == "\n" for character in out + err)
    if form == "json":
        assert json.loads(out) == resident.answers[operation]


# the other answers


def test_lists_are_aligned():
    assert show.blocks(BLOCKS) == """\
SOURCE         UNTIL                SINCE                DROPPED  REASON
192.0.2.7      2026-11-24 15:28:05  2026-11-24 14:28:05     1234  port scan
2001:db8::/32  forever              -                          0  config (observed only)"""
    assert show.blocks({"entries": BLOCKS}) == show.blocks(BLOCKS)
    assert show.allowed([{"prefix": "10.0.0.1", "reason": "default gateway"}]) == """\
SOURCE    REASON
10.0.0.1  default gateway"""
    assert show.allowed(ANSWERS["allow.list"]) == """\
SOURCE    REASON
10.0.0.1  default gateway
10.0.0.2  time server (ntp.example.org, /etc/ntp.conf)"""


@pytest.mark.parametrize("answer", [[], {}, None, 7, "x", [7, None], {"entries": 7}])
def test_lists_of_nothing(answer):
    assert show.blocks(answer) == "Nothing is blocked."
    assert show.allowed(answer) == "Nothing is allowed."


@pytest.mark.parametrize(
    "tell, answer, said",
    [
        (show.blocked, {"prefix": "::1", "until": "forever"}, "Blocked ::1 forever."),
        (
            show.blocked, {"prefix": "::1", "until": "2026-11-24T14:28:05Z", "note": "it stays allowed"},
            "Blocked ::1 until 2026-11-24 15:28:05.\nNote: it stays allowed.",
        ),
        (show.unblocked, {"removed": 1}, "Removed 1 block."),
        (show.unblocked, {"removed": 7}, "Removed 7 blocks."),
        (show.unblocked, {}, "Removed 0 blocks."),
        (show.allow_added, {"prefix": "10.0.0.0/8"}, "Allowed 10.0.0.0/8."),
        (show.allow_removed, {"removed": 1}, "Removed 1 entry of the allow list."),
        (show.mode, {"mode": "enforce", "configured": "enforce"}, "mode enforce"),
        (
            show.mode, {"mode": "enforce", "configured": "observe", "forgotten": 2},
            "mode enforce\nset by hand; the configuration says observe\n"
            "forgot 2 sources that observe would have blocked",
        ),
        (show.reloaded, {"changed": []}, "Reloaded: nothing has changed."),
        (
            show.reloaded, {"changed": ["allow", "ring.size"], "restart_needed": ["ring.size"]},
            "Reloaded: allow, ring.size changed.\nA restart is needed for ring.size.",
        ),
        (show.moment, "soon", "soon"),
        (show.moment, None, "-"),
        (show.moment, "2026-11-24T14:28:05.123456Z", "2026-11-24 15:28:05"),
    ],
)
def test_what_was_done_is_said(tell, answer, said):
    assert tell(answer) == said


@pytest.mark.parametrize(
    "answer, lines",
    [
        ({"removed": 1}, []),
        ({"pending": None}, ["There is nothing to confirm."]),
        (
            {"pending": PENDING},
            ["block add 192.0.2.7 is rolled back at 2026-11-24 15:28:05 unless you confirm it: packetwatch confirm"],
        ),
        ({"settled": "mode enforce"}, ["mode enforce waits for no confirmation any more."]),
        ([], []),
        ({"pending": {"until": 7}}, ["None is rolled back at 7 unless you confirm it: packetwatch confirm"]),
    ],
)
def test_what_is_to_be_confirmed_is_said(answer, lines):
    assert show.waiting(answer, "packetwatch confirm") == lines


def test_the_command_to_confirm_with_asks_the_same_monitor(resident, run, monkeypatch, tmp_path):
    monkeypatch.delenv("PACKETWATCH_SOCKET")
    out = run("reload", "--confirm", "2m", "--socket", str(tmp_path / "s"))[1]
    assert out.endswith(f" unless you confirm it: packetwatch confirm --socket {tmp_path}/s\n")
    assert run("confirm", "--socket", str(tmp_path / "s")) == (0, "Confirmed: block add 192.0.2.7.\n", "")


# tail

V4, V6 = address.parse("192.0.2.56"), address.parse("2001:db8::1")
T0 = 1_795_530_485 * SECOND + 123_456_000


def every_record():
    connections = [
        (T0 + number, source, V6 if source == V6 else V4, b"\x17\x55", b"\x00\x50", 1, flags)
        for number, source in enumerate((V4, V6))
        for flags in (0, ALLOWED, WOULD_DROP)
    ]
    notices = [
        Notice(T0 + 10, "scan", "eth0", "192.0.2.56", "10.0.0.5", ports=(80, 81, 82), reason="table full"),
        Notice(T0 + 11, "scan", "eth0", "2001:db8::1", "2001:db8::2", ports=(1,), mode="observe"),
        Notice(T0 + 12, "block", "eth0", "192.0.2.56", until_ns=T0 + 12 + 3600 * SECOND, reason="port scan"),
        Notice(T0 + 13, "block", "eth0", "2001:db8::1", until_ns=0, reason="manual", mode="observe"),
        Notice(T0 + 14, "unblock", None, "192.0.2.56", reason="expired"),
        Notice(T0 + 15, "drop", "eth0", "192.0.2.56", count=1234, since_ns=T0, reason="blocked"),
        Notice(T0 + 16, "summary", "eth0", "192.0.2.56", dest_port=80, count=7, since_ns=T0, level="source_port"),
        Notice(T0 + 17, "summary", "eth0", count=1, level="interface"),
        Notice(T0 + 18, "loss", "eth0", count=9, where="ring", since_ns=T0),
        Notice(T0 + 19, "start", mode="enforce", message="on eth0"),
        Notice(T0 + 20, "stop", reason="signal"),
        Notice(T0 + 21, "scan", "eth0", None, "10.0.0.5", ports=(80,), count=2, since_ns=T0, sources=("::1", "::2")),
        Notice(T0 + 22, "block", "eth0", count=2, since_ns=T0, until_ns=T0 + 60 * SECOND, sources=("::1", "::2")),
        Notice(T0 + 23, "probe", "eth0", "::1", "::2", 80, tcp_flags="FIN"),
    ]
    return Batch(connections, notices, 0, {1: "eth0"})


def test_a_json_record_is_told_as_the_text_log_tells_it():
    batch = every_record()
    lines = JsonForm().encode(batch).splitlines(keepends=True)
    expected = [line for lines, _ in TextForm().chunks(batch) for line in lines]
    assert [show.record(line) + "\n" for line in lines] == expected
    assert len(lines) == 20 and "New connection: [2001:db8::1]:5973 -> [2001:db8::1]:80" in "".join(expected)


@pytest.mark.parametrize(
    "line",
    [
        b"\x1b[2J\n", b"\xff\xfe\n", b"7\n", b"[]\n", b"{}\n", b'{"timestamp": 7}\n', b"[" * 5000,
        b'{"timestamp": "2026-11-24T14:28:05Z"}\n',
        b'{"timestamp": "2026-11-24T14:28:05Z", "event_type": "new"}\n',
        b'{"timestamp": "2026-11-24T14:28:05Z", "event_type": "connection", "src_ip": 7}\n',
        b'{"timestamp": "2026-11-24T14:28:05Z", "event_type": "scan", "ports": 7}\n',
        b'{"timestamp": "2026-11-24T14:28:05Z", "event_type": "block", "src_ip": "\\u001b[2J", "until": "\\u009b"}\n',
    ],
)
def test_what_is_no_record_is_shown_harmlessly(line):
    shown = show.record(line)
    assert shown.isprintable() and shown


@pytest.mark.parametrize("form", ["text", "json"])
def test_tail_follows_until_the_resident_ends(resident, run, form):
    record = b'{"timestamp": "2026-11-24T14:28:05Z", "event_type": "stop", "reason": "\x7f"}\n'

    def feed():
        while not resident.server.tails:
            time.sleep(0.01)
        resident.server.publish(record * 2)
        resident.ending.set()

    thread = threading.Thread(target=feed)
    thread.start()
    status, out, err = run("tail", "-o", form)
    thread.join()
    assert status == 3 and "has ended" in err and err.count("\n") == 1
    line = "2026-11-24 15:28:05: Stopped (\\x7f)\n" if form == "text" else record.decode().replace("\x7f", "\\x7f")
    assert out == line * 2


# run


@pytest.fixture
def started(monkeypatch):
    """The inputs that `run` starts the resident with."""
    inputs = []
    fake = types.ModuleType("packetwatch.daemon")
    fake.run = lambda given, child: inputs.append(given) or 5
    monkeypatch.setattr(loader, "Loader", lambda: None)
    monkeypatch.setitem(sys.modules, "packetwatch.daemon", fake)
    monkeypatch.setattr(sys.modules["packetwatch"], "daemon", fake, raising=False)
    return inputs


def test_run_takes_every_setting_as_a_flag(run, started, monkeypatch):
    monkeypatch.setenv("PACKETWATCH_SCAN_PORTS", "5")
    values = {row.key: row.default or {"allow": "::1", "block": "::2"}.get(row.key, "/x") for row in config.describe()}
    argv = [word for row in config.describe() for word in (row.flag, values[row.key])]
    assert run("run", "--config", "here.conf", *argv) == (5, "", "")
    (inputs,) = started
    assert inputs.flags == {key: [value] for key, value in values.items()}
    assert inputs.config_path == os.path.abspath("here.conf")
    assert inputs.environ["PACKETWATCH_SCAN_PORTS"] == "5"


def test_flags_of_lists_add_up_and_switches_stand_alone(run, started):
    assert run("run", "--allow", "::1", "--allow", "10.0.0.0/8", "--log-anonymize", "--mode=observe")[0] == 5
    (inputs,) = started
    assert inputs == (None, dict(os.environ), {
        "allow": ["::1", "10.0.0.0/8"], "log.anonymize": ["yes"], "mode": ["observe"]})
    settings = configfiles.read(inputs)
    assert len(settings.allow) == 2 and settings.log_anonymize and settings.mode == "observe"


# settings files


def tree(root, **texts):
    """Files below etc: main is packetwatch.conf, the others are drop-ins; returns the main path."""
    (root / "etc/packetwatch.conf.d").mkdir(parents=True)
    for name, text in texts.items():
        where = "etc/packetwatch.conf" if name == "main" else f"etc/packetwatch.conf.d/{name}.conf"
        (root / where).write_text(text)
    return str(root / "etc/packetwatch.conf")


def read(path=None, environ=None, flags=None):
    return configfiles.read(Inputs(path, environ or {}, flags or {}))


def faults(path=None, environ=None, flags=None):
    with pytest.raises(ConfigError) as caught:
        read(path, environ, flags)
    return [str(fault) for fault in caught.value.faults]


def test_no_files_are_fine_unless_named(tmp_path):
    assert read() == config.Settings()
    assert faults(str(tmp_path / "none")) == [f"{tmp_path}/none: cannot be read: No such file or directory "
                                              "(check the path)"]


def test_drop_ins_come_after_the_main_file_by_name(tmp_path):
    tree(tmp_path, main="[scan]\nports=4\nwindow=5s\n", b="[scan]\nports=6\n", a="[scan]\nports=5\nwindow=6s\n")
    hidden = tmp_path / "etc/packetwatch.conf.d/.z.conf"
    hidden.write_text("[scan]\nports=7\n")
    (tmp_path / "etc/packetwatch.conf.d/z.conf.dpkg-old").write_text("nonsense")
    assert (read().scan_ports, read().scan_window_ns) == (6, 6 * SECOND)
    assert read(None, {"PACKETWATCH_SCAN_PORTS": "8"}).scan_ports == 8
    assert read(None, {"PACKETWATCH_SCAN_PORTS": "8"}, {"scan.ports": ["9"]}).scan_ports == 9


def test_drop_ins_need_no_main_file(tmp_path):
    tree(tmp_path, a="[scan]\nports=5\n")
    assert read().scan_ports == 5


def test_a_named_file_stands_in_for_the_main_one_with_drop_ins_of_its_own(tmp_path):
    tree(tmp_path, main="[scan]\nports=4\n", a="[scan]\nwindow=5s\n")
    (tmp_path / "own.conf").write_text("[scan]\nports=6\n")
    assert read(str(tmp_path / "own.conf")) == config.load([], {}, {"scan.ports": ["6"]})
    (tmp_path / "own.conf.d").mkdir()
    (tmp_path / "own.conf.d/x.conf").write_text("[scan]\nports=7\n")
    assert read(str(tmp_path / "own.conf")).scan_ports == 7
    assert read("/dev/null") == config.Settings()


def test_every_fault_of_every_source_comes_at_once(tmp_path):
    main = tree(tmp_path, main="[scan]\nports=1\n", a="\n\nmode=enforce\n")
    os.mkdir(f"{main}.d/b.conf")
    (tmp_path / "etc/packetwatch.conf.d/c.conf").write_bytes(b"[scan]\n#\xff\n")
    os.symlink("nowhere", f"{main}.d/d.conf")
    got = faults(None, {"PACKETWATCH_SCAN_WINDOW": "5"}, {"mode": ["x"]})
    for start in (
        f"{main}.d/b.conf: cannot be read: Is a directory", f"{main}.d/d.conf: cannot be read: No such file",
        f"{main}:2: scan.ports: '1' is out of range", f"{main}.d/a.conf:3: 'mode' stands before any section",
        f"{main}.d/c.conf:2: byte 0xff is not UTF-8", "PACKETWATCH_SCAN_WINDOW: '5' has no unit", "--mode: 'x' is not",
    ):
        assert any(each.startswith(start) for each in got), (start, got)
    assert len(got) == 7


def test_a_file_nobody_may_read_says_what_helps(tmp_path, monkeypatch):
    main = tree(tmp_path, main="", a="")

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(configfiles, "_open", refuse)
    assert faults() == [f"{main}: cannot be read: Permission denied (run it with sudo)",
                        f"{main}.d/a.conf: cannot be read: Permission denied (run it with sudo)"]


def test_a_pipe_or_an_endless_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe with nothing in it" in faults(str(tmp_path / "pipe"))[0]
    assert "too many for a settings file" in faults("/dev/zero")[0]


def test_the_variable_for_traces_is_no_setting():
    assert read(None, {"PACKETWATCH_DEBUG": "1"}) == config.Settings()
    assert faults(None, {"PACKETWATCH_DEBU": "1"})


@pytest.mark.parametrize(
    "main, environ, flags, path",
    [
        ("", {}, {}, config.Settings().socket),
        ("[packetwatch]\nsocket=/a\n", {}, {}, "/a"),
        ("[packetwatch]\nsocket=/a\n", {"PACKETWATCH_SOCKET": "/b"}, {}, "/b"),
        ("[packetwatch]\nsocket=/a\n", {"PACKETWATCH_SOCKET": "/b"}, {"socket": ["/c"]}, "/c"),
        ("[scan]\nports=0\nwindow=9\\\nx\n[pactwatch]\n[packetwatch]\nsocket=/a\nx\n", {"PACKETWATCH_X": "y"}, {},
         "/a"),
        ("[packetwatch]\nsocket=/a\nsocket=a\n", {}, {}, "/a"),
        ("[packetwatch]\nsocket=/a\nstate=/a\n", {}, {}, "/a"),
    ],
)
def test_commands_find_the_socket_whatever_else_is_wrong(tmp_path, main, environ, flags, path):
    tree(tmp_path, main=main)
    assert configfiles.socket_path(Inputs(None, environ, flags)) == path


def test_a_file_that_is_all_wrong_does_not_hide_the_socket_of_another(tmp_path):
    tree(tmp_path, main="x\n" * 2000, a="[packetwatch]\nsocket=/a\n")
    (tmp_path / "etc/packetwatch.conf.d/0.conf").write_bytes(b"\xff")
    assert configfiles.socket_path(Inputs(None, {}, {})) == "/a"


def test_a_wrong_socket_flag_is_a_fault(run):
    status, _, err = run("status", "--socket", "relative")
    assert status == 78 and "--socket: 'relative' is not an absolute path" in err


# check


def test_check_says_which_files_are_fine(run, tmp_path):
    assert run("check") == (0, "No settings files: all defaults.\n", "")
    main = tree(tmp_path, main="[scan]\nports=4\n", a="")
    assert run("check") == (0, f"{main}: no fault\n{main}.d/a.conf: no fault\n", "")
    assert run("check", "--config", main)[0] == 0


def test_check_lists_every_fault_and_fails_with_78(run, tmp_path):
    main = tree(tmp_path, main="[scan]\nports = 1\nwindow = 5\n")
    assert run("check") == (78, "", (
        f"{main}:2: scan.ports: '1' is out of range (whole number, 2 to 64)\n"
        f"{main}:3: scan.window: '5' has no unit (5s?)\n"
        "packetwatch: 2 faults in the settings\n"))
    status, out, err = run("check", "-o", "json")
    assert (status, err) == (78, "")
    assert json.loads(out) == {
        "ok": False, "files": [main], "settings": None,
        "faults": [
            {"path": main, "line": 2, "message": "scan.ports: '1' is out of range", "hint": "whole number, 2 to 64"},
            {"path": main, "line": 3, "message": "scan.window: '5' has no unit", "hint": "5s?"},
        ],
    }


def test_check_dumps_what_loads_as_the_same(run, tmp_path, monkeypatch):
    tree(tmp_path, main="[scan]\nports=4\n[packetwatch]\nallow=::1\n")
    monkeypatch.setenv("PACKETWATCH_MODE", "observe")
    settings = read(None, os.environ)
    status, out, _ = run("check", "--dump")
    assert status == 0 and config.load([("dump", out)], {}, {}) == settings and settings.mode == "observe"
    answer = json.loads(run("check", "-o", "json")[1])
    assert answer["ok"] and answer["settings"] == config.texts(settings)


def test_the_environment_is_checked_too(run, monkeypatch):
    monkeypatch.setenv("PACKETWATCH_SCAN_PORT", "3")
    assert run("check") == (78, "", (
        "PACKETWATCH_SCAN_PORT: no setting has this variable (did you mean PACKETWATCH_SCAN_PORTS?)\n"
        "packetwatch: 1 fault in the settings\n"))


# as a process


def process(*argv, shell=None, **options):
    command = ["bash", "-c", shell] if shell else [str(ROOT / "bin/packetwatch"), *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, **options)


def test_both_doors_lead_in():
    assert process("version").stdout == f"packetwatch {__version__}\n"
    done = process(shell="/usr/bin/python3 -m packetwatch version")
    assert (done.returncode, done.stdout) == (0, f"packetwatch {__version__}\n")


@pytest.mark.parametrize(
    "line, status, told",
    [
        ("bin/packetwatch check --dump >/dev/full", 1, "packetwatch: No space left on device\n"),
        ("bin/packetwatch version >&-", 0, ""),
        ("bin/packetwatch block >&- 2>&-", 2, ""),
        ("bin/packetwatch --help >/dev/full", 1, ""),
        ("LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 bin/packetwatch check --dump >/dev/null", 0, ""),
    ],
)
def test_streams_that_fail(line, status, told):
    done = process(shell=line)
    assert (done.returncode, done.stderr) == (status, told)


def test_a_reader_that_has_gone_is_no_fault_to_tell_of():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [ROOT / "bin/packetwatch", "check", "--dump"], stdout=writer, stderr=subprocess.PIPE, timeout=30
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_commands_do_not_load_what_only_the_resident_needs(tmp_path):
    script = (
        "import sys; sys.path.insert(0, '.'); from packetwatch import cli; "
        f"status = cli.main(['status', '--socket', '{tmp_path}/none']); "
        "print(status, *sorted(sys.modules))"
    )
    command = ["/usr/bin/python3", "-I", "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    status, *modules = done.stdout.split()
    assert status == "3" and "packetwatch.client" in modules
    heavy = {"bcc", "prometheus_client", "ctypes", "systemd", "subprocess", "http", "asyncio"}
    own = {"packetwatch.daemon", "packetwatch.control", "packetwatch.kernel", "packetwatch.loader"}
    assert not (heavy | own) & set(modules)


@pytest.mark.parametrize("listen_fds, pin, is_cold", [
    (None, None, True), (None, "none", True), (None, "there", False), ("0", None, False), ("3", "none", False),
])
def test_a_loader_is_begun_where_there_is_nothing_to_adopt(monkeypatch, tmp_path, listen_fds, pin, is_cold):
    (tmp_path / "there").mkdir()
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    if listen_fds is not None:
        monkeypatch.setenv("LISTEN_FDS", listen_fds)
    assert cli._is_cold({"pin": [str(tmp_path / pin)]} if pin else {}) is is_cold


# man pages


def page(name):
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("name", ["packetwatch.8", "packetwatch.conf.5"])
def test_a_man_page_has_no_fault(name):
    done = subprocess.run(
        ["groff", "-mdoc", "-Tutf8", "-ww", "-b", str(ROOT / "docs" / name)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout) > 3000


def test_the_settings_of_the_man_page_are_those_of_the_table():
    text = page("packetwatch.conf.5")
    assert text == manual.renewed(text), (
        "write it anew: python3 -c 'import sys; from packetwatch import manual; "
        "sys.stdout.write(manual.renewed(sys.stdin.read()))' <docs/packetwatch.conf.5 >new"
    )
    for row in config.describe():
        assert f".It Ic {row.name}\n" in text and f".Fl {row.flag[1:]} ,\n.Ev {row.variable} .\n" in text


def test_a_page_without_marks_is_an_error():
    with pytest.raises(ValueError, match="marks"):
        manual.renewed(".Sh SETTINGS\n")


def test_the_man_page_names_every_command_flag_and_status():
    """Settings' flags aside: those are in packetwatch.conf(5)."""
    text, settings = page("packetwatch.8"), {row.flag for row in config.describe()}
    for words, command in COMMANDS.items():
        assert re.search(rf"^\.It Cm {words}( |$)", text, re.M), words
        for names, _ in command.arguments:
            for name in {name for name in names if name.startswith("--")} - settings:
                assert f" {name[1:]}" in text, name
    for status in (0, 1, 2, 3, 4, 78):
        assert f".It {status}\n" in text


# completion


def complete(*words):
    script = (
        f"source {ROOT}/completion/packetwatch.bash; COMP_WORDS=(packetwatch \"$@\"); COMP_CWORD=$#; "
        "_packetwatch; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, timeout=30, check=True, cwd=ROOT
    )
    assert done.stderr == ""
    return set(done.stdout.split())


def flags_of(command):
    return {name for names, _ in command.arguments for name in names if name.startswith("-")} | {"--help"}


@pytest.mark.parametrize("words", sorted(COMMANDS))
def test_completion_knows_every_flag_of_a_command(words):
    assert {each for each in complete(*words.split(), "-") if each.startswith("-")} == flags_of(COMMANDS[words])


def test_completion_knows_every_command():
    first = {words.split()[0] for words in COMMANDS}
    assert {each for each in complete("") if not each.startswith("-")} == first
    for group in cli.GROUPS:
        second = {words.split()[1] for words in COMMANDS if words.startswith(group + " ")}
        assert {each for each in complete(group, "") if not each.startswith("-")} == second
    assert complete("st") == {"status"}
    assert complete("--") == {"--help", "--version"}


@pytest.mark.parametrize("row", [row for row in config.describe() if row.kind.words], ids=lambda row: row.key)
def test_completion_knows_the_words_of_a_setting(row):
    assert complete("run", row.flag, "") >= set(row.kind.words)


def test_completion_knows_the_other_values():
    assert complete("run", "--interface", "l") == {"lo"}
    assert complete("status", "-o", "") == {"text", "json"}
    assert complete("run", "--scan-ports", "") == set()
    assert complete("run", "--config", "docs/packetwatch.c") == {"docs/packetwatch.conf.5"}
    assert complete("mode", "e") == {"enforce"}
    assert complete("run", "--mode", "observe", "--xdp") == {"--xdp-mode"}
    assert complete("block", "add", "--duration", "f") == {"forever"}


def test_why_tells_the_verdict_first_and_then_what_it_rests_on(resident, run):
    status, out, _ = run("why", "192.0.2.7")
    assert status == 0 and out.splitlines() == [
        "192.0.2.7: blocked",
        "established: has completed handshakes from 2026-11-24 14:26:05 till 2026-11-24 15:26:05, so the address is its"
        " own",
        "blocked: 192.0.2.7 until 2026-11-24 15:28:05 (port scan, rule scan:closed)",
        "port 81: closed, last 2026-11-24 15:26:05",
        "rule scan: 1 of 3 ports within 1m",
        "2 offences, the last block until 2026-11-24 15:28:05; the next one lasts 4m at most",
        "proven: has answered a challenge 2026-11-24 15:26:04",
        "2026-11-24 15:26:05: Blocked 192.0.2.7 for 2m (port scan), rule scan:closed",
    ]


@pytest.mark.parametrize(
    "proven, unanswered, contested, words",
    [
        (None, 0, False, ""),
        (None, 1, False, "not proven: 1 challenge without an answer\n"),
        (None, 2, False, "not proven: 2 challenges without an answer\n"),
        (None, 1, True, "contested: too many wrong answers to challenges\n"),
    ],
)
def test_why_tells_what_became_of_challenges(resident, run, proven, unanswered, contested, words):
    offences = {**WHY["offences"], "count": 1, "proven": proven, "unanswered_challenges": unanswered,
                "contested": contested}
    resident.answers["why"] = {"address": "192.0.2.7", "verdict": "not blocked", "offences": offences}
    status, out, _ = run("why", "192.0.2.7")
    first = "1 offence, the last block until 2026-11-24 15:28:05; the next one lasts 4m at most\n"
    assert status == 0 and out == "192.0.2.7: not blocked\n" + first + words


def test_why_of_nobody_says_so(resident, run):
    resident.answers["why"] = {"address": "192.0.2.9", "verdict": "not blocked", "evidence": "none"}
    status, out, _ = run("why", "192.0.2.9")
    assert status == 0 and out == "192.0.2.9: not blocked\nno port that it has reached is remembered, and no block\n"
