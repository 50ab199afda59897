# SPDX-License-Identifier: Apache-2.0
"""What a start or a command says that cannot be: one clear line each, the right status, nothing left, nothing lost."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

from .resident import Failed, run_command, wait_for
from .traffic import CLOSED, SILENT, listen

QUIET = "interface = v0\nlog.format = json\nmetrics.listen = off\n"
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def fails(resident, ns, settings="", *flags, **options):
    """(status, lines on stderr) of a start that does not succeed."""
    one = resident(ns, settings, *flags, start=False, **options)
    with pytest.raises(Failed) as failure:
        one.start()
    assert not one.socket.exists()
    assert "xdp" not in ns.ip("link")
    lines = failure.value.errors.splitlines()
    assert "Traceback" not in failure.value.errors and one.lines == []
    return failure.value.status, lines


@pytest.fixture(scope="module")
def host(wire):
    return wire.host


# settings


@pytest.mark.parametrize(
    "settings, flags, told",
    [
        ("scan.prots = 3", (), r".*\.conf:3: 'prots' is not a setting of \[scan\] \(did you mean ports.*\)"),
        ("scan.window = 60", (), r".*/packetwatch\.conf:3: scan\.window: '60' has no unit \(60s\?\)"),
        ("", ("--scan-ports", "65"), r"--scan-ports: .*64.*"),
        ("", ("--log-format", "xml"), r"--log-format: 'xml' is not known \(one of auto, text, json, journal\)"),
        ("", ("--metrics-listen", "9773"), r"--metrics-listen: .*"),
        ("", ("--block-duration", "1 fortnight"), r"--block-duration: .*"),
        ("", ("--interface", "a-name-far-too-long"), r"--interface: .*"),
        ("ring.size = 5M", (), r".*:3: ring\.size: .*power of two.*"),
    ],
)
def test_a_faulty_setting(resident, host, settings, flags, told):
    status, lines = fails(resident, host, settings, *flags)
    assert status == 78 and re.fullmatch(f"(packetwatch: )?{told}", lines[0]), lines
    assert len(lines) <= 4


def test_all_faults_at_once(resident, host):
    status, lines = fails(resident, host, "scan.window = 60\nmode = maybe\nblock = 1.2.3.4/8", "--scan-ports", "1")
    assert status == 78
    for words in ("scan.window", "'maybe'", "1.0.0.0/8", "--scan-ports"):
        assert sum(words in line for line in lines) == 1, lines


def test_a_variable_that_is_no_setting(resident, host):
    status, lines = fails(resident, host, env={"PACKETWATCH_SCAN_PROTS": "3"})
    assert status == 78 and "PACKETWATCH_SCAN_PROTS" in lines[0] and "PACKETWATCH_SCAN_PORTS" in lines[0]


def test_a_settings_file_that_is_not_there(resident, host, tmp_path):
    one = resident(host, start=False)
    one.config.unlink()
    with pytest.raises(Failed) as failure:
        one.start()
    assert failure.value.status == 78 and f"{one.config}: cannot be read: No such file" in failure.value.errors


@pytest.mark.parametrize("words", [("run", "--no-such-flag"), ("rnu",), ("status", "-o", "yaml"), ()])
def test_words_that_are_not_understood(words):
    result = run_command(*words)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and result.stdout == ""


# rights


def test_where_nothing_may_be_written(resident, host):
    one = resident(host, QUIET, prefix=NOBODY, start=False)
    readable(one.home)
    os.chown(one.home, 0, 0)
    with pytest.raises(Failed) as failure:
        one.start()
    assert failure.value.status == 1
    assert re.fullmatch(r"packetwatch: state directory .*: Permission denied; .*\n", failure.value.errors)


def test_without_any_right(resident, host):
    one = resident(host, QUIET, prefix=NOBODY, start=False)
    readable(one.home)
    with pytest.raises(Failed) as failure:
        one.start()
    assert failure.value.status == 4
    told = "packetwatch: not permitted: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON missing; run as root .*\n"
    assert re.fullmatch(told, failure.value.errors)


def readable(folder):
    """For nobody, who owns it, and may pass through the folders above."""
    os.chown(folder, 65534, 65534)
    for above in list(folder.parents)[:-2]:
        os.chmod(above, os.stat(above).st_mode | 0o055)


@pytest.mark.parametrize("lacking", ["bpf", "net_admin", "perfmon"])
def test_a_missing_capability_is_named(resident, host, lacking):
    rest = {"bpf", "net_admin", "perfmon"} - {lacking}
    bounds = ",".join(["-all", *(f"+{name}" for name in sorted(rest))])
    status, lines = fails(resident, host, QUIET, prefix=["setpriv", f"--bounding-set={bounds}"])
    assert status == 4 and lines == [
        f"packetwatch: not permitted: CAP_{lacking.upper()} missing; run as root (sudo), or as the service does"
    ]


def test_with_exactly_what_it_needs(resident, host):
    """As nobody with three capabilities, of which two are left after the start."""
    caps = "+bpf,+net_admin,+perfmon"
    one = resident(
        host, QUIET, prefix=[*NOBODY, f"--inh-caps={caps}", f"--ambient-caps={caps}"], start=False)
    readable(one.home)
    one.start()
    held = re.search(r"CapPrm:\s+(\w+)", open(f"/proc/{one.pid}/status").read())[1]
    assert int(held, 16) == 1 << 12 | 1 << 39
    assert one.status()["protecting"]


# what is taken


def test_a_port_in_use(resident, host):
    with listen(host, "127.0.0.1", 9775):
        status, lines = fails(resident, host, QUIET.replace("off", "127.0.0.1:9775"))
    assert status == 1 and len(lines) == 1
    assert re.match(r"packetwatch: metrics address 127\.0\.0\.1:9775: Address already in use; choose another", lines[0])


def test_a_socket_in_use(resident, host):
    first = resident(host, QUIET)
    second = resident(host, QUIET, start=False)
    second.socket = first.socket
    second.launch()
    assert second.process.wait(30) == 1
    assert re.fullmatch(
        f"packetwatch: packetwatch is running already: the socket {first.socket} is in use; .*--socket.*\n",
        second.errors(),
    )
    assert first.status()["protecting"]


def test_a_socket_that_is_a_file(resident, host):
    one = resident(host, QUIET, start=False)
    one.socket.write_text("mine")
    with pytest.raises(Failed) as failure:
        one.start()
    assert failure.value.status == 1 and "exists and is no socket" in failure.value.errors
    assert one.socket.read_text() == "mine"


def test_the_socket_of_a_killed_one_is_no_hindrance(resident, host):
    one = resident(host, QUIET)
    one.kill()
    assert one.socket.exists() and "xdp" not in host.ip("link show v0")
    one.start()


# the state


def test_a_state_that_cannot_be_written(resident, host, tmp_path):
    (tmp_path / "file").write_text("")
    one = resident(host, QUIET, start=False)
    one.state = tmp_path / "file" / "state"
    with pytest.raises(Failed) as failure:
        one.start()
    assert failure.value.status == 1
    told = f"packetwatch: state directory {one.state}: Not a directory; .*--state DIR\n"
    assert re.fullmatch(told, failure.value.errors)


@pytest.mark.parametrize(
    "content, told",
    [(b'{"version": 3}', "version 3, this Packetwatch knows 2"), (b'{"version": 1, "blo', "could not be read")],
    ids=["newer", "broken"],
)
def test_a_state_file_that_cannot_be_read_is_kept_aside(resident, host, content, told):
    one = resident(host, QUIET, start=False)
    one.state.mkdir()
    (one.state / "state.json").write_bytes(content)
    one.start()
    (aside,) = one.state.glob("state.json.unread-*")
    assert aside.read_bytes() == content
    assert told in one.errors() and str(aside) in one.errors() and one.errors().count("\n") == 1
    assert one.status()["protecting"]


def test_no_space_for_the_state_is_told_and_tried_again(resident, host, tmp_path):
    """A full disk: the block is in force, and saved once there is room."""
    small = tmp_path / "small"
    small.mkdir()
    one = resident(host, QUIET, start=False)
    one.state = small / "state"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], check=True)
    try:
        one.start()
        with open(small / "filler", "wb", buffering=0) as filler:
            while fits(filler):
                pass
        one.done("block", "add", "203.0.113.9")
        told = f"blocks and lists cannot be saved in {one.state}: No space left on device"
        assert one.errors() == f"packetwatch: {told}\n" and told in one.status()["problems"]
        assert one.answer("block", "list")[0]["prefix"] == "203.0.113.9"
        os.unlink(small / "filler")
        wait_for(lambda: "are saved again" in one.errors(), "the saved block", 15)
        assert "203.0.113.9" in (one.state / "state.json").read_text()
        assert one.status()["problems"] == []
        assert one.stop() == 0
    finally:
        one.kill()
        subprocess.run(["umount", "-l", str(small)], check=True)


def fits(filler):
    try:
        return filler.write(b"x" * 4096)
    except OSError:
        return False


def test_the_state_directory_of_the_service_can_be_used_by_root(resident, host):
    one = resident(host, QUIET, start=False)
    one.state.mkdir(mode=0o700)
    os.chown(one.state, 65534, 65534)
    one.start()
    one.done("block", "add", "203.0.113.9")
    wait_for(lambda: (one.state / "state.json").exists(), "the state file")
    assert one.errors() == ""
    owners = {path.name: (path.stat().st_uid, path.stat().st_mode & 0o777) for path in one.state.iterdir()}
    assert owners == {"state.json": (65534, 0o600), "last-good.json": (65534, 0o600)}, "the service is to read them"


# commands without a resident


@pytest.mark.parametrize("words", [("status",), ("reload",), ("tail",), ("block", "list"), ("mode", "observe")])
def test_no_resident(tmp_path, words):
    result = run_command(*words, "--socket", str(tmp_path / "none"))
    assert result.returncode == 3 and result.stdout == ""
    assert re.fullmatch(r"packetwatch: packetwatch is not running: nothing answers at .*/none \(.*\)\n", result.stderr)


# the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_nothing_behind(resident, wire, number):
    one = resident(wire.host, QUIET)
    source = wire.somebody()
    assert wire.knock(source, 1, 2, 3, 4) == [CLOSED] * 3 + [SILENT]
    program, link = (one.status()["interfaces"][0][name] for name in ("program_id", "link_id"))
    files = {str(path.relative_to(one.home)) for path in one.home.rglob("*")}
    assert files <= {"packetwatch.conf", "stderr", "s", "state", "state/state.json", "state/last-good.json"}
    assert one.stop(number) == 0
    assert one.errors() == ""
    assert json.loads(one.lines[-1])["event_type"] == "stop"
    assert not one.socket.exists()
    assert "xdp" not in wire.host.ip("link show v0")
    wait_for(lambda: not alive(program, link), "the end of program and link in the kernel", 5)
    assert wire.knock(source, 5) == [CLOSED]


def alive(program, link):
    from packetwatch import libbpf

    for function, number in (("bpf_prog_get_fd_by_id", program), ("bpf_link_get_fd_by_id", link)):
        try:
            os.close(libbpf._call(function, number))
            return True
        except FileNotFoundError:
            continue
    return False


def test_a_killed_one_fails_open_and_says_so_before(resident, wire):
    one = resident(wire.host, QUIET)
    assert "killed" in one.done("status") and "let" in one.status()["keeps"] + "let"
    one.kill()
    assert "xdp" not in wire.host.ip("link show v0")


def test_a_stop_during_the_start(resident, host):
    one = resident(host, QUIET, start=False).launch()
    time.sleep(0.4)
    one.send(signal.SIGTERM)
    assert one.process.wait(20) in (0, -signal.SIGTERM)
    assert "xdp" not in host.ip("link show v0") and "Traceback" not in one.errors()


def test_ready_is_told_only_when_it_watches(resident, host, tmp_path):
    """READY=1 by the notification socket, and not before packets are judged."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(str(tmp_path / "notify"))
        notices.settimeout(30)
        one = resident(host, QUIET, start=False, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}).launch()
        text = b""
        while b"READY=1" not in text:
            text = notices.recv(4096)
        assert "xdp" in host.ip("link show v0")
        assert b"STATUS=enforce, watching v0 (native)" in text
        assert one.stop() == 0


# an end before the beginning


def processes(ns):
    return subprocess.check_output(["ip", "netns", "pids", ns.name]).split()


def nobody_is_left(ns):
    """Above all no loader."""
    wait_for(lambda: not processes(ns), "the end of its processes")


@pytest.mark.parametrize("after_s", [0, 0.1, 0.3, 0.6, 0.9])
def test_ctrl_c_during_the_start_ends_it_without_a_word(resident, host, after_s):
    """As a terminal does it: for the loader, too, at whatever it is."""
    one = resident(host, QUIET, start=False, prefix=["setsid"])
    one.launch()
    wait_for(lambda: len(processes(host)) == 2, "the loader")
    time.sleep(after_s)
    os.killpg(one.process.pid, signal.SIGINT)
    assert one.process.wait(20) in (0, 128 + signal.SIGINT)  # the latter while nothing is set up
    assert one.errors() == "" and "xdp" not in host.ip("link")
    nobody_is_left(host)


def test_a_fault_before_the_loader_has_work_leaves_none_behind(resident, host):
    assert fails(resident, host, QUIET + "nonsense = 1\n")[0] == 78
    nobody_is_left(host)
