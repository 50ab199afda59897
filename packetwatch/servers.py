# SPDX-License-Identifier: Apache-2.0
"""The servers a host depends on, as its files name them: name servers, time servers, its Puppet server.

Pure: texts in, names and addresses out, bounded, whatever the texts hold. Which files there are is serverfiles.py's,
what a name stands for lookup.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Optional

from packetwatch import address, rules
from packetwatch.settings import Settings

NAMES_MAX = 32  #: names that are looked up
ADDRESSES_MAX = 64  #: addresses in all
ADDRESSES_OF_NAME_MAX = 16

_LINES_MAX, _LINE_MAX, _WORDS_MAX = 4096, 1024, 64
_NAME_MAX = 253
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?\Z")
_STUBS = ("127.0.0.53", "127.0.0.54")  # systemd-resolved(8)
_LOOPBACK4, _LOOPBACK6 = address.parse_prefix("127.0.0.0/8"), address.parse("::1")
#: Nobody's source address. Of IPv6's also what holds an IPv4 address in disguise; NAT64's prefix is none of these.
_NOBODY = tuple(map(address.parse_prefix, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/96", "ff00::/8")))

#: In the order in which there is room for them.
SWITCHES: Mapping[str, str] = {
    rules.RESOLVER: "allow_resolvers", rules.PUPPET_SERVER: "allow_puppet_server",
    rules.TIME_SERVER: "allow_time_servers",
}


class Named(NamedTuple):
    """A server as a file names it."""

    host: str  #: a name, or an address as text
    reason: str  #: of SWITCHES
    file: str


class Server(NamedTuple):
    """An address that is always allowed."""

    address: bytes
    reason: str
    detail: str  #: where it comes from: the name, the file


Answers = Mapping[str, tuple[bytes, ...]]  #: by name: its addresses


def wanted(settings: Settings) -> frozenset[str]:
    """The reasons that are switched on."""
    return frozenset(reason for reason, field in SWITCHES.items() if getattr(settings, field))


def setting(reason: str) -> str:
    """The key of the switch of a reason."""
    return SWITCHES[reason].replace("_", ".", 1)


# addresses


def accepted(text: str) -> Optional[bytes]:
    """The address of another host, 16 bytes; None for a name, and for loopback, multicast, unspecified and mapped."""
    try:
        found = address.parse(text.partition("%")[0])  # a link-local one has its scope
    except ValueError:
        return None
    disguised = ":" in text and address.is_ipv4(found)
    return None if disguised or any(prefix.covers(found) for prefix in _NOBODY) else found


def is_loopback(text: str) -> bool:
    """Whether it is this host itself that the address stands for."""
    try:
        found = address.parse(text)
    except ValueError:
        return False
    return _LOOPBACK4.covers(found) or found == _LOOPBACK6


def answer(texts: Iterable[str]) -> tuple[bytes, ...]:
    """What is taken of the addresses that a look-up gave."""
    found = {taken for taken in map(accepted, texts) if taken is not None}
    return tuple(sorted(found)[:ADDRESSES_OF_NAME_MAX])


def is_name(text: str) -> bool:
    """Whether it can be looked up: a host name and no address. Underscores are seen in the wild."""
    return len(text) <= _NAME_MAX and bool(_NAME.match(text)) and not text.replace(".", "").isdigit()


def names(named: Iterable[Named]) -> list[Named]:
    """Those that have to be looked up, one of each name and reason, at most NAMES_MAX names."""
    found: dict[tuple[str, str], Named] = {}
    for each in _by_room(named):
        if is_name(each.host):
            found.setdefault((each.host, each.reason), each)
    kept = set(list(dict.fromkeys(host for host, _ in found))[:NAMES_MAX])
    return [each for (host, _), each in found.items() if host in kept]


def servers(named: Iterable[Named], answers: Answers) -> frozenset[Server]:
    """What is to be allowed: addresses from the files, and those that names stand for; at most ADDRESSES_MAX."""
    given = list(named)
    found: list[Server] = []
    for each in _by_room(given):
        literal = accepted(each.host)
        if literal is not None:
            found.append(Server(literal, each.reason, each.file))
    for each in names(given):
        found += [Server(one, each.reason, f"{each.host}, {each.file}") for one in answers.get(each.host, ())]
    room = set(list(dict.fromkeys(server.address for server in found))[:ADDRESSES_MAX])
    return frozenset(server for server in found if server.address in room)


def _by_room(named: Iterable[Named]) -> list[Named]:
    order = list(SWITCHES)
    return sorted(named, key=lambda each: order.index(each.reason))


# what survives a restart


def encoded(answers: Answers) -> dict[str, Any]:
    return {"answers": {name: [address.text(each) for each in found] for name, found in answers.items()}}


def decoded(data: Any) -> dict[str, tuple[bytes, ...]]:
    """What `encoded` made; of anything else what is usable in it."""
    given = data.get("answers") if isinstance(data, dict) else None
    found: dict[str, tuple[bytes, ...]] = {}
    for name, texts in list(given.items())[:NAMES_MAX] if isinstance(given, dict) else ():
        taken = answer(text for text in texts if isinstance(text, str)) if isinstance(texts, list) else ()
        if is_name(name) and taken:
            found[name] = taken
    return found


# the files


def resolv_conf(text: str) -> list[str]:
    """The name servers; resolv.conf(5)."""
    lines = (line.split(None, 2) for line in _lines(text) if line[0] not in "#;")
    return [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]


def has_stub(hosts: Iterable[str]) -> bool:
    """Whether it is systemd-resolved that answers: the real name servers stand elsewhere."""
    return any(host in _STUBS for host in hosts)


def timesyncd_conf(files: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(host, file) of (file, text), the main file first, then the drop-ins; timesyncd.conf(5)."""
    lists: dict[str, list[tuple[str, str]]] = {"NTP": [], "FallbackNTP": []}
    for file, text in files:
        for section, key, value in _settings(text.replace("\\\n", " "), "#;"):
            if section == "Time" and key in lists:
                lists[key] = lists[key] + [(host, file) for host in value.split()[:_WORDS_MAX]] if value else []
    return lists["NTP"] + lists["FallbackNTP"]


