# SPDX-License-Identifier: Apache-2.0
"""The one table of settings: names, types, defaults and help. Everything that lists settings is made from it.

Not for where values come from: config.py collects those, kinds.py reads them.
"""

from __future__ import annotations

import itertools
import textwrap
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from packetwatch.address import Prefix
from packetwatch.detection import Rule
from packetwatch.kinds import Kind, Listen, Ports, choice, duration, interfaces, listen, path, ports, prefixes
from packetwatch.kinds import rules, size, whole, yes_no

T = TypeVar("T")

SOCKET_BYTES = 107  # sun_path without its NUL


@dataclass(frozen=True)
class Row:
    """One setting, and its name everywhere."""

    key: str  #: section.name; without a dot it lives in the section [packetwatch]
    default: str  #: as one writes it
    kind: Kind[Any]
    help: str
    live: bool  #: a reload suffices
    adds: bool  #: a list: what the environment and the command line say adds to the files

    @property
    def field(self) -> str:
        return parameter(self.key) + self.kind.suffix

    @property
    def section(self) -> str:
        return self.key.partition(".")[0] if "." in self.key else "packetwatch"

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def flag(self) -> str:
        return flag(self.key)

    @property
    def variable(self) -> str:
        return variable(self.key)

    @property
    def type(self) -> str:
        return self.kind.text

    @property
    def value(self) -> Any:
        """The default."""
        if not self.default:
            return () if self.kind.many else ""
        items = self.default.split() if self.kind.many else [self.default]
        return self.kind.join([self.kind.read(item) for item in items])


def flag(key: str) -> str:
    """scan.ports -> --scan-ports"""
    return "--" + parameter(key).replace("_", "-")


def variable(key: str) -> str:
    """scan.ports -> PACKETWATCH_SCAN_PORTS"""
    return "PACKETWATCH_" + parameter(key).upper()


def parameter(key: str) -> str:
    """scan.ports -> scan_ports, as Puppet names it"""
    return key.replace(".", "_")


def _row(key: str, default: str, kind: Kind[T], help: str, live: bool = True, adds: bool = False) -> T:
    row = Row(key, default, kind, help, live, adds)
    value: T = field(default=row.value, metadata={"row": row})
    return value


@dataclass(frozen=True)
class Settings:
    """Every setting, checked. Durations are nanoseconds, sizes bytes."""

    interface: tuple[str, ...] = _row(
        "interface", "default-route", interfaces(),
        "Interfaces to watch. default-route stands for every interface that carries a default route.")
    mode: str = _row(
        "mode", "enforce", choice("enforce", "observe"),
        "enforce drops what comes from a blocked source; observe only says what it would drop.")
    allow: tuple[Prefix, ...] = _row(
        "allow", "", prefixes(),
        "Sources that are recorded and never judged or blocked.", adds=True)
    block: tuple[Prefix, ...] = _row(
        "block", "", prefixes(),
        "Sources that are always blocked. What is allowed as well is not blocked.", adds=True)
    open_ports: Ports = _row(
        "open_ports", "", ports(),
        "Ports that are open though no socket of this host listens, as behind DNAT or IPVS.", adds=True)
    socket: str = _row(
        "socket", "/run/packetwatch/packetwatch.sock", path(SOCKET_BYTES),
        "Unix socket for status, block, allow and the other commands.", live=False)
    state: str = _row(
        "state", "/var/lib/packetwatch", path(),
        "Directory that keeps blocks, manual entries and the last good settings.", live=False)
    pin: str = _row(
        "pin", "", path(),
        "Directory below a bpf file system where maps and links are pinned; empty pins nothing.", live=False)
    allow_own: bool = _row(
        "allow.own", "yes", yes_no(), "Never block the host's own addresses.")
    allow_gateways: bool = _row(
        "allow.gateways", "yes", yes_no(), "Never block the default gateways.")
    allow_sessions: bool = _row(
        "allow.sessions", "yes", yes_no(), "Never block the remote hosts of logged-in sessions.")
    allow_resolvers: bool = _row(
        "allow.resolvers", "yes", yes_no(), "Never block the name servers of this host.")
    allow_time_servers: bool = _row(
        "allow.time_servers", "yes", yes_no(),
        "Never block the time servers that systemd-timesyncd, chrony or ntpd are set to use.")
    allow_puppet_server: bool = _row(
        "allow.puppet_server", "yes", yes_no(), "Never block the Puppet server that puppet.conf names.")
    scan_ports: int = _row(
        "scan.ports", "3", whole(2, 64), "So many distinct ports within the window make a scan.")
    scan_window_ns: int = _row(
        "scan.window", "60s", duration("1s", "24h"), "Time within which the ports of a scan are reached.")
    scan_count: str = _row(
        "scan.count", "all", choice("all", "closed"),
        "Which ports count for a scan, and for rules over all ports: every one, or closed ones alone.")
    block_rules: tuple[Rule, ...] = _row(
        "block.rules", "scan:closed 5:closed:10m 10:closed:24h", rules(8),
        "Who reaches so many distinct ports within the window is blocked by that rule, for longer each time; "
        "scan:closed is a scan of closed ports. A scan that no rule matches is blocked for a minute at most.")
    block_honeypot_ports: Ports = _row(
        "block.honeypot_ports", "", ports(),
        "Ports that nobody has a reason to reach: who does is blocked at once.", adds=True)
    block_first_ns: int = _row(
        "block.first", "60s", duration("1s", "3650d", forever=True),
        "How long a source is blocked the first time; each time after that, if it is about other ports, doubles it, "
        "up to block.duration.")
    block_duration_ns: int = _row(
        "block.duration", "1h", duration("1s", "3650d", forever=True), "How long a source is blocked at most.")
    block_forget_ns: int = _row(
        "block.forget", "24h", duration("1s", "3650d"),
        "After so long without a block a source counts as new again.")
    block_proof: str = _row(
        "block.proof", "challenge", choice("challenge", "none"),
        "What a source must do before a block of it lasts longer than a minute: complete a handshake with us where it "
        "had tried a closed port, so that nobody has forged it (challenge), or nothing.")
    block_ipv6_prefix: int = _row(
        "block.ipv6_prefix", "64", whole(48, 128),
        "An IPv6 source whose blocks grow is blocked with its network of so many bits, unless somebody in it is "
        "allowed. 128: always alone.")
    block_storm: int = _row(
        "block.storm", "100", whole(0, 1_000_000),
        "New blocks in a minute above which no more are made until it is over, but of sources that have answered a "
        "challenge: so many are likely forged. "
        "0 is no limit.")
    xdp_mode: str = _row(
        "xdp.mode", "auto", choice("auto", "native", "generic"),
        "Where the program sits: in the driver (native), behind it (generic), or what works (auto).")
    log_format: str = _row(
        "log.format", "auto", choice("auto", "text", "json", "journal"),
        "auto is text on a terminal, journal under systemd and json elsewhere.")
    log_file: str = _row(
        "log.file", "", path(), "File that gets every record as a JSON line as well; empty writes none.")
    log_connections: str = _row(
        "log.connections", "each", choice("each", "summary", "off"),
        "Connections one by one, as sums, or not at all. Scans, blocks and losses are always written.")
    log_anonymize: bool = _row(
        "log.anonymize", "no", yes_no(), "Cut addresses in records of connections to /24 and /48.")
    log_fold_rate: int = _row(
        "log.fold_rate", "100", whole(0, 10_000_000),
        "Connections a second and interface that are recorded singly for long; the rest is summed. 0 never sums.")
    log_fold_burst: int = _row(
        "log.fold_burst", "10000", whole(1, 10_000_000), "Connections above that rate that are still recorded singly.")
    log_daily_size: int = _row(
        "log.daily_size", "1G", size("64K", "1024T", zero="no limit"),
        "What the log may write in a day before it writes only sums of connections.")
    metrics_listen: tuple[Listen, ...] = _row(
        "metrics.listen", "127.0.0.1:9773", listen(),
        "Where Prometheus finds the metrics; an address may come after the start.")
    table_trackers: int = _row(
        "table.trackers", "65536", whole(4096, 1_048_576, power_of_two=True),
        "Sources whose ports are remembered; the one longest silent is replaced.", live=False)
    table_blocks: int = _row(
        "table.blocks", "65536", whole(1024, 1_048_576),
        "Sources that can be blocked at a time; beyond that a block is refused and counted.", live=False)
    ring_size: int = _row(
        "ring.size", "4M", size("64K", "64M", power_of_two=True),
        "Buffer between the kernel and this process.", live=False)
    loader_headers: str = _row(
        "loader.headers", "auto", choice("auto", "uapi", "kernel"),
        "Headers to compile with: of the running kernel, those of user space (uapi), or what is there (auto).",
        live=False)


