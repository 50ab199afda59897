# SPDX-License-Identifier: Apache-2.0
"""Answers and records as text for a terminal: aligned, in local time, with nothing in it that could steer one.

Answers may come from another version: what is missing is left out. Not for parsing: that is `-o json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Optional

from packetwatch.event import Notice
from packetwatch.sinks.records import EPOCH, clean
from packetwatch.sinks.text import NEW, WOULD, host, local, sentence

Answer = Mapping[str, Any]


def as_json(value: Any) -> str:
    """Printable ASCII."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> str:
    """Columns as wide as their widest cell, numbers to the right; ``empty`` stands where there are no rows."""
    given = list(rows)
    if not given:
        return empty
    cells = [list(header), *([clean(_cell(value)) for value in row] for row in given)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = [all(isinstance(row[number], int) for row in given) for number in range(len(header))]
    return "\n".join(_aligned(row, widths, right) for row in cells)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = (cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right))
    return "  ".join(cells).rstrip()


# lists


def blocks(answer: Any) -> str:
    rows = [
        (each.get("prefix"), moment(each.get("until")), moment(each.get("since")), each.get("dropped"), _why(each))
        for each in _entries(answer)
    ]
    return table(("SOURCE", "UNTIL", "SINCE", "DROPPED", "REASON"), rows, "Nothing is blocked.")


def _why(entry: Answer) -> str:
    return str(entry.get("reason") or "") + (" (observed only)" if entry.get("would") else "")


def allowed(answer: Any) -> str:
    rows = [(each.get("prefix"), _why_allowed(each)) for each in _entries(answer)]
    return table(("SOURCE", "REASON"), rows, "Nothing is allowed.")


def _why_allowed(entry: Answer) -> str:
    return str(entry.get("reason") or "") + (f" ({entry['detail']})" if entry.get("detail") else "")


def why(answer: Answer) -> str:
    """The verdict first, then what it rests on."""
    lines = [f"{answer.get('address')}: {answer.get('verdict')}"]
    client = answer.get("client")
    if isinstance(client, Mapping):
        lines.append(f"established: has completed handshakes from {moment(client.get('since'))} till"
                     f" {moment(client.get('last'))}, so the address is its own")
    lines += [f"allowed: {each.get('prefix')} ({each.get('reason')})" for each in dicts(answer, "allowed_by")]
    lines += [f"blocked: {_block(each)}" for each in dicts(answer, "blocked_by")]
    lines += [f"port {each.get('port')}: {each.get('state')}, last {moment(each.get('last'))}" for each in
              dicts(answer, "ports")]
    lines += [f"rule {each.get('rule')}: {each.get('reached')} of {each.get('of')} ports within {each.get('window')}"
              for each in dicts(answer, "rules")]
    offences = answer.get("offences")
    if isinstance(offences, Mapping):
        lines += _offences(offences)
    lines += [record(json.dumps(each).encode()) + _by_rule(each) for each in dicts(answer, "history")]
    if answer.get("evidence") == "none":
        lines.append("no port that it has reached is remembered, and no block")
    return "\n".join(map(clean, lines))


def _offences(offences: Answer) -> list[str]:
    """How many, how long the next block may last, and whether the source has answered a challenge."""
    lines = [f"{_counted(offences.get('count'), 'offence')}, the last block until"
             f" {moment(offences.get('last_until'))}; the next one lasts {offences.get('next_block')} at most"]
    unanswered = offences.get("unanswered_challenges")
    if offences.get("proven"):
        lines.append(f"proven: has answered a challenge {moment(offences['proven'])}")
    elif offences.get("contested"):
        lines.append("contested: too many wrong answers to challenges")
    elif unanswered:
        lines.append(f"not proven: {_counted(unanswered, 'challenge')} without an answer")
    return lines


def _by_rule(each: Answer) -> str:
    ports = f" on ports {listed(each['ports'])}" if each.get("ports") and each.get("event_type") == "block" else ""
    return f", rule {each['rule']}{ports}" if each.get("rule") else ""


def _block(each: Answer) -> str:
    rule = f", rule {each['rule']}" if each.get("rule") else ""
    return f"{each.get('prefix')} until {moment(each.get('until'))} ({each.get('reason')}{rule})"


def dicts(answer: Answer, key: str) -> list[Answer]:
    """The rows of a part of an answer; none where it is missing or something else."""
    value = answer.get(key)
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _entries(answer: Any) -> list[Answer]:
    entries = answer.get("entries", ()) if isinstance(answer, Mapping) else answer
    return [each for each in entries if isinstance(each, Mapping)] if isinstance(entries, list) else []


