# SPDX-License-Identifier: Apache-2.0
"""The settings files: which there are, and what they hold, together with environment and command line.

Not for what settings mean: config.py is handed the texts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Optional

from packetwatch import config
from packetwatch.config import ConfigError, Fault, Settings

MAIN = "/etc/packetwatch/packetwatch.conf"
MOST_BYTES = 8 << 20  #: of one file; config.load() calls more a fault
MOST_ROUNDS = 8  #: of leaving out what is faulty; a line that went on in the next takes two
TRACE = "PACKETWATCH_DEBUG"  #: the one variable of ours that is no setting: it shows tracebacks

File = tuple[str, bytes]


class Inputs(NamedTuple):
    """What settings are read from, at the start and again at every reload."""

    config_path: Optional[str]  #: the file named by --config; None is MAIN, which may be missing
    environ: Mapping[str, str]
    flags: Mapping[str, Sequence[str]]  #: by key, as config.load() takes them


def read(inputs: Inputs) -> Settings:
    """The settings that files, environment and flags give together. Raises ConfigError with every fault there is."""
    faults: list[Fault] = []
    found = files(inputs.config_path, faults)
    environ = {name: text for name, text in inputs.environ.items() if name != TRACE}
    try:
        settings = config.load(found, environ, inputs.flags)
    except ConfigError as error:
        raise ConfigError(faults + error.faults) from None
    if faults:
        raise ConfigError(faults)
    return settings


def files(config_path: Optional[str], faults: list[Fault]) -> list[File]:
    """The main file and then PATH.d/*.conf by name; what cannot be read is added to ``faults``."""
    main = MAIN if config_path is None else os.path.abspath(config_path)
    paths = [main] if config_path is not None or os.path.lexists(main) else []
    return [file for path in paths + _drop_ins(main + ".d", faults) for file in _contents(path, faults)]


def _drop_ins(directory: str, faults: list[Fault]) -> list[str]:
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        faults.append(_unreadable(directory, error))
        return []
    return [os.path.join(directory, name) for name in sorted(names) if name.endswith(".conf") and name[0] != "."]


def _contents(path: str, faults: list[Fault]) -> list[File]:
    try:
        with open(path, "rb", opener=_open) as file:
            text = file.read(MOST_BYTES + 1) or b""
            if not text and stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
                faults.append(Fault(path, 0, "a pipe with nothing in it", "name a regular file"))
            return [(path, text)]
    except OSError as error:
        faults.append(_unreadable(path, error))
        return []


def _open(path: str, flags: int) -> int:
    """A pipe that nobody writes to must not hang a start."""
    return os.open(path, flags | os.O_NONBLOCK)


def _unreadable(path: str, error: OSError) -> Fault:
    hints = {errno.EACCES: "run it with sudo", errno.ENOENT: "check the path", errno.EISDIR: "name a file in it"}
    return Fault(path, 0, f"cannot be read: {error.strerror}", hints.get(error.errno or 0, ""))


def socket_path(inputs: Inputs) -> str:
    """Where a resident with these settings listens."""
    return _despite_faults(inputs, "socket").socket


def state_path(inputs: Inputs) -> str:
    """Where a resident with these settings keeps its state."""
    return _despite_faults(inputs, "state").state


def _despite_faults(inputs: Inputs, key: str) -> config.Settings:
    """Good for that one setting: faults elsewhere do not hide it, and files that this user may not read do not count.

    Raises ConfigError where the environment or the command line has a fault in it.
    """
    environ = {name: text for name, text in inputs.environ.items() if name == config.variable(key)}
    flags = {name: texts for name, texts in inputs.flags.items() if name == key}
    found = files(inputs.config_path, [])
    for _ in range(MOST_ROUNDS):
        try:
            return config.load(found, environ, flags)
        except ConfigError as error:
            found = _without(found, error.faults)
    return config.load([], environ, flags)


def kept(name: str, text: str) -> tuple[config.Settings, list[Fault]]:
    """Settings that were good for the version that kept them, and what this one, an older, had to leave out of them.

    Raises ConfigError where leaving lines out does not help.
    """
    found, left_out = [(name, text.encode())], list[Fault]()
    for _ in range(MOST_ROUNDS):
        try:
            return config.load(found, {}, {}), left_out
        except ConfigError as error:
            left_out += error.faults
            found = _without(found, error.faults)
    raise ConfigError(left_out)


def _without(found: Iterable[File], faults: Iterable[Fault]) -> list[File]:
    """The files with the faulty lines emptied; one whose fault has no line is left out."""
    lines = {(fault.path, fault.line) for fault in faults}
    return [
        (path, b"\n".join(b"" if (path, number) in lines else line for number, line in enumerate(text.split(b"\n"), 1)))
        for path, text in found
        if (path, 0) not in lines
    ]
