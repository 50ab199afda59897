# SPDX-License-Identifier: Apache-2.0
"""A journald for the time of a `with`, at the real socket, which keeps all that it takes in memory.

Only where /run is this process's own (running.stage): the host's journald, if any, is neither asked nor touched.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from packetwatch.sinks.journal import SOCKET
from packetwatch.sinks.records import KINDS
from tests.netns.conftest import Namespace
from tests.netns.resident import environment, wait_for

from . import process

PROGRAM = "/lib/systemd/systemd-journald"
FILES = Path("/run/log/journal")
ARCHIVED = "*/*@*.journal"
DATAGRAMS = 512  # that a socket queues: what systemd sets at boot, by namespace
CONNECTIONS = f"MESSAGE_ID={KINDS['connection'].message_id}"
# Emptied after every step, so that 1G is never reached. Kernel and audit messages stay the host's.
SETTINGS = """[Journal]
Storage=volatile
RuntimeMaxUse=1G
RateLimitIntervalSec=0
ReadKMsg=no
Audit=
"""


class Journald:
    """Takes what comes from anywhere in the mount namespace. ``ns``: where the length of its queue is set."""

    def __init__(self, ns: Namespace) -> None:
        self._ns = ns

    def __enter__(self) -> Journald:
        settings = Path("/run/systemd/journald.conf.d/zz-bench.conf")
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(SETTINGS)
        self._ns.sysctl("net.unix.max_dgram_qlen", DATAGRAMS)
        with self._ns.enter():  # not by `ip netns exec`, which hides the cgroups that journald looks up
            self._process = subprocess.Popen([*process.DYING_WITH_US, PROGRAM], env=environment())
        try:
            wait_for(lambda: Path(SOCKET).is_socket() and [*FILES.glob("*/system.journal")], "journald's journal")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def cpu_s(self) -> float:
        return process.cpu_s(self._process.pid)

    def take(self) -> tuple[int, int]:
        """The connections that the journal holds and the bytes that its files take; then it is empty."""
        ask("--sync")  # what waits in the socket is taken before
        ask("--rotate")
        lines = ask("--directory", str(FILES), "--output=cat", "--output-fields=PRIORITY", CONNECTIONS)  # "6" each
        files = list(FILES.glob(ARCHIVED))
        size = sum(path.stat().st_blocks * 512 for path in files)
        for path in files:
            path.unlink()
        return lines.count(b"\n"), size


def ask(*words: str) -> bytes:
    return subprocess.run(["journalctl", "--quiet", *words], check=True, stdout=subprocess.PIPE, timeout=60).stdout