# what was done


def blocked(answer: Answer) -> str:
    until = moment(answer.get("until"))
    done = f"Blocked {answer.get('prefix')} {'forever' if until == 'forever' else f'until {until}'}."
    return clean(done) + (f"\nNote: {clean(str(answer['note']))}." if answer.get("note") else "")


def unblocked(answer: Answer) -> str:
    return f"Removed {_counted(answer.get('removed'), 'block')}."


def allow_added(answer: Answer) -> str:
    return clean(f"Allowed {answer.get('prefix')}.")


def allow_removed(answer: Answer) -> str:
    return f"Removed {_counted(answer.get('removed'), 'entry of the allow list', 'entries of the allow list')}."


def mode(answer: Answer) -> str:
    forgotten, configured = answer.get("forgotten"), answer.get("configured")
    lines = [f"mode {answer.get('mode')}"]
    if configured not in (None, answer.get("mode")):
        lines.append(f"set by hand; the configuration says {configured}")
    if forgotten:
        lines.append(f"forgot {_counted(forgotten, 'source')} that observe would have blocked")
    return "\n".join(map(clean, lines))


def reloaded(answer: Answer) -> str:
    changed, restart = answer.get("changed"), answer.get("restart_needed")
    lines = [f"Reloaded: {listed(changed)} changed." if changed else "Reloaded: nothing has changed."]
    if restart:
        lines.append(f"A restart is needed for {listed(restart)}.")
    return "\n".join(map(clean, lines))


def confirmed(answer: Answer) -> str:
    return clean(f"{'Rolled back' if answer.get('reverted') else 'Confirmed'}: {answer.get('change')}.")


def waiting(answer: Any, command: str) -> list[str]:
    """What is to be said of the confirmation after what was done; ``command`` gives it."""
    if not isinstance(answer, Mapping):
        return []
    lines, pending = [], answer.get("pending")
    if isinstance(pending, Mapping):
        until = moment(pending.get("until"))
        lines.append(f"{pending.get('change')} is rolled back at {until} unless you confirm it: {command}")
    elif "pending" in answer:
        lines.append("There is nothing to confirm.")
    if answer.get("settled"):
        lines.append(f"{answer['settled']} waits for no confirmation any more.")
    return [clean(line) for line in lines]


def checked(answer: Answer) -> str:
    files = answer.get("files")
    return "\n".join(clean(f"{file}: no fault") for file in files) if files else "No settings files: all defaults."


def listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _counted(count: Any, noun: str, plural: str = "") -> str:
    return f"{count if isinstance(count, int) else 0} {noun if count == 1 else plural or noun + 's'}"


def moment(value: Any) -> str:
    """RFC 3339 as local time; other words as they are."""
    ns = _nanoseconds(value)
    return str(value if value is not None else "-") if ns is None else local(ns)


def _nanoseconds(value: Any) -> Optional[int]:
    try:
        return (datetime.fromisoformat(value.replace("Z", "+00:00")) - EPOCH) // timedelta(microseconds=1) * 1000
    except (ValueError, TypeError, AttributeError, OverflowError):
        return None


# records


def record(line: bytes) -> str:
    """A JSON record as the text log has it; what is none is shown as it is, made safe."""
    try:
        data = json.loads(line)
        ns = _nanoseconds(data["timestamp"])
        if ns is not None:
            return f"{local(ns)}: {_words(data, ns)}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return clean(line.decode(errors="replace").rstrip("\n"))


def _words(data: Answer, ns: int) -> str:
    if data["event_type"] == "connection":
        verb = WOULD if data.get("mode") == "observe" else NEW
        ends = [f"{host(data[side + '_ip'])}:{data[side + '_port']}" for side in ("src", "dest")]
        return clean(verb + " -> ".join(ends))
    until = data.get("until")
    return sentence(
        Notice(
            ns,
            data["event_type"],
            data.get("in_iface"),
            data.get("src_ip"),
            data.get("dest_ip"),
            data.get("dest_port"),
            data.get("ports"),
            data.get("count"),
            _nanoseconds(data.get("since")),
            0 if until == "forever" else _nanoseconds(until),
            data.get("reason"),
            data.get("level"),
            data.get("where"),
            data.get("mode"),
            data.get("message"),
            tcp_flags=data.get("tcp_flags"),
            sources=data.get("src_ips"),
        ),
        0,
    )
