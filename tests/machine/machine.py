# SPDX-License-Identifier: Apache-2.0
"""A booted Debian with systemd, and a peer connected to it by a veth pair. Not a sandbox: it shares the kernel.

One systemd-nspawn per Machine, in mount and network namespaces of its own: the peer is that network
namespace. Everything ends with the process, also when the test run is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional, Union

HERE = pathlib.Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
CACHE = pathlib.Path(os.environ.get("PACKETWATCH_TEST_CACHE", CHECKOUT / "build")) / "machine"

PACKAGES = (
    "dbus",
    "iproute2",
    "libpam-systemd",
    "linux-libc-dev",
    "procps",
    "python3-bpfcc",
    "python3-prometheus-client",
    "python3-systemd",
    "systemd-sysv",
)
#: With Puppet. A root takes a minute or more to build, so one serves agents and server, or tests of packages, too.
PUPPET = {"bookworm": (*PACKAGES, "puppetserver"), "trixie": (*PACKAGES, "puppet-agent")}
#: The machine's and the peer's addresses on the link between them (documentation ranges).
ADDRESS, PEER = "192.0.2.1", "192.0.2.2"
ADDRESS6, PEER6 = "2001:db8::1", "2001:db8::2"

Command = Sequence[Union[str, pathlib.Path]]
_numbers = itertools.count(1)


def build_root(packages: Sequence[str] = PACKAGES, release: str = "") -> pathlib.Path:
    """The directory with a Debian release (this host's, unless named) and the packages; built once, then reused.
    Never booted itself.
    """
    release = release or platform_release()["VERSION_CODENAME"]
    recipe = " ".join([release, *sorted(packages)])
    root = CACHE / f"{release}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _mmdebstrap(release, packages, root)
    return root


def platform_release() -> dict[str, str]:
    lines = pathlib.Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def mirror() -> str:
    """Where apt gets this host's release from, as apt itself says; the other releases are there, too."""
    release = platform_release()["VERSION_CODENAME"]
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {release}"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    if not found:
        raise RuntimeError(f"apt knows no source of {release}: run apt-get update")
    return found[0]


def _mmdebstrap(release: str, packages: Sequence[str], root: pathlib.Path) -> None:
    partial = root.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(packages)}"]
    command += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
    command += ["--essential-hook=mkdir -p $1/usr/share/man/man1"]  # which Java's set-up relies on
    command += ["--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/etc/hostname"]
    command += [release, str(partial), f"deb {mirror()} {release} main"]
    # Its filter for every package is a Python script: the system's own starts at once, a wrapper may not.
    environment = {**os.environ, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"mmdebstrap failed:\n{done.stderr[-2000:]}")
    partial.rename(root)


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 10) -> Any:
    """The first true answer of condition(), asked every 20 ms. Raises TimeoutError naming what."""
    end = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.02)


