# SPDX-License-Identifier: Apache-2.0
"""Compiles and loads the kernel half in a process of its own, and hands over the descriptors.

The only importer of bcc (LLVM: 120 MB while it lives). `Loader` runs in the resident and imports
nothing of it; `main` is the child.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Optional

from packetwatch import libbpf, privileges, program

_MESSAGE_BYTES = 1 << 16
_CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from packetwatch import loader; loader.main(int(sys.argv[2]))"
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # asked for with madvise(2): a third of the page faults less
_TIME_LIMIT_S = 60
_LAST_BYTES = 1 << 16  # of what LLVM and the verifier print: a refusal stands at the end
_REPORT = "report it with this line, please"


class LoadError(Exception):
    """The kernel half could not be had; `hint` is the next step."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Loaded(NamedTuple):
    """Descriptors of what was loaded; whoever holds them keeps it in the kernel."""

    prog: int
    maps: dict[str, int]
    headers: str  #: uapi or kernel: what it was compiled with
    handshakes: Optional[int] = None  #: the program for the root cgroup
    refused: str = ""  #: why there is none of that


class Loader:
    """The child, started before anybody knows what it shall load: it takes a while to come up. To be closed."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-IB", "-c", _CHILD, str(Path(__file__).resolve().parent.parent)]
                + [str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd="/",  # bcc fails where the folder we were started in is gone
                env={**_HUGE_PAGES, **os.environ},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the resident's affair
            )

    def load(self, parameters: program.Parameters, sources: Path = program.SOURCES) -> Loaded:
        """Has it compile, takes its descriptors and ends it. Raises LoadError."""
        message, fds = self._ask({"sources": str(sources), "parameters": parameters._asdict()})
        errors = self._child.communicate()[1].decode(errors="replace")
        answer: dict[str, Any] = json.loads(message) if message else {}
        if "error" in answer:
            raise LoadError(answer["error"], answer["hint"])
        handshakes = fds.pop() if answer.get("handshakes") else None
        if len(fds) != len(program.MAPS) + 1:
            last_words = _last_words(self._child.returncode, errors)
            raise LoadError(f"the loader ended without a program: {last_words}", "try again")
        for fd in (*fds, *([handshakes] if handshakes is not None else [])):
            os.set_inheritable(fd, False)
        return Loaded(fds[0], dict(zip(program.MAPS, fds[1:])), answer["headers"], handshakes, answer["refused"])

    def _ask(self, request: dict[str, Any]) -> tuple[bytes, list[int]]:
        """Its answer, which is empty where it has died or takes too long."""
        self._channel.settimeout(_TIME_LIMIT_S)
        try:
            self._channel.send(json.dumps(request).encode())
            message, fds, _, _ = socket.recv_fds(self._channel, _MESSAGE_BYTES, len(program.MAPS) + 2)
            return message, fds
        except socket.timeout:
            self._kill()
        except (BrokenPipeError, ConnectionResetError):
            pass  # its last words say why
        return b"", []

    def close(self) -> None:
        """Ends it, if it still waits."""
        self._channel.close()
        if self._child.returncode is None:
            self._kill()
            self._child.communicate()

    def _kill(self) -> None:
        with contextlib.suppress(PermissionError):  # root without CAP_KILL; the channel's end ends it a little later
            self._child.kill()


def load(parameters: program.Parameters, sources: Path = program.SOURCES) -> Loaded:
    """Starts a loader and has it load. Raises LoadError."""
    with contextlib.closing(Loader()) as child:
        return child.load(parameters, sources)


def _last_words(status: int, errors: str) -> str:
    if status == -signal.SIGKILL:
        return f"killed; out of memory, or no answer within {_TIME_LIMIT_S} seconds"
    if status < 0:
        return f"killed by signal {-status}"
    return (errors.strip().splitlines() or [f"exit status {status}"])[-1]


def main(descriptor: int) -> None:
    """The child; descriptor: of the socket on which one request comes, or none."""
    channel = socket.socket(fileno=descriptor)
    libbpf.raise_memlock()
    privileges.stop_being_root(privileges.READING)  # least privilege; and for root bcc reads all of /proc/kallsyms
    with contextlib.suppress(ImportError):
        importlib.import_module("bcc")  # takes a while, in which the request may come
    request = json.loads(channel.recv(_MESSAGE_BYTES) or "null")
    if request is None:
        return
    parameters, sources = program.Parameters(**request["parameters"]), Path(request["sources"]).resolve()
    try:
        headers = _choose_headers(parameters.headers, sources)
        fds, handshakes, refused = _compile(parameters, sources)
    except LoadError as fault:
        channel.send(json.dumps({"error": str(fault), "hint": fault.hint}).encode())
    else:
        message = {"headers": headers, "handshakes": handshakes is not None, "refused": refused}
        rest = [handshakes] if handshakes is not None else []
        socket.send_fds(channel, [json.dumps(message).encode()], fds + rest)
        os._exit(0)  # tidying up would take LLVM a while


def _choose_headers(wish: str, sources: Path) -> str:
    """Our stub tree needs the UAPI headers only; without those, the kernel's own tree does."""
    uapi = Path("/usr/include/linux/bpf.h").exists()
    if wish == "uapi" or (wish == "auto" and uapi):
        if not uapi:
            raise LoadError(
                "no UAPI headers: /usr/include/linux/bpf.h is missing",
                "install linux-libc-dev (Debian, Ubuntu) or kernel-headers (EL, Fedora)",
            )
        os.environ["BCC_KERNEL_SOURCE"] = str(sources / "headers")
        return "uapi"
    release = platform.release()
    trees = [Path(f"/lib/modules/{release}/build"), Path(f"/usr/src/linux-headers-{release}")]
    trees.append(Path(f"/usr/src/kernels/{release}"))
    tree = os.environ.get("BCC_KERNEL_SOURCE") or next((str(t) for t in trees if t.is_dir()), None)
    if tree is None:
        raise LoadError(
            f"no headers: neither /usr/include/linux nor a header tree of the running kernel {release}",
            "install linux-libc-dev (Debian, Ubuntu) or kernel-headers (EL, Fedora); the exact version does not matter",
        )
    os.environ["BCC_KERNEL_SOURCE"] = tree
    return "kernel"


