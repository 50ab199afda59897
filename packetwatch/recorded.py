# SPDX-License-Identifier: Apache-2.0
"""Recorded connections as frames again, for the kernel half to judge anew. Pure.

A line is a record in JSON, or an entry of the journal as `journalctl -o json` writes it.
"""

from __future__ import annotations

import json
import struct
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, Optional

from packetwatch import address
from packetwatch.event import CLOSED, OPEN, TCP_FLAGS
from packetwatch.sieve import UNKNOWN

MOST_BYTES = 1 << 16  #: of a line

#: As of captures: what the kernel half can hold.
_LEAST_NS, _MOST_NS = 1 << 17, (1 << 63) - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_MACS = bytes.fromhex("020000000001020000000002")
_IPV4, _IPV6 = struct.Struct("!BBHHHBBH"), struct.Struct("!IHBB")
_TCP = struct.Struct("!2s2sIIBBHHH")
_SYN, _PROTOCOL, _TTL = 2, 6, 64
_JOURNAL = "PACKETWATCH_"  # before each field in the journal, where all values are text
_NUMBERS = ("src_port", "dest_port")
_STATES = {None: UNKNOWN, "open": OPEN, "closed": CLOSED}


class Syn(NamedTuple):
    """A connection, or a probe, that a line tells of."""

    ns: int  #: since 1970
    data: bytes  #: an Ethernet frame
    port_state: int  #: UNKNOWN, OPEN or CLOSED


def read(line: bytes) -> Optional[Syn]:
    """None for a record of another type. Raises ValueError for what is none, with the reason."""
    if len(line) > MOST_BYTES:
        raise ValueError("the line is too long")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if isinstance(record, dict) and _JOURNAL + "EVENT_TYPE" in record:
        record = _from_journal(record)
    if not isinstance(record, dict) or not isinstance(record.get("event_type"), str):
        raise ValueError("it is no record: there is no event_type")
    if record["event_type"] not in ("connection", "probe"):
        return None
    source, destination = _address(record, "src_ip"), _address(record, "dest_ip")
    if address.is_ipv4(source) != address.is_ipv4(destination):
        raise ValueError("src_ip and dest_ip are of two families")
    ports = _port(record, "src_port"), _port(record, "dest_port")
    state = record.get("port_state")
    flags = _SYN if record["event_type"] == "connection" else _flags(record)
    return Syn(_time(record), _frame(source, destination, *ports, flags), _STATES.get(_text(state), UNKNOWN))


def _from_journal(entry: dict[str, Any]) -> dict[str, Any]:
    record = {name[len(_JOURNAL) :].lower(): value for name, value in entry.items() if name.startswith(_JOURNAL)}
    for name in _NUMBERS:
        value = _text(record.get(name)) or ""
        if value.isascii() and value.isdigit() and len(value) <= 5:
            record[name] = int(value)
    return record


def _text(value: Any) -> Optional[str]:
    return value if isinstance(value, str) else None


def _address(record: dict[str, Any], name: str) -> bytes:
    text = record.get(name)
    if not isinstance(text, str):
        raise ValueError(f"{name} is missing")
    try:
        return address.parse(text)
    except ValueError:
        raise ValueError(f"{name} is no address") from None


def _port(record: dict[str, Any], name: str) -> bytes:
    value = record.get(name)
    if type(value) is not int or not 0 <= value <= 65535:
        raise ValueError(f"{name} is no port")
    return value.to_bytes(2, "big")


def _time(record: dict[str, Any]) -> int:
    text = record.get("timestamp")
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))  # type: ignore[union-attr]
        ns = (moment - _EPOCH) // _MICROSECOND * 1000
    except (ValueError, TypeError, AttributeError, OverflowError):
        raise ValueError("timestamp is no time of RFC 3339") from None
    if not _LEAST_NS <= ns <= _MOST_NS:
        raise ValueError("timestamp is of another age")
    return ns


def _flags(record: dict[str, Any]) -> int:
    """Of a probe; without any where a fragment had none."""
    names = (_text(record.get("tcp_flags")) or "").split(",")
    if any(name and name not in TCP_FLAGS for name in names):
        raise ValueError("tcp_flags are no flags of TCP")
    return sum(1 << TCP_FLAGS.index(name) for name in set(names) if name)


def _frame(source: bytes, destination: bytes, sport: bytes, dport: bytes, flags: int) -> bytes:
    tcp = _TCP.pack(sport, dport, 0, 0, 5 << 4, flags, 0, 0, 0)
    if address.is_ipv4(source):
        packet = _IPV4.pack(0x45, 0, 20 + len(tcp), 0, 0, _TTL, _PROTOCOL, 0) + source[12:] + destination[12:]
        return _MACS + b"\x08\x00" + packet + tcp
    return _MACS + b"\x86\xdd" + _IPV6.pack(6 << 28, len(tcp), _PROTOCOL, _TTL) + source + destination + tcp
