# SPDX-License-Identifier: Apache-2.0
"""What is known of one source, and why it is, was or was not blocked: the answer to `packetwatch why`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Optional

from packetwatch import address, clock, detection, rules, thresholds
from packetwatch.address import BITS, Prefix
from packetwatch.event import Notice
from packetwatch.kernel import Client, Reached, Track
from packetwatch.kinds import duration_text, rule_text
from packetwatch.resident import Resident
from packetwatch.sinks.records import fields


def why(resident: Resident, source: bytes) -> dict[str, Any]:
    """Times are wall time; `evidence` is none where nothing is known, else seen, proven or established."""
    offset = clock.wall_offset_ns()
    track = resident.kernel.track(source)
    history = [fields(notice, offset) for notice in _history(resident, source)]
    allowed, blocks = _allowed(resident, source), list(_blocks(resident, source, offset))
    offences = _offences(resident, source, offset)
    client = resident.kernel.client(source)
    known = bool(track.ports or track.met or history or blocks or offences)
    return {
        "address": address.text(source),
        "verdict": _verdict(resident, allowed, blocks),
        "mode": resident.mode,
        "evidence": _evidence(client, offences, known),
        "client": _client(client, offset) if client else None,
        "allowed_by": allowed,
        "blocked_by": blocks,
        "ports": [_port(each, offset) for each in _merged(track)],
        "rules": list(_progress(resident, track)),
        "offences": offences,
        "history": history,
    }


def _evidence(client: Optional[Client], offences: Optional[dict[str, Any]], known: bool) -> str:
    if client:
        return "established"
    if offences and offences["proven"]:
        return "proven"
    return "seen" if known else "none"


def _history(resident: Resident, source: bytes) -> list[Notice]:
    """Of the source, and of its network as a whole."""
    prefixes = dict.fromkeys((Prefix(source, BITS), resident.kernel.network_of(source)))
    found = [each for prefix in prefixes for each in resident.drain.history.of(address.prefix_text(prefix))]
    return sorted(found, key=lambda each: each.boot_ns)


def _verdict(resident: Resident, allowed: list[dict[str, str]], blocks: list[dict[str, Any]]) -> str:
    beaten = allowed and not any(block["beats_allow"] for block in blocks)
    if beaten:
        return "allowed"
    if not blocks:
        return "allowed" if allowed else "not blocked"
    return "would be blocked" if resident.mode == "observe" else "blocked"


def _allowed(resident: Resident, source: bytes) -> list[dict[str, str]]:
    found = rules.covering(resident.lists.allow_entries(), Prefix(source, BITS))
    return [{"prefix": address.prefix_text(entry.prefix), "reason": entry.reason} for entry in found]


def _blocks(resident: Resident, source: bytes, offset: int) -> Iterator[dict[str, Any]]:
    now = clock.boot_ns()
    block = resident.kernel.block_of(source, now)
    if block is not None:
        name = address.prefix_text(block.prefix)
        last = resident.drain.history.block(name)
        yield {
            "prefix": name,
            "reason": last.reason if last else "port scan",
            "rule": last.rule if last else None,
            "since": clock.rfc3339(block.since_ns + offset),
            "until": clock.rfc3339(block.until_ns + offset) if block.until_ns else "forever",
            "dropped": block.dropped,
            "beats_allow": False,
        }
    for entry in rules.covering(resident.lists.block_entries(), Prefix(source, BITS)):
        manual = resident.lists.manual_blocks.get(entry.prefix)
        yield {
            "prefix": address.prefix_text(entry.prefix),
            "reason": manual.reason if manual and manual.reason else entry.reason,
            "until": clock.rfc3339(entry.until_ns + offset) if entry.until_ns else "forever",
            "dropped": resident.kernel.sources.dropped(entry.prefix),
            "beats_allow": entry.forced,
        }


def _merged(track: Track) -> list[Reached]:
    """Each port once, as it was last reached, the latest first."""
    last: dict[int, Reached] = {}
    for each in sorted([*track.ports, *track.met], key=lambda each: each.boot_ns):
        last.pop(each.port, None)
        last[each.port] = each
    return list(last.values())[::-1]


def _port(each: Reached, offset: int) -> dict[str, Any]:
    state = "closed" if each.closed else "open"
    return {"port": each.port, "state": state, "last": clock.rfc3339(each.boot_ns + offset)}


def _client(client: Client, offset: int) -> dict[str, str]:
    """Of handshakes that this host has completed with it."""
    return {"since": clock.rfc3339(client.first_ns + offset), "last": clock.rfc3339(client.last_ns + offset)}


def _progress(resident: Resident, track: Track) -> Iterator[dict[str, Any]]:
    """How far each rule is, the scan's first. What has led to a block already counts no more."""
    s, now = resident.settings, clock.boot_ns()
    fresh = [each for each in track.ports if each.boot_ns > track.scan_ns]
    yield _row("scan", fresh, s.scan_ports, s.scan_window_ns, now)
    for rule in s.block_rules:
        ports, _, window_ns = rule.beside(s.scan_ports, s.scan_window_ns)
        yield _row(rule_text(rule), track.met if rule.closed else track.ports, ports, window_ns, now)


def _row(name: str, reached: Sequence[Reached], of: int, window_ns: int, now: int) -> dict[str, Any]:
    inside = sum(now - each.boot_ns < window_ns for each in reached)
    return {"rule": name, "reached": inside, "of": of, "window": duration_text(window_ns)}


def _offences(resident: Resident, source: bytes, offset: int) -> Optional[dict[str, Any]]:
    """Blocks by a rule, while they count for the length of the next one."""
    s, now = resident.settings, clock.boot_ns()
    offender = resident.kernel.offender(source)
    if offender is None or (offender.until_ns and now - offender.until_ns >= s.block_forget_ns):
        return None
    proven = bool(offender.proven_ns) or s.block_proof == "none"
    next_ns = detection.block_length(s.block_duration_ns, thresholds.first_block_ns(s), offender.doublings + 1, proven)
    end = clock.rfc3339(offender.until_ns + offset) if offender.until_ns else "forever"
    return {
        "count": offender.blocks,
        "last_until": end,
        "next_block": duration_text(next_ns),
        "proven": clock.rfc3339(offender.proven_ns + offset) if offender.proven_ns else None,
        "unanswered_challenges": offender.unanswered,
        "contested": bool(offender.contested),
    }
