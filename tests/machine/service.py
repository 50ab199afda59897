# SPDX-License-Identifier: Apache-2.0
"""Packetwatch as the service of a machine: what it is told, what it answers, and traffic to it that is counted."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

from tests.machine.machine import ADDRESS, Machine, wait_for

UNIT = "packetwatch.service"
CONFIG = "/etc/packetwatch/packetwatch.conf"
DROP_INS = f"/run/systemd/system/{UNIT}.d"
SCANNER = "192.0.2.77"
CLOSED_PORT, OPEN_PORT = 9, 80

_HERE = pathlib.Path(__file__).resolve().parent
_METRICS = "import urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode())"


class Service:
    """The unit of one machine. Each test begins with `begin`: default settings, no state, not running."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.since = ""

    # life

    def begin(self) -> Service:
        wipe = f"rm -rf {CONFIG} {CONFIG}.d/* /var/lib/packetwatch/* /var/log/packetwatch/*"
        unit = f"[ ! -e {DROP_INS} ] || {{ rm -r {DROP_INS}; systemctl daemon-reload; }}"
        script = f"systemctl stop {UNIT}; {wipe}; {unit}; systemctl reset-failed {UNIT}"
        self.machine.run(["sh", "-c", f"{{ {script}; }} 2>/dev/null; true"])
        self.mark()
        return self

    def systemctl(self, verb: str, *arguments: str, check: bool = True) -> int:
        return self.machine.run(["systemctl", verb, *arguments, UNIT], check).returncode

    def start(self, text: str = "") -> Service:
        if text:
            self.configure(text)
        assert self.systemctl("start", check=False) == 0, self.told()
        return self

    def configure(self, text: str) -> None:
        self.machine.write(CONFIG, text)

    def drop_in(self, text: str) -> None:
        self.machine.write(f"{DROP_INS}/test.conf", f"[Service]\n{text}\n")
        self.machine.run(["systemctl", "daemon-reload"])

    def kill(self, number: str = "KILL") -> None:
        self.systemctl("kill", f"--signal={number}")

    @contextlib.contextmanager
    def altered(self, module: str, change: Callable[[str], str]) -> Iterator[None]:
        """With another text of an installed module, or of a source of the kernel half, for as long as this lasts."""
        path = f"/usr/lib/packetwatch/{module}"
        old = self.machine.read(path)
        assert change(old) != old
        self.machine.write(path, change(old))
        try:
            yield
        finally:
            self.machine.write(path, old)

    # answers

    def show(self, *names: str) -> list[str]:
        shown = self.machine.show(UNIT, *names)
        return [shown[name] for name in names]

    @property
    def pid(self) -> str:
        return self.show("MainPID")[0]

    @property
    def text(self) -> str:
        """What `systemctl status` shows of it."""
        return self.show("StatusText")[0]

    def is_active(self) -> bool:
        return self.show("ActiveState") == ["active"]

    def is_back(self, old: str, timeout_s: float = 20) -> str:
        """The pid of the process that followed the one with the old pid, once it is ready."""

        def new() -> str:
            state, pid = self.show("ActiveState", "MainPID")
            return pid if state == "active" and pid not in ("0", old) else ""

        return str(wait_for(new, f"a process after {old}", timeout_s))

    def ask(self, *words: str) -> Any:
        return json.loads(self.machine.run(["packetwatch", *words, "-o", "json"]).stdout)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("status")
        return found

    def link(self, interface: str = "host0") -> tuple[int, int]:
        """Ids of the link and of the program on an interface."""
        row = next(row for row in self.status()["interfaces"] if row["name"] == interface)
        return row["link_id"], row["program_id"]

    def handshakes(self) -> tuple[int, int]:
        """Ids of the link and of the program on the root cgroup, which no command tells."""
        told = self.machine.run(["sh", "-c", f"cat /proc/{self.pid}/fdinfo/*"]).stdout
        found = re.search(r"^link_type:\s+cgroup\nlink_id:\s+(\d+)\nprog_tag:.*\nprog_id:\s+(\d+)$", told, re.M)
        assert found, self.status()["handshakes"]
        return int(found[1]), int(found[2])

    def blocked(self) -> list[str]:
        return [row["prefix"] for row in self.ask("block", "list")]

    def metrics(self, url: str = "http://127.0.0.1:9773/metrics") -> dict[str, float]:
        lines = self.machine.python(_METRICS, url).splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if x and x[0] != "#")}

    # records

    def mark(self) -> None:
        """Records and log lines of before do not count any more."""
        self.since = f"--since=@{time.time():.6f}"  # --after-cursor leaves out the first that a match finds

    def records(self, event_type: str, count: int = 0) -> list[dict[str, Any]]:
        """All there are, or exactly so many as soon as there are."""

        def found() -> list[dict[str, Any]]:
            return self.machine.journal(self.since, f"PACKETWATCH_EVENT_TYPE={event_type}")

        if count:
            wait_for(lambda: self.count(event_type) >= count, f"{count} records of type {event_type}", 5)
        records = found()
        assert not count or len(records) == count, records
        return records

    def count(self, event_type: str) -> int:
        """How many records, without carrying them all over here."""
        self.machine.run(["journalctl", "--sync"])
        match = f"PACKETWATCH_EVENT_TYPE={event_type}"
        command = ["journalctl", "-q", "--output=cat", self.since, match]
        return self.machine.run(command).stdout.count("\n")

    def told(self) -> str:
        """What systemd and the process said about the unit."""
        self.machine.run(["journalctl", "--sync"])
        return self.machine.run(["journalctl", "-q", "--output=cat", self.since, "-u", UNIT]).stdout

    # traffic

    def scan(self, source: str = SCANNER, ports: Sequence[int] = (81, 82, 83)) -> None:
        """Three ports: blocked from then on."""
        with self.machine.peer_address(source):
            assert self.machine.connect_all(ports, source) == ["refused"] * len(ports)
        wait_for(lambda: source in self.blocked(), f"{source} is blocked")

    def reaches(self, source: str, port: int = CLOSED_PORT) -> bool:
        with self.machine.peer_address(source):
            return self.machine.connect(port, source, timeout_s=0.4) != "dropped"

    def connect_often(self, count: int, source: str) -> None:
        """Connections one after the other to a closed port: not a scan, and no SYN is sent twice."""
        with self.machine.peer_address(source):
            out = self.machine.peer(["/usr/bin/python3", "-c", _OFTEN, ADDRESS, str(CLOSED_PORT), source, str(count)])
            assert out.stdout == f"{count} refused, 0 sent again\n"

    @contextlib.contextmanager
    def traffic(self, *sources: str) -> Iterator[Traffic]:
        """New connections from each source all the time, to a listener."""
        with contextlib.ExitStack() as stack:
            for source in sources:
                stack.enter_context(self.machine.peer_address(source))
            stack.enter_context(listener(self.machine))
            yield stack.enter_context(Traffic(self.machine, sources))


