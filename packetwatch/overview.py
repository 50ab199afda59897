# SPDX-License-Identifier: Apache-2.0
"""The answer to `packetwatch status` as text, at a glance: a table of subjects, each a label and its lines.

The answer may come from another version: what is missing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from packetwatch.kinds import SECOND_NS, duration_text
from packetwatch.show import Answer, dicts, listed, moment
from packetwatch.sinks.records import clean

TERMS = {
    "connections": "recorded", "connections_folded": "folded", "connections_dropped": "dropped",
    "connections_lost": "lost",
}  #: of the ledger, with their words here


def status(answer: Answer) -> str:
    """One labelled paragraph per subject, the most important first."""
    lines = []
    for label, tell in SUBJECTS:
        found = [clean(line) for line in tell(answer) if line]
        lines += [f"{label if number == 0 else '':<12} {line}" for number, line in enumerate(found)]
    return "\n".join(lines)


def _protection(answer: Answer) -> list[str]:
    mode = str(answer.get("mode", "unknown"))
    origin = f", {answer['mode_origin']}" if answer.get("mode_origin") else ""
    if answer.get("protecting"):
        return [f"working (mode {mode}{origin})"]
    watching = any(each.get("attached") for each in dicts(answer, "interfaces"))
    if mode == "observe" and watching:
        return [f"observing only, nothing is dropped (mode {mode}{origin})"]
    return [f"NOT WORKING (mode {mode}{origin})"]


def _problems(answer: Answer) -> list[str]:
    problems = answer.get("problems")
    return [str(each) for each in problems] if isinstance(problems, list) else []


def _unconfirmed(answer: Answer) -> list[str]:
    pending = answer.get("pending")
    if not isinstance(pending, Mapping):
        return []
    until = moment(pending.get("until"))
    return [f"{pending.get('change')}: rolled back at {until} unless confirmed ({pending.get('confirm')})"]


def _up(answer: Answer) -> list[str]:
    seconds = answer.get("uptime_s")
    parts = [duration_text(seconds * SECOND_NS) if isinstance(seconds, int) and seconds > 0 else "0s"]
    parts += [f"since {moment(answer['since'])}"] if answer.get("since") else []
    parts += [f"process {answer['pid']}"] if "pid" in answer else []
    parts += [f"version {answer['version']}"] if "version" in answer else []
    parts += ["took over from the process before"] if answer.get("adopted") else []
    return [", ".join(parts)]


def _interfaces(answer: Answer) -> list[str]:
    return [_interface(each) for each in dicts(answer, "interfaces")] or ["none is wanted"]


def _interface(each: Answer) -> str:
    name = each.get("name")
    if each.get("attached"):
        seat = each.get("seat")
        where = f", {seat}" if seat and seat != name else ""
        fault = f"; {each['fault']}" if each.get("fault") else ""
        return f"{name}: watched, XDP mode {each.get('mode')}{where}{fault}"
    fault = str(each.get("fault") or "")
    return f"{name}: NOT WATCHED" + (f" ({fault})" if fault else "")


def _connections(answer: Answer) -> list[str]:
    ledger = answer.get("ledger")
    return [_account(ledger)] if isinstance(ledger, Mapping) else []


def _account(terms: Answer) -> str:
    """SYNs and what became of them."""
    parts = " + ".join(f"{terms.get(name, 0)} {word}" for name, word in TERMS.items())
    return f"{terms.get('syns', 0)} = {parts}"


def _by_interface(answer: Answer) -> list[str]:
    accounts = answer.get("by_interface")
    if isinstance(accounts, Mapping):
        rows = [(str(name), terms) for name, terms in accounts.items() if isinstance(terms, Mapping)]
    else:
        rows = [(f"{e.get('interface')} {e.get('family', '')}".rstrip(), e) for e in dicts(answer, "by_interface")]
    return [f"{name}: {_account(terms)}" for name, terms in rows] if len(rows) > 1 else []


def _blocked(answer: Answer) -> list[str]:
    would = answer.get("would_drop")
    frozen = answer.get("blocks_frozen")
    return [
        str(answer.get("blocked_now", 0)) + (f" ({would} connections would have been dropped)" if would else ""),
        f"{frozen} blocks were not made, in a storm of them (block.storm)" if frozen else "",
    ]


def _challenges(answer: Answer) -> list[str]:
    sent = answer.get("challenges")
    return [f"{sent} sent, {answer.get('proven', 0)} sources have answered" if sent else ""]


def _lost(answer: Answer) -> list[str]:
    ledger = answer.get("ledger")
    lost = ledger.get("connections_lost", 0) if isinstance(ledger, Mapping) else 0
    advice = " (the loss records in the log say where and what helps)" if lost else ""
    return [f"{lost}{advice}"]


def _counts(key: str) -> Callable[[Answer], list[str]]:
    def tell(answer: Answer) -> list[str]:
        counts = answer.get(key)
        pairs = counts.items() if isinstance(counts, Mapping) else ()
        return [", ".join(f"{count} {name}" for name, count in pairs if count)]

    return tell


def _tables(answer: Answer) -> list[str]:
    tables = answer.get("tables")
    pairs = tables.items() if isinstance(tables, Mapping) else ()
    return [
        ", ".join(f"{name} {t.get('entries')} of {t.get('capacity')}" for name, t in pairs if isinstance(t, Mapping))
    ]


def _records(answer: Answer) -> list[str]:
    shape = f" as {answer['log_format']}" if answer.get("log_format") else ""
    return [_sink(each, shape if number == 0 else "") for number, each in enumerate(dicts(answer, "sinks"))]


def _sink(sink: Answer, shape: str) -> str:
    refused = f", {sink['refused']} refused" if sink.get("refused") else ""
    error = f" ({sink['last_error']})" if sink.get("last_error") else ""
    return f"{sink.get('written', 0)} to {sink.get('name')}{shape}{refused}{error}"


def _names(answer: Answer) -> list[str]:
    """Of servers that would always be allowed: those that could not be looked up."""
    return [_name(each) for each in dicts(answer, "names") if each.get("error")]


def _name(each: Answer) -> str:
    addresses = each.get("addresses")
    kept = f"; it was {listed(addresses)}" if addresses else ""
    return f"{each.get('name')}, a {each.get('reason')}: {each['error']}{kept}"


def _watchdog(answer: Answer) -> list[str]:
    watchdog = answer.get("watchdog")
    if not isinstance(watchdog, Mapping) or not watchdog.get("enabled"):
        return ["off"]
    return [f"on, every {watchdog.get('interval_s', 0):g} s"]


def _metrics(answer: Answer) -> list[str]:
    listen = answer.get("metrics")
    return [listed(listen) if listen else "off"]


def _settings(answer: Answer) -> list[str]:
    settings = answer.get("config")
    if not isinstance(settings, Mapping):
        return []
    differs, error = settings.get("differs"), settings.get("error") or "see the log"
    state = "in force" if settings.get("ok") else f"{'NOT THOSE OF THE FILES' if differs else 'FAULTY'}: {error}"
    loaded = f" since {moment(settings['loaded_at'])}" if settings.get("ok") and settings.get("loaded_at") else ""
    restart = settings.get("restart_needed")
    return [
        state + loaded,
        "packetwatch reload, or a restart, takes those of the files" if differs else "",
        f"a restart is needed for {listed(restart)}" if restart else "",
    ]


#: Label and lines; a subject without lines is left out.
SUBJECTS: tuple[tuple[str, Callable[[Answer], list[str]]], ...] = (
    ("Protection", _protection),
    ("Problems", _problems),
    ("Unconfirmed", _unconfirmed),
    ("Interfaces", _interfaces),
    ("Handshakes", lambda answer: [str(answer.get("handshakes") or "")]),
    ("Up", _up),
    ("Connections", _connections),
    ("", _by_interface),
    ("Scans", lambda answer: [str(answer.get("scans", 0))]),
    ("Probes", lambda answer: [str(answer["probes"]) if answer.get("probes") else ""]),
    ("ACKs of nothing", lambda answer: [str(answer["acks"]) if answer.get("acks") else ""]),
    ("Challenges", _challenges),
    ("Blocked now", _blocked),
    ("Lost", _lost),
    ("Records", _records),
    ("Malformed", _counts("malformed")),
    ("Ignored", _counts("ignored")),
    ("Tables", _tables),
    ("Unresolved", _names),
    ("Watchdog", _watchdog),
    ("If killed", lambda answer: [str(answer.get("keeps") or "")]),
    ("Metrics", _metrics),
    ("Settings", _settings),
)
