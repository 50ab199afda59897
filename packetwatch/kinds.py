# SPDX-License-Identifier: Apache-2.0
"""The types of settings: how a value is read from text, what is wrong with it, and how it is written back.

Which settings there are is in settings.py.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Optional, TypeVar

from packetwatch import detection
from packetwatch.address import Prefix, parse, parse_prefix, prefix_text, shown, text as address_text

T = TypeVar("T")

SECOND_NS = 1_000_000_000
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
DURATION = re.compile(r"\s*".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in UNITS))
SIZE_UNITS = ("", "K", "M", "G", "T")
TRUE, FALSE = ("yes", "true", "on", "1", "y", "t"), ("no", "false", "off", "0", "n", "f")
INTERFACE_BYTES = 15  # IFNAMSIZ without its NUL
MOST_LISTEN = 16
ANY_PORT = "the port is a number from 1 to 65535, as in 127.0.0.1:9773"


class Bad(ValueError):
    """A value that cannot be taken: a sentence that goes on after the setting's name, and the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Kind(Generic[T]):
    """A type of setting: how one item is read, how items become the value, how the value is written."""

    text: str  #: for people: type, unit and range
    read: Callable[[str], Any]  #: one item; raises Bad
    join: Callable[[Sequence[Any]], T]  #: all items said, at least one; raises Bad
    write: Callable[[T], str]
    many: bool = False  #: items are separated by blanks or commas and add up
    words: tuple[str, ...] = ()  #: for completion
    suffix: str = ""  #: of the field's name


def _last(items: Sequence[T]) -> T:
    return items[-1]


def _distinct(items: Sequence[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))


def choice(*words: str) -> Kind[str]:
    def read(text: str) -> str:
        if text not in words:
            raise Bad(f"{shown(text)} is not known", f"one of {', '.join(words)}")
        return text

    return Kind(f"one of {', '.join(words)}", read, _last, str, words=words)


def yes_no() -> Kind[bool]:
    def read(text: str) -> bool:
        if text.lower() not in TRUE + FALSE:
            raise Bad(f"{shown(text)} is neither yes nor no", "yes or no")
        return text.lower() in TRUE

    return Kind("yes or no", read, _last, lambda value: "yes" if value else "no", words=("yes", "no"))


def whole(least: int, most: int, power_of_two: bool = False) -> Kind[int]:
    about = f"{'power of two' if power_of_two else 'whole number'}, {least} to {most}"

    def read(text: str) -> int:
        value = _number(text)
        if value is None:
            raise Bad(f"{shown(text)} is not a whole number", about)
        _check_range(text, value, (least, most), about)
        if power_of_two:
            _check_power_of_two(text, value, str)
        return value

    return Kind(about, read, _last, str)


def _number(text: str) -> Optional[int]:
    """Digits as a number, out of every range if they are very many; None if it is something else."""
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) <= 18 else 10**18


def _check_range(text: str, value: int, limits: tuple[int, int], about: str) -> None:
    if not limits[0] <= value <= limits[1]:
        raise Bad(f"{shown(text)} is out of range", about)


def _check_power_of_two(text: str, value: int, write: Callable[[int], str]) -> None:
    if value & (value - 1):
        below = 1 << value.bit_length() - 1
        raise Bad(f"{shown(text)} is not a power of two", f"{write(below)} or {write(2 * below)}?")


def duration(least: str, most: str, forever: bool = False) -> Kind[int]:
    """In nanoseconds; ``forever`` is 0."""
    about = f"duration, {least} to {most}{' or forever' if forever else ''}"

    def read(text: str) -> int:
        if forever and text == "forever":
            return 0
        if _number(text) is not None:
            raise Bad(f"{shown(text)} has no unit", f"{text}s?" if text.strip("0") and len(text) < 10 else about)
        seconds = _seconds(text)
        _check_range(text, seconds, (_seconds(least), _seconds(most)), about)
        return seconds * SECOND_NS

    return Kind(about, read, _last, duration_text, words=("forever",) if forever else (), suffix="_ns")