class Sent(dict[str, dict[str, int]]):
    """By source: `sent` SYNs, and how many connections were `answered` or stayed `silent`."""

    @property
    def total(self) -> int:
        return sum(row["sent"] for row in self.values())


class Traffic:
    """traffic.py, running beside the machine."""

    def __init__(self, machine: Machine, sources: Sequence[str]) -> None:
        self._command = machine.beside(["/usr/bin/python3", _HERE / "traffic.py", ADDRESS, str(OPEN_PORT), *sources])
        self._process: Optional[subprocess.Popen[str]] = None

    def __enter__(self) -> Traffic:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "running\n"
        return self

    def end(self) -> Sent:
        """Stops sending; what became of every connection."""
        process, self._process = self._process, None
        assert process is not None
        return Sent(json.loads(process.communicate(timeout=20)[0]))

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()


@contextlib.contextmanager
def listener(machine: Machine) -> Iterator[None]:
    process = subprocess.Popen(
        machine.inside(["sh", "-c", _IN_ITS_CGROUP, "python3", "-c", _LISTEN, str(OPEN_PORT)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "listening\n"
    try:
        yield
    finally:
        process.communicate(timeout=10)


def ids_of(*program_ids: int) -> dict[str, set[int]]:
    """What there is of programs in the kernel: their own ids, and those of their maps and links."""
    programs = [p for p in bpftool("prog", "show") if p["id"] in program_ids]
    maps = {number for program in programs for number in program.get("map_ids", ())}
    links = {link["id"] for link in bpftool("link", "show") if link.get("prog_id") in program_ids}
    return {"prog": {program["id"] for program in programs}, "map": maps, "link": links}


def bpftool(*words: str) -> list[dict[str, Any]]:
    """The host's: ids are the same inside."""
    found: list[dict[str, Any]] = json.loads(
        subprocess.run(["bpftool", "--json", *words], check=True, capture_output=True, text=True).stdout
    )
    return found


def proc_status(machine: Machine, pid: str) -> dict[str, str]:
    text = machine.read(f"/proc/{pid}/status")
    return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


#: What enters a machine's namespaces is still in a cgroup of the host.
_IN_ITS_CGROUP = 'echo $$ >/sys/fs/cgroup/init.scope/cgroup.procs && exec "$0" "$@"'
_LISTEN = """
import select, socket, sys
server = socket.create_server(("", int(sys.argv[1])), backlog=4096)
print("listening", flush=True)
while True:
    ready, _, _ = select.select([server, sys.stdin], [], [])
    if sys.stdin in ready:
        break
    server.accept()[0].close()
"""

_OFTEN = """
import socket, sys
to, port, source, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])

def again():
    with open("/proc/net/netstat") as file:
        names, values = [line.split() for line in file if line.startswith("TcpExt:")]
    return int(dict(zip(names, values))["TCPSynRetrans"])

before, refused = again(), 0
for _ in range(count):
    with socket.socket() as link:
        link.bind((source, 0))
        refused += link.connect_ex((to, port)) == 111
print(f"{refused} refused, {again() - before} sent again")
"""
