# SPDX-License-Identifier: Apache-2.0
"""From files, environment and command line to Settings, or to every fault in them at once.

Pure: it is handed texts. Finding the files, and telling the user, is the caller's.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

from packetwatch.address import shown
from packetwatch.kinds import Bad, duration_text, rule_text, size_text
from packetwatch.settings import BY_KEY, ROWS, Row, Settings, changed, describe, dump, flag, needs_restart, parameter
from packetwatch.settings import read, sample, texts, variable

__all__ = [
    "Bad", "ConfigError", "Fault", "Row", "Settings", "changed", "describe", "dump", "duration_text", "flag", "load",
    "needs_restart", "parameter", "read", "rule_text", "sample", "size_text", "texts", "variable",
]

FILE, ENVIRONMENT, COMMAND_LINE = range(3)

BLANK = " \t\r\n"

MOST_FILE = 8 << 20  # characters
MOST_LIST, MOST_SCALAR = 1 << 17, 4096  # characters of one value; the first is the kernel's limit of an argument
MOST_PREFIXES = 60_000  # the kernel's table has 65,536 places, and own addresses need some
MOST_INTERFACES = 64  # ATTACHMENTS of bpf/maps.h

#: The variables of the program this one replaces: setting, how its value is written here, and what it must be.
ORIGIN = {
    "PW_IFDEV": ("interface", "{}", ""),
    "PW_PORTSCAN_TIME_THRESHOLD": ("scan.window", "{}s", "a number of seconds, as in 60"),
    "PW_PORTSCAN_PORT_THRESHOLD": ("scan.ports", "{}", "a number of ports, as in 3"),
    "PW_PROMETHEUS_PORT": ("metrics.listen", "127.0.0.1:{}", "a port, as in 9773"),
    "PW_WHITELIST_SELF": ("allow.own", "{}", ""),
}

#: What no value holds, but many a file.
MISTAKES = (
    (re.compile(r"(^|\s)[#;]"), "has a comment behind it", "a comment stands on a line of its own"),
    (re.compile(r"^[\"']"), "stands in quotes", "write the value without quotes"),
    (re.compile(r"\\$"), "ends in a backslash", "leave it out"),
)

SECTIONS = tuple(dict.fromkeys(row.section for row in ROWS))


class Fault(NamedTuple):
    """One thing wrong, where it stands, and what to do."""

    path: str  #: of the file; else the variable or the flag
    line: int  #: from 1; 0 where there are none
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else self.path
        return f"{where}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(Exception):
    """Settings that cannot be used: all faults, in the order of reading."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = list(faults)


class Said(NamedTuple):
    """One value that someone gave a setting."""

    key: str
    text: str
    level: int  #: FILE, ENVIRONMENT or COMMAND_LINE
    path: str
    line: int = 0

    def fault(self, message: str, hint: str = "") -> Fault:
        return Fault(self.path, self.line, f"{self.key}: {message}" if self.level == FILE else message, hint)


def load(
    files: Iterable[tuple[str, Union[str, bytes]]], environ: Mapping[str, str], flags: Mapping[str, Sequence[str]]
) -> Settings:
    """The settings that all of these give together; ``flags`` goes by key. Raises ConfigError with all faults."""
    faults: list[Fault] = []
    order: dict[str, int] = {}
    said: list[Said] = []
    for path, content in files:
        order[path] = len(order)
        said += _from_file(path, content, faults)
    said += _from_environment(environ, faults)
    said += _from_flags(flags, faults)
    settings = Settings(**{row.field: _value(row, each, faults) for row, each in _by_row(said)})
    faults += _faults_together(settings, said)
    if faults:
        raise ConfigError(sorted(faults, key=lambda fault: (order.get(fault.path, len(order)), fault.line)))
    return settings


def _by_row(said: Iterable[Said]) -> Iterator[tuple[Row, list[Said]]]:
    by_key: dict[str, list[Said]] = {row.key: [] for row in ROWS}
    for each in said:
        by_key[each.key].append(each)
    return zip(ROWS, by_key.values())


def _from_file(path: str, content: Union[str, bytes], faults: list[Fault]) -> Iterator[Said]:
    section: Optional[str] = ""  # none yet; None: one that is not known, and already a fault
    for line, text in _lines(_decode(path, content, faults)):
        if text.startswith("["):
            section = text[1:-1].strip(BLANK) if text.endswith("]") else text
            if section not in SECTIONS:
                hint = _did_you_mean(section, SECTIONS) or f"one of {', '.join(SECTIONS)}"
                faults.append(Fault(path, line, f"{shown(section)} is not a section", hint))
                section = None
        elif section is not None:
            name, equals, value = (part.strip(BLANK) for part in text.partition("="))
            key = name if section == "packetwatch" else f"{section}.{name}"
            if not equals:
                faults.append(Fault(path, line, f"{shown(text)} is no setting", "name = value"))
            elif not section:
                faults.append(Fault(path, line, f"{shown(name)} stands before any section", "begin with [packetwatch]"))
            elif key not in BY_KEY or BY_KEY[key].name != name:
                message = f"{shown(name)} is not a setting of [{section}]"
                faults.append(Fault(path, line, message, _elsewhere(key, name)))
            else:
                yield Said(key, value, FILE, path, line)