def _seconds(text: str) -> int:
    found = DURATION.fullmatch(text)
    if not text or not found:
        raise Bad(f"{shown(text)} is not a duration", "numbers with d, h, m or s, as in 60s, 1h or 2h30m")
    return sum(int(number or 0) * unit for number, unit in zip(found.groups(), UNITS.values()))


def duration_text(ns: int) -> str:
    """``1h``, ``2h30m``, ``1m30s``; 0 is ``forever``, and below a second are ``500ms``."""
    if not ns:
        return "forever"
    if ns < SECOND_NS:
        return f"{ns / 1e6:g}ms"
    rest, words = ns // SECOND_NS, ""
    for unit, seconds in UNITS.items():
        count, rest = divmod(rest, seconds)
        words += f"{count}{unit}" if count else ""
    return words


def size(least: str, most: str, power_of_two: bool = False, zero: str = "") -> Kind[int]:
    """In bytes; ``zero`` says what 0 means, where it is allowed."""
    about = f"{'power of two in bytes' if power_of_two else 'size in bytes'}, {least} to {most}"
    about += f", or 0 for {zero}" if zero else ""

    def read(text: str) -> int:
        value = _bytes(text)
        if zero and value == 0:
            return 0
        _check_range(text, value, (_bytes(least), _bytes(most)), about)
        if power_of_two:
            _check_power_of_two(text, value, size_text)
        return value

    return Kind(about, read, _last, size_text)


def _bytes(text: str) -> int:
    number, unit = (text[:-1], text[-1]) if text[-1:] in SIZE_UNITS[1:] else (text, "")
    count = _number(number)
    if count is None:
        raise Bad(f"{shown(text)} is not a size", "a number with K, M, G or T, as in 64K, 4M or 1G")
    return count << 10 * SIZE_UNITS.index(unit)


def size_text(value: int) -> str:
    """``64K``, ``4M``, ``1G``: in the largest unit that divides it."""
    steps = 0
    while value and value % 1024 == 0 and steps < len(SIZE_UNITS) - 1:
        value, steps = value // 1024, steps + 1
    return f"{value}{SIZE_UNITS[steps]}"


def path(most: int = 4095) -> Kind[str]:
    def read(text: str) -> str:
        if not text.startswith("/"):
            raise Bad(f"{shown(text)} is not an absolute path", "a path that begins with /")
        if len(text.encode(errors="surrogateescape")) > most:
            raise Bad(f"{shown(text)} is too long", f"a path of at most {most} bytes")
        return posixpath.normpath("/" + text.lstrip("/"))

    return Kind("absolute path", read, _last, str)


def prefixes() -> Kind[tuple[Prefix, ...]]:
    def read(text: str) -> Prefix:
        try:
            return parse_prefix(text)
        except ValueError as error:
            example = "as in 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
            raise Bad(str(error), example if str(error).endswith("address") else "") from None

    about = "list of ADDRESS or ADDRESS/LENGTH"
    return Kind(about, read, _distinct, lambda value: " ".join(map(prefix_text, value)), many=True)


Ports = tuple[tuple[int, int], ...]  #: ranges, first and last


def ports() -> Kind[Ports]:
    def read(text: str) -> tuple[int, int]:
        first, dash, last = text.partition("-")
        pair = _number(first), _number(last if dash else first)
        if pair[0] is None or pair[1] is None or not 0 < pair[0] <= pair[1] <= 65535:
            raise Bad(f"{shown(text)} is not a port", "a number from 1 to 65535 or a range, as in 8000-8100")
        return pair[0], pair[1]

    def write(value: Ports) -> str:
        return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in value)

    return Kind("list of PORT or FIRST-LAST", read, _distinct, write, many=True)


def spread(value: Ports) -> Iterator[int]:
    """Every port of the ranges."""
    for first, last in value:
        yield from range(first, last + 1)


def rules(most: int) -> Kind[tuple[detection.Rule, ...]]:
    def join(items: Sequence[Optional[detection.Rule]]) -> tuple[detection.Rule, ...]:
        given = _distinct([rule for rule in items if rule is not None])
        if given and None in items:
            raise Bad("off stands beside a rule", "either off or rules")
        if len(given) > most:
            raise Bad(f"{len(given)} rules are too many", f"at most {most}")
        return given

    about = f"list of scan:closed, PORTS:closed:WINDOW or PORTS:all:WINDOW, at most {most}, or off"
    return Kind(about, _read_rule, join, lambda value: " ".join(map(rule_text, value)) or "off", True, ("off",))