def networkd_state(text: str) -> list[str]:
    """The time servers that systemd-networkd learned, as by DHCP; systemd-timesyncd reads the same file."""
    found: list[str] = []
    for _, key, value in _settings(text, "#"):
        if key == "NTP":
            found += value.strip("\"'").split()[:_WORDS_MAX]
    return found


class Clocks(NamedTuple):
    """What a file of chrony or ntpd says."""

    hosts: list[str]
    include: list[str]  #: paths; the last part may be a pattern
    confdir: list[str] = []  #: whose *.conf are read
    sourcedir: list[str] = []  #: whose *.sources are read


def chrony_conf(text: str) -> Clocks:
    """chrony.conf(5); a file *.sources has the same form."""
    found = Clocks([], [], [], [])
    for line in _lines(text):
        word, *rest = line.split()[:_WORDS_MAX]
        if word[0] in "!;#%" or not rest:
            continue
        if word.lower() in ("server", "pool", "peer"):
            found.hosts.append(rest[0])
        elif word.lower() == "include":
            found.include.append(rest[0])
        elif word.lower() in ("confdir", "sourcedir"):
            (found.confdir if word.lower() == "confdir" else found.sourcedir).extend(rest)
    return found


def ntp_conf(text: str) -> Clocks:
    """ntp.conf(5), of ntpd and of NTPsec."""
    found = Clocks([], [])
    for line in _lines(text):
        word, *rest = line.partition("#")[0].split()[:_WORDS_MAX] or [""]
        rest = [each.strip("\"'") for each in rest if not each.startswith("-")]  # -4 and -6 stand before the name
        if rest and word.lower() in ("server", "pool", "peer"):
            found.hosts.append(without_port(rest[0]))
        elif rest and word.lower() == "includefile":
            found.include.append(rest[0])
    return found


def puppet_conf(text: str) -> Optional[list[str]]:
    """The servers of the agent; None where the file names none, so that the default holds."""
    said = {(section or "main", key): value for section, key, value in _settings(text, "#")}
    hosts: list[str] = []
    for key in ("server_list", "server"):
        value = said.get(("agent", key)) or said.get(("main", key)) or ""
        hosts += [without_port(each.split()[0]) for each in value.split(",")[:_WORDS_MAX] if each.strip()]
    return hosts or None


def without_port(text: str) -> str:
    """``puppet.example.org:8140`` and ``[2001:db8::1]:8140`` without what follows the host."""
    text = text.strip("\"'")
    if text.startswith("["):
        host, closed, _ = text[1:].partition("]")
        return host if closed else ""
    return text.partition(":")[0] if text.count(":") == 1 else text


def _lines(text: str) -> Iterator[str]:
    """Those that hold something, without blanks around it."""
    for line in text.split("\n", _LINES_MAX)[:_LINES_MAX]:
        stripped = line[:_LINE_MAX].strip()
        if stripped:
            yield stripped


def _settings(text: str, comment: str) -> Iterator[tuple[str, str, str]]:
    """(section, key, value) of an INI file."""
    section = ""
    for line in _lines(text):
        if line[0] in comment:
            continue
        if line[0] == "[":
            section = line[1:].partition("]")[0].strip()
        elif "=" in line:
            key, _, value = line.partition("=")
            yield section, key.strip(), value.strip()
