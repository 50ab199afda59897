# SPDX-License-Identifier: Apache-2.0
"""What a record consists of, whatever form it is written in: one table of event types and their fields.

Pure: no I/O, no clock, UTC only. Not for the look of a record: text, jsonlines and journal see to that.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, Optional, Union

from packetwatch import address
from packetwatch.event import CLOSED, OPEN, Batch, Connection, Notice

SECOND = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
LATEST = 253_402_300_799 * SECOND  #: the last second of the year 9999, the end of RFC 3339
UNKNOWN = "unknown"  #: the interface of an attachment that is gone
CACHED = 8192  #: entries of each cache of texts; a flood of forged sources must not grow it
OCTETS = tuple(map(str, range(256)))

Record = Union[Connection, Notice]


class Kind(NamedTuple):
    """How one event type is recorded."""

    message_id: str  #: of the journal and its catalogue; never changes
    priority: int  #: of syslog: 6 informational, 5 notice, 4 warning
    text: str  #: template of the words after the time; text.words() fills it
    would: str  #: the same in observe mode
    fields: tuple[str, ...]  #: JSON names in the order written, after COMMON


COMMON = ("timestamp", "event_type", "in_iface")

_SEVERAL = ("sources", "src_ips")  #: where a record is of several sources, instead of src_ip
_SINCE = ("count", "since")
_SCAN = "Port scan detected: {plain} -> {destination} on ports {ports}{why}{named}"
_LOSS = "Lost {records}{where}{on}{since}{why}{detail}"
_SUMMARY = "Summary by {level}: {connections}{source}{target}{on}{since}"

KINDS = {
    "connection": Kind(
        "2fce8793bfe540789d10c186b2367243",
        6,
        "New connection: {source} -> {target}",
        "Would block connection: {source} -> {target}",
        ("src_ip", "src_port", "dest_ip", "dest_port", "proto", "port_state", "allowed", "mode"),
    ),
    "probe": Kind(
        "cc0a0c14942e42a1b3bc033f30a3a037",
        6,
        "Probe{flags}{source}{target}",
        "Would drop probe{flags}{source}{target}",
        ("src_ip", "src_port", "dest_ip", "dest_port", "proto", "tcp_flags", "port_state", "allowed", "mode"),
    ),
    "scan": Kind(
        "e5bfb9708c0c4709a4450848c4f31a4b",
        4,
        _SCAN,
        _SCAN,
        ("src_ip", *_SEVERAL, "dest_ip", "proto", "ports", "closed_ports", *_SINCE, "reason", "mode", "message"),
    ),
    "block": Kind(
        "fd736adac4f54969b5f1e557b7e6fef2",
        5,
        "Blocked {plain} {duration}{why}{named}",
        "Would block {plain} {duration}{why}{named}",
        ("src_ip", *_SEVERAL, "until", "reason", "rule", "evidence", "ports", *_SINCE, "mode", "message"),
    ),
    "storm": Kind(
        "98dbece0888a4b5194ae98468f1664bc",
        4,
        "Storm of blocks: {sources} not blocked{since}{detail}",
        "Storm of blocks: {sources} would not be blocked{since}{detail}",
        ("count", "since", "mode", "message"),
    ),
    "unblock": Kind(
        "459129879d844cdbbf59f452e38b3a25",
        5,
        "Unblocked {plain}{why}{named}",
        "Would unblock {plain}{why}{named}",
        ("src_ip", *_SEVERAL, *_SINCE, "reason", "mode", "message"),
    ),
    "drop": Kind(
        "a27ec6ee53a7475c899c0779da4598f9",
        6,
        "Dropped {connections}{source}{since}{why}{named}",
        "Would drop {connections}{source}{since}{why}{named}",
        ("src_ip", *_SEVERAL, "dest_ip", "dest_port", "proto", "count", "since", "reason", "mode"),
    ),
    "summary": Kind(
        "825760761c924955b93186dfb5da1018",
        6,
        _SUMMARY,
        _SUMMARY,
        ("level", "src_ip", "dest_ip", "dest_port", "proto", "count", "since", "mode"),
    ),
    "loss": Kind(
        "fbea87003b474b56a08397b48ad5b48c",
        4,
        _LOSS,
        _LOSS,
        ("where", "count", "since", "reason", "message"),
    ),
    "start": Kind(
        "5e1e8f25f1a1475d9c003a1489ec962b",
        6,
        "Started{in_mode}{on}{detail}; local times are {zone}",
        "Started{in_mode}{on}{detail}; local times are {zone}",
        ("reason", "mode", "message"),
    ),
    "stop": Kind(
        "40e6f9df409b40a6902336b21bf4bb55",
        6,
        "Stopped{on}{why}{detail}",
        "Stopped{on}{why}{detail}",
        ("reason", "mode", "message"),
    ),
}

#: The next step after a loss, by its place, where the notice brings none of its own.
ADVICE = {
    "ring": "raise ring.size or lower log.fold_rate",
    "alerts": "more scans at once than can be told; blocks are in force all the same",
    "stdout": "what reads standard output is too slow, full or gone",
    "journal": "journald does not keep up: see systemctl status systemd-journald",
    "file": "see the free space and the permissions of log.file",
}


class Names(dict[bytes, str]):
    """A bounded cache of texts by bytes: ``names[key]`` renders what is not there yet."""

    def __init__(self, render: Callable[[bytes], str]) -> None:
        super().__init__()
        self.render = render

    def __missing__(self, key: bytes) -> str:
        if len(self) >= CACHED:
            self.clear()
        value = self[key] = self.render(key)
        return value


class Form:
    """One look of records. What a line or datagram is, str or bytes, its writer knows."""

    @staticmethod
    def address(packed: bytes) -> str:
        return written(packed)

    def __init__(self, anonymize: bool = False) -> None:
        self.anonymize = anonymize
        self.sources = Names(self._cut_address if anonymize else self.address)
        self.destinations = Names(self.address)
        self.ports = Names(lambda port: str(int.from_bytes(port, "big")))

    def _cut_address(self, packed: bytes) -> str:
        return self.address(cut(packed))

    def connections(self, connections: Sequence[Connection], batch: Batch) -> list[Any]:
        """One line or datagram each; ``batch`` gives the clock and the names of the interfaces."""
        raise NotImplementedError

    def notice(self, notice: Notice, clock_ns: int) -> Any:
        raise NotImplementedError

    def chunks(self, batch: Batch, size: int = 2048) -> Iterator[tuple[list[Any], list[Record]]]:
        """The batch in time order, written and as records, in pieces that keep memory small in a flood."""
        lines: list[Any] = []
        records: list[Record] = []
        for run, notice in runs(batch):
            for start in range(0, len(run), size):
                part = run[start : start + size]
                lines += self.connections(part, batch)
                records += part
                if len(lines) >= size:
                    yield lines, records
                    lines, records = [], []
            if notice is not None:
                lines.append(self.notice(self._cut_summary(notice), batch.clock_ns))
                records.append(notice)
        if lines:
            yield lines, records

    def _cut_summary(self, notice: Notice) -> Notice:
        """A summary stands for connection records, so its source is cut like theirs."""
        if not self.anonymize or notice.event_type != "summary" or notice.source is None:
            return notice
        return notice._replace(source=cut_text(notice.source))


def runs(batch: Batch) -> Iterator[tuple[Sequence[Connection], Optional[Notice]]]:
    """Connections and the notice that follows them, in time order; at one time the connection comes first."""
    connections, start = batch.connections, 0
    for notice in batch.notices:
        after: Any = (notice.boot_ns + 1,)  # sorts before every connection of that time
        end = bisect.bisect_left(connections, after, start)
        yield connections[start:end], notice
        start = end
    yield connections[start:], None


def fields(notice: Notice, clock_ns: int) -> dict[str, Any]:
    """The fields of a notice by their JSON names, without those that do not apply."""
    kind = KINDS[notice.event_type]
    values = {
        "timestamp": rfc3339(notice.boot_ns + clock_ns),
        "event_type": notice.event_type,
        "in_iface": notice.in_iface,
        "src_ip": notice.source,
        "sources": len(notice.sources) if notice.sources else None,
        "src_ips": list(notice.sources) if notice.sources else None,
        "dest_ip": notice.destination,
        "dest_port": notice.dest_port,
        "proto": "TCP",
        "src_port": notice.src_port,
        "port_state": notice.port_state,
        "allowed": notice.allowed,
        "tcp_flags": notice.tcp_flags,
        "ports": None if notice.ports is None else list(notice.ports),
        "closed_ports": list(notice.closed_ports) if notice.closed_ports else None,
        "rule": notice.rule,
        "evidence": notice.evidence,
        "count": notice.count,
        "since": None if notice.since_ns is None else rfc3339(notice.since_ns + clock_ns),
        "until": until(notice.until_ns, clock_ns),
        "reason": notice.reason,
        "level": notice.level,
        "where": notice.where,
        "mode": notice.mode,
        "message": message(notice),
    }
    return {name: values[name] for name in COMMON + kind.fields if values.get(name) is not None}


def port_state(flags: int) -> Optional[str]:
    """open, closed, or None where it was not looked up."""
    return "open" if flags & OPEN else "closed" if flags & CLOSED else None


def message(notice: Notice) -> Optional[str]:
    """The free text of a notice; a loss without one gets the advice for its place."""
    return notice.message or (ADVICE.get(notice.where or "") if notice.event_type == "loss" else None)


def until(boot_ns: Optional[int], clock_ns: int) -> Optional[str]:
    if boot_ns is None:
        return None
    return rfc3339(boot_ns + clock_ns) if boot_ns else "forever"


def rfc3339(ns: int) -> str:
    """``2026-11-24T14:28:05.123456Z`` from nanoseconds since 1970; beyond the year 9999 its end."""
    moment = EPOCH + timedelta(microseconds=min(ns, LATEST) // 1000)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def written(packed: bytes) -> str:
    """address.text() without its cache, and for IPv4 in a third of the time: a flood of forged sources pays it."""
    if not packed.startswith(address.MAPPED):
        return address.text.__wrapped__(packed)
    return f"{OCTETS[packed[12]]}.{OCTETS[packed[13]]}.{OCTETS[packed[14]]}.{OCTETS[packed[15]]}"


def cut(packed: bytes) -> bytes:
    """The /24 of an IPv4, the /48 of an IPv6 address, as an address."""
    return address.mask(packed, address.IPV4_OFFSET + 24 if address.is_ipv4(packed) else 48)


def cut_text(source: str) -> Optional[str]:
    """cut() for text; what is no address is left out rather than told uncut."""
    try:
        return address.text(cut(address.parse(source)))
    except ValueError:
        return None


def clean(text: str) -> str:
    """Text that cannot steer a terminal nor start a line: what does not print is written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def quoted(value: Any) -> str:
    """JSON in printable ASCII on one line."""
    return json.dumps(value, separators=(",", ":"))