def _read_rule(text: str) -> Optional[detection.Rule]:
    """None is off."""
    if text == "off":
        return None
    if text == "scan:closed":
        return detection.Rule(0, True, 0)
    example = "as in 5:closed:10m, 20:all:60s or scan:closed"
    count, counted, window = (*text.split(":"), "", "")[:3]
    if text.count(":") != 2 or counted not in ("closed", "all"):
        raise Bad(f"{shown(text)} is not a rule", example)
    most = detection.SUSPECT_SLOTS if counted == "closed" else 64
    ports, window_ns = _number(count), duration("1s", "7d").read(window)
    if ports is None or not 1 <= ports <= most:
        raise Bad(f"{shown(text)} counts too few or too many ports", f"1 to {most} {counted} ports, {example}")
    return detection.Rule(ports, counted == "closed", window_ns)


def rule_text(rule: detection.Rule) -> str:
    """5:closed:10m"""
    if not rule.ports:
        return "scan:closed"
    return f"{rule.ports}:{'closed' if rule.closed else 'all'}:{duration_text(rule.window_ns)}"


def interfaces() -> Kind[tuple[str, ...]]:
    def read(text: str) -> str:
        if text in (".", "..") or re.search("[/:]", text):
            raise Bad(f"{shown(text)} is not the name of an interface", "as in eth0, enp* or default-route")
        if len(text.encode()) > (64 if re.search(r"[*?[]", text) else INTERFACE_BYTES):
            raise Bad(f"{shown(text)} is too long for an interface", f"at most {INTERFACE_BYTES} bytes, or a pattern")
        return text

    about = "list of names, patterns (* ? []) or default-route"
    return Kind(about, read, _distinct, " ".join, many=True, words=("default-route",))


Listen = tuple[str, int]  #: address as text ("" is every address) and port


def listen() -> Kind[tuple[Listen, ...]]:
    about = "list of ADDRESS:PORT, :PORT for every address, or off"
    return Kind(about, _read_listen, _join_listen, _write_listen, many=True, words=("off",))


def _read_listen(text: str) -> Listen:
    if text == "off":
        return "off", 0
    host, colon, port = text.rpartition(":")
    if not colon:
        one_number = _number(text) is not None and len(text) < 6
        raise Bad(f"{shown(text)} lacks an address", f"127.0.0.1:{text}?" if one_number else ANY_PORT)
    if not 1 <= (_number(port) or 0) <= 65535:
        raise Bad(f"{shown(text)} lacks a port", ANY_PORT)
    bare = host[1:-1] if re.fullmatch(r"\[.*:.*\]", host) else host
    if ":" in host and bare == host:
        raise Bad(f"{shown(text)} is ambiguous", "an IPv6 address stands in brackets, as in [::1]:9773")
    if bare == "localhost":
        bare = "127.0.0.1"
    try:
        return (address_text(parse(bare)) if bare else ""), int(port)
    except ValueError as error:
        raise Bad(str(error), "write an address, not a name, as in 127.0.0.1:9773 or [::1]:9773") from None


def _join_listen(items: Sequence[Listen]) -> tuple[Listen, ...]:
    if set(items) == {("off", 0)}:
        return ()
    if ("off", 0) in items:
        raise Bad("off stands beside an address", "either off or addresses")
    if len(items) > MOST_LISTEN:
        raise Bad(f"{len(items)} addresses are too many", f"at most {MOST_LISTEN}")
    for one, other in itertools.permutations(items, 2):
        if _takes_in(one, other):
            raise Bad(f"{_write_listen([one])} leaves no room for {_write_listen([other])}", "name each address once")
    return tuple(items)


def _takes_in(one: Listen, other: Listen) -> bool:
    wildcards = {"", "::" if ":" in other[0] else "0.0.0.0"}
    return one[1] == other[1] and (one[0] == other[0] or one[0] in wildcards)


def _write_listen(value: Sequence[Listen]) -> str:
    return " ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in value) or "off"