#: In the order of the file: sections stand together.
ROWS: tuple[Row, ...] = tuple(each.metadata["row"] for each in fields(Settings))
BY_KEY = {row.key: row for row in ROWS}

HEADER = """\
# Settings of Packetwatch, all at their defaults. Files packetwatch.conf.d/*.conf are read after
# this one, then the environment (PACKETWATCH_SCAN_PORTS), then the command line (--scan-ports).
# A later value wins. The values of a list add up over lines and files; those of allow, block,
# open_ports and honeypot_ports also with the environment and the command line, where other lists
# replace what the files say. An empty value takes back all that was said before. Comments stand
# on lines of their own.
# "packetwatch check" finds mistakes, "packetwatch reload" applies changes without a gap.
"""


def describe() -> tuple[Row, ...]:
    """The rows for a man page, --help, completion or a command line parser, in order."""
    return ROWS


def sample() -> str:
    """A settings file that names every setting and changes none: etc/packetwatch.conf."""
    sections = itertools.groupby(ROWS, key=lambda row: row.section)
    return HEADER + "".join(f"\n[{name}]\n" + "\n".join(map(_sample_row, rows)) for name, rows in sections)


def _sample_row(row: Row) -> str:
    about = f"{row.type[0].upper()}{row.type[1:]}.{'' if row.live else ' A change needs a restart.'}"
    wrapper = textwrap.TextWrapper(98, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join([*wrapper.wrap(f"{row.help} {about}"), f"#{row.name} = {row.default}".rstrip()]) + "\n"


def read(key: str, text: str) -> Any:
    """One item written as for this setting, for commands that take the same: an end of a block, a prefix.

    Raises kinds.Bad, a ValueError that has a ``hint``.
    """
    return BY_KEY[key].kind.read(text)


def texts(settings: Settings) -> dict[str, str]:
    """Every key with its value as one writes it."""
    return {row.key: row.kind.write(getattr(settings, row.field)) for row in ROWS}


def dump(settings: Settings) -> str:
    """A settings file that loads as exactly these settings."""
    written = texts(settings)
    parts = []
    for section, rows in itertools.groupby(ROWS, key=lambda row: row.section):
        parts.append(f"[{section}]\n")
        parts.extend(f"{row.name} = {written[row.key]}".rstrip() + "\n" for row in rows)
    return "".join(parts)


def changed(old: Settings, new: Settings) -> list[str]:
    """The keys whose values differ."""
    return [row.key for row in ROWS if getattr(old, row.field) != getattr(new, row.field)]


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """Those of the changed keys that a reload cannot put in force."""
    return [key for key in changed(old, new) if not BY_KEY[key].live]