def _flags(parameters: program.Parameters, sources: Path) -> list[str]:
    machine = {"aarch64": "aarch64-linux-gnu", "ppc64le": "powerpc64le-linux-gnu"}.get(
        platform.machine(), f"{platform.machine()}-linux-gnu"
    )
    return [
        f"-I{sources}",
        "-fno-strict-aliasing",  # bytes of packets and maps are read as what they are needed as, as the kernel does
        "-Wno-everything",
        "-Werror=implicit-function-declaration",  # a misspelt helper would load as a wild jump
        f"-I/usr/include/{machine}",
        "-I/usr/include",
        *parameters.defines(),
    ]


def _compile(parameters: program.Parameters, sources: Path) -> tuple[list[int], Optional[int], str]:
    """Descriptors of the program and of every map, in the order of program.MAPS; and see _load_handshakes()."""
    try:
        import bcc
    except ImportError as fault:
        raise LoadError(f"bcc cannot be imported: {fault}", "install python3-bpfcc (Debian) or python3-bcc (EL)")
    with _captured_stderr() as capture:
        try:
            text = (sources / "packetwatch.c").read_text()
            built = bcc.BPF(text=text, cflags=_flags(parameters, sources))
            function = built.load_func(program.FUNCTION, bcc.BPF.XDP)
        except Exception as fault:  # bcc raises bare Exception; what matters is what it printed
            raise _explain(fault, capture.text()) from None
    maps = [_map_fd(built, name) for name in program.MAPS]
    return ([function.fd, *maps], *_load_handshakes(built, parameters))


def _load_handshakes(built: Any, parameters: program.Parameters) -> tuple[Optional[int], str]:
    """The descriptor of the program for the root cgroup, or why there is none: everything else works without."""
    import bcc

    if parameters.replay:
        return None, ""
    refused = ""
    for name in program.HANDSHAKES:
        with _captured_stderr() as capture:
            try:
                return built.load_func(name, bcc.BPF.SOCK_OPS).fd, ""
            except Exception as fault:
                refused = refused or str(_explain(fault, capture.text()))
    return None, refused


def _map_fd(built: Any, name: str) -> int:
    import bcc

    fd: int = bcc.lib.bpf_table_fd(built.module, name.encode())
    return fd


def _explain(fault: Exception, printed: str) -> LoadError:
    """The kernel's or the compiler's words, as one sentence and a next step."""
    refused = re.search(r"^processed \d+ insns", printed, re.M)
    if refused:
        lines = printed[: refused.start()].strip().splitlines()
        return LoadError(f"the kernel's verifier refuses the kernel half: {lines[-1] if lines else fault}", _REPORT)
    if re.search(r"Operation not permitted|Permission denied", printed + str(fault)):
        return LoadError(
            "the kernel refuses bpf(2): not permitted",
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON",
        )
    if not libbpf.has_ring_buffer():
        return LoadError(
            f"kernel {platform.release()} has no BPF ring buffer", "Packetwatch needs Linux 5.10 or newer"
        )
    first = next((line for line in printed.splitlines() if "error:" in line), "") or str(fault)
    return LoadError(f"the kernel half does not compile or load: {first.strip()}", _REPORT)


class _captured_stderr:
    """LLVM and libbpf write to descriptor 2; keep it for the explanation."""

    def __enter__(self) -> _captured_stderr:
        self._kept = os.dup(2)
        self._file: Optional[int] = os.memfd_create("loader-errors")
        os.dup2(self._file, 2)
        return self

    def text(self) -> str:
        assert self._file is not None
        size = os.fstat(self._file).st_size
        return os.pread(self._file, _LAST_BYTES, max(0, size - _LAST_BYTES)).decode(errors="replace")

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)


def _usage() -> NoReturn:
    raise SystemExit("packetwatch.loader is started by the resident, not by hand")


if __name__ == "__main__":
    _usage()