class Machine:
    """Boot on entry, gone on exit."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self.name = f"pw{os.getpid()}x{next(_numbers)}"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Machine:
        with self._stack:
            self._boot()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # Life

    def _boot(self) -> None:
        mountpoint = CACHE / "mnt"
        mountpoint.mkdir(exist_ok=True)
        self._console = self._stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        namespaces = ["unshare", "--mount", "--net", "--propagation", "private"]
        self._guardian = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *namespaces, HERE / "boot.sh", self.root, mountpoint, self.name],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the test run, which then ends this in its own order
        )
        self._stack.callback(self._end)
        self._await_boot()

    def _end(self) -> None:
        self._guardian.send_signal(signal.SIGTERM)
        self._guardian.wait(timeout=30)

    def _await_boot(self) -> None:
        try:
            wait_for(self._booted, f"{self.name} is up", 60)
        except TimeoutError as error:
            self._console.seek(0)
            raise RuntimeError(f"{error}; its console:\n{self._console.read()[-4000:]}") from None
        self._connect()

    def _booted(self) -> bool:
        if self._guardian.poll() is not None:
            raise TimeoutError(f"{self.name} ended while it booted")
        with contextlib.suppress(LookupError):
            state = self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip()
            if state == "degraded":
                raise RuntimeError(self.run(["systemctl", "--failed"], check=False).stdout)
            return state == "running"
        return False

    def _connect(self) -> None:
        ends = {self._guardian.pid: (f"ve-{self.name}"[:15], PEER, PEER6), self.leader: ("host0", ADDRESS, ADDRESS6)}
        for pid, (device, address, address6) in ends.items():
            _ip(pid, "address", "replace", f"{address}/24", "dev", device)
            _ip(pid, "address", "replace", f"{address6}/64", "dev", device, "nodad")
            _ip(pid, "link", "set", device, "up")
        _ip(self.leader, "route", "replace", "default", "via", PEER)
        _ip(self.leader, "route", "replace", "default", "via", PEER6)
        wait_for(lambda: self.peer(["ping", "-c1", "-W1", ADDRESS], check=False).returncode == 0, "the link works")

    def reboot(self) -> None:
        """A real shutdown and start; what was written to disk is still there."""
        old = self.leader
        self.run(["systemctl", "reboot"], check=False)
        wait_for(lambda: self._new_leader(old), f"{self.name} restarts", 60)
        self._await_boot()

    def _new_leader(self, old: int) -> bool:
        with contextlib.suppress(LookupError):
            return self.leader != old
        return False

    @property
    def leader(self) -> int:
        """The machine's PID 1 as the host counts. Raises LookupError while there is none."""
        return _only_child(_only_child(self._guardian.pid))

    # Commands

    def run(self, command: Command, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside as root with a clean environment; text in and out."""
        return _run(self.inside(command), check, **options)

    def peer(self, command: Command, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run one of the host's commands in the peer's network."""
        return _run(self.beside(command), check, **options)

    def inside(self, command: Command) -> list[str]:
        """The argv for subprocess.Popen that runs command inside."""
        enter = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--wd", "--"]
        return [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8", "HOME=/root", *map(str, command)]

    def beside(self, command: Command) -> list[str]:
        """The argv for subprocess.Popen that runs command as the peer."""
        return ["nsenter", "-t", str(self._guardian.pid), "-n", "--", *map(str, command)]

    def python(self, code: str, *arguments: str, check: bool = True) -> str:
        """What a Python program run inside printed; it can import packetwatch once that is installed."""
        command = ["python3", "-c", f"import sys; sys.path.insert(0, '/usr/lib/packetwatch')\n{code}", *arguments]
        return self.run(command, check).stdout

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """The unit's properties as systemctl shows them."""
        lines = self.run(["systemctl", "show", unit, *(f"-p{name}" for name in properties)]).stdout.splitlines()
        return {key: value for key, _, value in (line.partition("=") for line in lines)}

    def journal(self, *match: str) -> list[dict[str, Any]]:
        """The journal's entries that match, oldest first, flushed before."""
        self.run(["journalctl", "--sync"])
        lines = self.run(["journalctl", "--output=json", "--no-pager", *match]).stdout.splitlines()
        return [json.loads(line) for line in lines]

    # Files

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        script = 'mkdir -p "$(dirname "$1")" && cat >"$1" && chmod "$2" "$1"'
        self.run(["sh", "-c", script, "sh", path, f"{mode:o}"], input=text)

    def read(self, path: str) -> str:
        return self.run(["cat", path]).stdout

    def copy(self, source: pathlib.Path, target: str) -> None:
        """A file or a tree, owned by root; no compiled Python, no hidden files."""
        with tempfile.TemporaryFile() as pack:
            with tarfile.open(fileobj=pack, mode="w") as tar:
                tar.add(source, arcname=target.lstrip("/"), filter=_plain)
            pack.seek(0)
            subprocess.run(self.inside(["tar", "-x", "-C", "/"]), stdin=pack, check=True, timeout=60)

    def install(self) -> None:
        """The checkout as the packages lay it out and set it up; the service is neither enabled nor started."""
        with tempfile.TemporaryDirectory() as tree:
            _run(["make", "--silent", "-C", CHECKOUT, "install", f"DESTDIR={tree}"], True)
            for entry in sorted(pathlib.Path(tree).iterdir()):
                self.copy(entry, f"/{entry.name}")
        self.run(["/usr/lib/packetwatch/bin/setup", "add"])

    # Peer

    @contextlib.contextmanager
    def peer_address(self, address: str) -> Iterator[str]:
        """Another address of the peer, to be a source of its own."""
        length = "128" if ":" in address else "32"
        change = [f"{address}/{length}", "dev", f"ve-{self.name}"[:15]]
        self.peer(["ip", "address", "add", *change, *(["nodad"] if ":" in address else [])])
        try:
            yield address
        finally:
            self.peer(["ip", "address", "del", *change], check=False)

    def connect(self, port: int, source: str = PEER, to: Optional[str] = None, timeout_s: float = 1) -> str:
        """One TCP connection from the peer: connected, refused or dropped (no answer in time)."""
        return self.connect_all([port], source, to, timeout_s)[0]

    def connect_all(
        self, ports: Sequence[int], source: str = PEER, to: Optional[str] = None, timeout_s: float = 1
    ) -> list[str]:
        """One connection after the other, as `connect` has it."""
        to = to or (ADDRESS6 if ":" in source else ADDRESS)
        command = ["/usr/bin/python3", "-c", _CONNECT, to, source, str(timeout_s), *map(str, ports)]
        return self.peer(command).stdout.split()


_CONNECT = """
import socket, sys
to, source, timeout, *ports = sys.argv[1:]
for port in ports:
    try:
        socket.create_connection((to, int(port)), float(timeout), (source, 0)).close()
        print("connected")
    except ConnectionRefusedError:
        print("refused")
    except socket.timeout:
        print("dropped")
"""


def _run(command: Command, check: bool, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def _ip(pid: int, *arguments: str) -> None:
    """The host's ip in the network namespace of a process."""
    _run(["nsenter", "-t", str(pid), "-n", "ip", *arguments], True)


def _plain(entry: tarfile.TarInfo) -> Optional[tarfile.TarInfo]:
    name = pathlib.PurePath(entry.name).name
    if name == "__pycache__" or name.startswith("."):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def _only_child(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if len(children) == 1:
            return int(children[0])
    raise LookupError(f"process {pid} has no single child")