def _decode(path: str, content: Union[str, bytes], faults: list[Fault]) -> str:
    if len(content) > MOST_FILE:
        faults.append(Fault(path, 0, f"{len(content)} bytes are too many for a settings file", f"at most {MOST_FILE}"))
        return ""
    if isinstance(content, str):
        return content[1:] if content.startswith("\ufeff") else content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte, line = error.object[error.start], error.object.count(b"\n", 0, error.start) + 1
        faults.append(Fault(path, line, f"byte 0x{byte:02x} is not UTF-8", "save the file as UTF-8"))
        return ""


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that say something, with their numbers; what ends in a backslash goes on in the next one."""
    begun, start = "", 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(BLANK)
        if line.startswith(("#", ";")):
            continue
        start = start if begun else number
        begun += line
        if line.endswith("\\"):
            begun = begun[:-1] + " "
            continue
        if begun.strip(BLANK):
            yield start, begun.strip(BLANK)
        begun = ""
    if begun.strip(BLANK):
        yield start, begun.strip(BLANK)


def _elsewhere(key: str, name: str) -> str:
    """A hint for a setting that is misspelt or stands in the wrong section."""
    close = difflib.get_close_matches(key[:100], BY_KEY, 1)
    found = [row for row in ROWS if name in (row.key, row.name)] or [BY_KEY[each] for each in close]
    return f"did you mean {found[0].name} in [{found[0].section}]?" if found else ""


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word[:100], list(words), 1)
    return f"did you mean {close[0]}?" if close else ""


def _from_environment(environ: Mapping[str, str], faults: list[Fault]) -> Iterator[Said]:
    keys = {variable(key): key for key in BY_KEY}
    given = {name: text.strip(BLANK) for name, text in environ.items() if text.strip(BLANK)}
    for name, (key, form, must_be) in ORIGIN.items():
        if name in given and variable(key) not in given:
            if must_be and not re.fullmatch("[0-9]{1,15}", given[name]):
                faults.append(Fault(name, 0, f"{shown(given[name])} is not a plain number", must_be))
            else:
                yield Said(key, form.format(given[name]), ENVIRONMENT, name)
    for name, text in given.items():
        if name in keys:
            yield Said(keys[name], text, ENVIRONMENT, name)
        elif name.startswith("PACKETWATCH_"):
            faults.append(Fault(shown(name)[1:-1], 0, "no setting has this variable", _did_you_mean(name, keys)))


def _from_flags(flags: Mapping[str, Sequence[str]], faults: list[Fault]) -> Iterator[Said]:
    for key, values in flags.items():
        if key not in BY_KEY:
            faults.append(Fault(flag(key), 0, "no setting has this flag", _did_you_mean(flag(key), map(flag, BY_KEY))))
            continue
        for text in values:
            yield Said(key, text.strip(BLANK), COMMAND_LINE, flag(key))


def _value(row: Row, said: Sequence[Said], faults: list[Fault]) -> Any:
    """What all that was said of a setting makes. Every word is read, so that no fault hides behind a later one."""
    items: list[Any] = []
    level = FILE
    for each in said:
        if not each.text or (each.level > level and not row.adds):
            items = []
        items += _items(row, each, faults)
        level = each.level
    try:
        return row.kind.join(items) if items else row.value
    except Bad as bad:
        faults.append(said[-1].fault(str(bad), bad.hint))
        return row.value


def _items(row: Row, said: Said, faults: list[Fault]) -> list[Any]:
    mistake = _mistake(row, said.text)
    if mistake:
        faults.append(said.fault(str(mistake), mistake.hint))
        return []
    items = []
    for word in re.findall(r"[^\s,]+", said.text) if row.kind.many else filter(None, [said.text]):
        try:
            items.append(row.kind.read(word))
        except Bad as bad:
            faults.append(said.fault(str(bad), bad.hint))
    return items


def _mistake(row: Row, text: str) -> Optional[Bad]:
    most = MOST_LIST if row.kind.many else MOST_SCALAR
    if len(text) > most:
        return Bad(f"{len(text)} characters are too many", f"at most {most}")
    unfit = [character for character in text if not character.isprintable() and character != "\t"]
    if unfit:
        return Bad(f"{shown(text)} has a character that cannot be printed, U+{ord(unfit[0]):04X}", "remove it")
    for pattern, message, hint in MISTAKES:
        if pattern.search(text):
            return Bad(f"{shown(text)} {message}", hint)
    return Bad(f"{shown(text)} names nothing", "") if row.kind.many and text and not text.strip(", \t") else None


def _faults_together(settings: Settings, said: Sequence[Said]) -> Iterator[Fault]:
    """Values that are right each alone and make no sense together; the last one said is to blame."""

    def blame(*keys: str) -> Said:
        return next(each for each in reversed(said) if each.key in keys)

    taken: dict[str, str] = {}
    for key in ("state", "pin", "socket", "log.file"):
        path = getattr(settings, parameter(key))
        if path and path in taken:
            message = f"{key} and {taken[path]} are both {shown(path)}"
            yield blame(key, taken[path]).fault(message, "give each its own path")
        taken.setdefault(path, key)
    prefixes = len(settings.allow) + len(settings.block)
    if prefixes > MOST_PREFIXES:
        message = f"allow and block hold {prefixes} prefixes"
        yield blame("allow", "block").fault(message, f"at most {MOST_PREFIXES} together; join neighbours")
    if len(settings.interface) > MOST_INTERFACES:
        yield blame("interface").fault(f"{len(settings.interface)} are too many", f"at most {MOST_INTERFACES}")
