# SPDX-License-Identifier: Apache-2.0
"""Runs as root inside a guest: is this kernel, with this Python and bcc, good for Packetwatch?

Each stage prints `NAME: ok` when it has held; a fault is a traceback in the output. Standard library only, but for
the stage that runs pytest.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = pathlib.Path("/tmp/packetwatch")
WATCHED, SCANNER = "192.0.2.1", "192.0.2.2"
COMMON = ["--socket", str(WORK / "socket"), "--config", str(WORK / "empty.conf")]
LIMIT_S = 600  # all takes long under emulation, compiling most
MONITOR = f"""
import sys
from packetwatch import cli, loader
loader._TIME_LIMIT_S = {LIMIT_S}
sys.exit(cli.main())
"""


def versions() -> None:
    import bcc

    print("kernel", platform.release(), "python", platform.python_version(), "bcc", getattr(bcc, "__version__", "?"))


def load() -> None:
    """The kernel half compiles and this kernel's verifier takes it."""
    from packetwatch import loader, program

    loader._TIME_LIMIT_S = LIMIT_S
    started = time.monotonic()
    loaded = loader.load(program.Parameters(trackers=4096, blocks=1024, ring_bytes=65536, headers="auto"))
    print(f"loaded in {time.monotonic() - started:.1f} s with {loaded.headers} headers")
    assert loaded.handshakes is not None, loaded.refused
    for fd in (loaded.prog, loaded.handshakes, *loaded.maps.values()):
        os.close(fd)


def run() -> None:
    """A scan over a veth pair: three ports answer, the fourth SYN is dropped, and the log tells it so."""
    WORK.mkdir()
    (WORK / "empty.conf").write_text("")
    plug()
    log = open(WORK / "log", "w+")
    command = ["run", "--interface", "watched", "--log-format", "json", "--metrics-listen", "off"]
    monitor = packetwatch(*command, *COMMON, "--state", str(WORK / "state"), stdout=log)
    try:
        wait_until_attached(monitor)
        assert evidence_after_a_handshake() == "established", (ask("status"), ask("why", "127.0.0.1"))
        answers = [connect(port) for port in (81, 82, 83, 84)]
        assert answers == ["refused"] * 3 + ["dropped"], answers
        wait_for(lambda: "block" in kinds(log), "a block in the log")
    finally:
        monitor.send_signal(signal.SIGINT)
        status = monitor.wait(LIMIT_S)
    assert status == 0, f"the monitor ended with {status}"
    assert [kind for kind in kinds(log) if kind in ("connection", "scan", "block")] == ["connection"] * 3 + [
        "scan",
        "block",
    ], kinds(log)
    assert [event["dest_port"] for event in events(log) if event["event_type"] == "connection"] == [81, 82, 83]
    assert "xdp" not in ip("link", "show", "watched"), "still attached after the end"


def netlink() -> None:
    """The tests of netlink, whose rows for VLAN, bond, VRF and the like not every host's kernel can run."""
    command = [sys.executable, "-m", "pytest", "-q", "-rap", "--color=no", "tests/netns/test_netlink.py"]
    subprocess.run(command, cwd=ROOT, check=True)


def plug() -> None:
    """An interface to watch, and another network with its peer."""
    ip("netns", "add", "scanner")
    ip("link", "add", "watched", "type", "veth", "peer", "name", "peer", "netns", "scanner")
    for where, device, address in ((), "watched", WATCHED), (("-n", "scanner"), "peer", SCANNER):
        ip(*where, "address", "add", f"{address}/24", "dev", device)
        ip(*where, "link", "set", device, "up")


def packetwatch(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", MONITOR, *arguments], cwd=ROOT, **options)


def wait_until_attached(monitor: subprocess.Popen) -> None:
    def ready() -> bool:
        assert monitor.poll() is None, f"the monitor ended with {monitor.returncode} before it was ready"
        return "xdp" in ip("link", "show", "watched")

    wait_for(ready, "the program is attached")
    assert ask("status")


def ask(*words: str) -> dict:
    command = packetwatch(*words, "-o", "json", *COMMON[:2], stdout=subprocess.PIPE)
    out, _ = command.communicate(timeout=LIMIT_S)
    assert command.returncode == 0, out
    return json.loads(out)


def evidence_after_a_handshake() -> str:
    """Of this host itself, over the loopback interface, which is not watched."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        socket.create_connection(listener.getsockname(), LIMIT_S).close()
    return ask("why", "127.0.0.1")["evidence"]


def connect(port: int) -> str:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import payload; print(payload.try_port(int(sys.argv[2])))"
    command = ["ip", "netns", "exec", "scanner", sys.executable, "-c", code, str(HERE), str(port)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, universal_newlines=True).stdout.strip()


def try_port(port: int) -> str:
    try:
        socket.create_connection((WATCHED, port), 0.8).close()  # below the first retransmission
    except ConnectionRefusedError:
        return "refused"
    except socket.timeout:
        return "dropped"
    return "connected"


def events(log) -> list:
    log.seek(0)
    return [json.loads(line) for line in log.read().splitlines()]


def kinds(log) -> list:
    return [event["event_type"] for event in events(log)]


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, stdout=subprocess.PIPE, universal_newlines=True)
    return done.stdout


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {LIMIT_S} s"
        time.sleep(0.1)


def main() -> None:
    sys.path.insert(0, str(ROOT))
    for stage in (versions, load, run, netlink):
        try:
            stage()
            print(f"{stage.__name__}: ok", flush=True)
        except Exception:
            traceback.print_exc(file=sys.stdout)


if __name__ == "__main__":
    main()
