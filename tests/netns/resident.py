# SPDX-License-Identifier: Apache-2.0
"""The resident as people run it: a process in a namespace, its records, its commands, its ledger and its maps."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from packetwatch import client, libbpf

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "/usr/bin/python3"
CONTROL = [PYTHON, "-m", "packetwatch"]
TERMS = ("connections", "connections_folded", "connections_dropped", "connections_lost")
START_S = 30
NO_CGROUP = "packetwatch: handshakes are not seen, so no source counts as established: no cgroup v2 is mounted\n"


class Failed(AssertionError):
    """A resident that did not start: its exit status, its lines on stderr."""

    def __init__(self, status, errors):
        super().__init__(f"the resident ended with status {status}: {errors}")
        self.status, self.errors = status, errors


def environment(**more):
    """Of whoever runs the tests, without what would be a setting or systemd's."""
    ours = re.compile("PACKETWATCH_|PW_|NOTIFY_SOCKET|WATCHDOG_|LISTEN_|JOURNAL_STREAM")
    kept = {name: text for name, text in os.environ.items() if not ours.match(name)}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def wait_for(find, what, timeout_s=8.0):
    """What ``find()`` returns as soon as it is true."""
    end = time.monotonic() + timeout_s
    while True:
        found = find()
        if found:
            return found
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)


class Resident:
    """One run in the folder ``home``: settings file, socket and state lie there. ``flags`` win over ``settings``."""

    def __init__(self, ns, home, settings="", *flags, prefix=(), env=None, stdout=subprocess.PIPE):
        self.ns, self.home, self.flags = ns, Path(home), flags
        self.home.mkdir(parents=True, exist_ok=True)
        self.config, self.socket, self.state = (self.home / name for name in ("packetwatch.conf", "s", "state"))
        self.write(settings)
        self.lines, self.process = [], None
        self._prefix, self._env, self._stdout = prefix, env or {}, stdout

    # the process

    def start(self):
        """Returns when it answers; raises Failed if it ends instead."""
        self.launch()
        wait_for(self._answers, "the resident's first answer", START_S)
        return self

    def launch(self):
        command = [*self._prefix, *CONTROL, "run", "--config", str(self.config), *self.flags]
        command += ["--socket", str(self.socket), "--state", str(self.state)]
        self.stderr = open(self.home / "stderr", "w+")
        env = environment(**self._env)
        self.process = self.ns.popen(command, stdout=self._stdout, stderr=self.stderr, env=env, cwd=self.home)
        if self._stdout == subprocess.PIPE:
            threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        return self

    def _read(self, stream):
        with stream:
            for line in stream:
                self.lines.append(line.decode())

    def _answers(self):
        if self.process.poll() is not None:
            raise Failed(self.process.returncode, self.errors())
        try:
            return self.status()
        except client.ControlError:
            return None

    @property
    def pid(self):
        return self.process.pid

    @property
    def started(self):
        return self.process is not None

    @property
    def running(self):
        return self.process.poll() is None

    def errors(self):
        """What it has said on stderr, but for what is so in every namespace, where no cgroup is mounted."""
        return self.said().replace(NO_CGROUP, "")

    def said(self):
        """All of it."""
        return (self.home / "stderr").read_text()

    def send(self, number):
        self.process.send_signal(number)

    def stop(self, number=signal.SIGTERM):
        """The exit status."""
        if self.running:
            self.send(number)
        try:
            return self.process.wait(15)
        finally:
            self.kill()

    def kill(self):
        if self.running:
            self.process.kill()
        self.process.wait()
        self.stderr.close()

    def write(self, settings):
        """The settings file of the next start or reload; a line ``scan.ports = 3`` goes to its section."""
        text = "[packetwatch]\n"
        for line in filter(None, map(str.strip, settings.splitlines())):
            section, _, name = line.partition("=")[0].strip().rpartition(".")
            text += f"[{section or 'packetwatch'}]\n{name} = {line.partition('=')[2].strip()}\n"
        self.config.write_text(text)

    # commands

    def command(self, *words):
        """``packetwatch WORDS`` from anywhere on the host."""
        return run_command(*words, "--socket", str(self.socket))

    def done(self, *words):
        """The same, which must succeed; what it prints."""
        result = self.command(*words)
        assert result.returncode == 0, f"{words}: {result.stderr}"
        return result.stdout

    def answer(self, *words):
        return json.loads(self.done(*words, "-o", "json"))

    def status(self):
        return client.Client(str(self.socket), 5).call({"do": "status"})

    # records

    def records(self, event_type=None, **fields):
        """Those so far, of JSON lines."""
        wanted = fields if event_type is None else {"event_type": event_type, **fields}
        every = map(json.loads, list(self.lines))
        return [record for record in every if all(record.get(name) == value for name, value in wanted.items())]

    def record(self, event_type, timeout_s=8.0, **fields):
        """The first one; waits for it."""
        return wait_for(lambda: self.records(event_type, **fields), f"{event_type} {fields}", timeout_s)[0]

    def line(self, pattern, timeout_s=8.0):
        """The match of the first line that a pattern describes wholly; waits for it."""
        compiled = re.compile(pattern + r"\n")
        return wait_for(lambda: next(filter(None, map(compiled.fullmatch, list(self.lines))), None), pattern, timeout_s)

    # numbers

    def ledger(self, of=None):
        """The terms at rest: read until two readings agree, which then must balance."""
        last = None
        for _ in range(100):
            terms = self.status()["ledger"] if of is None else self.status()["by_interface"][of]
            if terms == last and balances(terms):
                return terms
            last = terms
            time.sleep(0.1)
        raise AssertionError(f"the ledger does not balance: {last}")

    def rss_kb(self):
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])

    def maps(self):
        """Descriptors of its maps by name, taken from the process; close() them."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fdinfo"):
            try:
                info = Path(f"/proc/{self.pid}/fdinfo/{name}").read_text()
            except FileNotFoundError:
                continue  # one for a moment only
            match = re.search(r"^map_id:\s+(\d+)", info, re.M)
            if match:
                fd = libbpf._call("bpf_map_get_fd_by_id", ctypes.c_uint32(int(match[1])))
                found[map_name(fd)] = fd
        return found


def balances(terms):
    return terms["syns"] == sum(terms[name] for name in TERMS)


def map_name(fd):
    """As the kernel keeps it: at most 15 characters (linux/bpf.h: bpf_map_info.name)."""
    return libbpf._info(fd, 64)[24:40].rstrip(b"\0").decode()


def run_command(*words, **options):
    """``packetwatch WORDS``, from the checkout."""
    given = {"capture_output": True, "text": True, "timeout": 60, "env": environment(), **options}
    return subprocess.run([*CONTROL, *words], **given)
