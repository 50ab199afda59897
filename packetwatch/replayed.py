# SPDX-License-Identifier: Apache-2.0
"""What became of the frames of a replay: the account of a file, its sum over files, as text and as JSON. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packetwatch.kernel import ZERO, Counters
from packetwatch.metricnames import DROP_REASONS, FAMILIES, IGNORED, MALFORMED
from packetwatch.sinks.records import quoted, rfc3339
from packetwatch.sinks.text import counted, local


@dataclass
class Replayed:
    """The account of one file, or of all. Every frame read is set aside, too long or handed to the kernel half."""

    name: str
    frames: int = 0  #: of a log: lines
    set_aside: int = 0  #: frames that cannot open a connection; lines that tell of none
    too_long: int = 0  #: SYNs that BPF_PROG_TEST_RUN does not take
    handed: int = 0
    dropped: int = 0  #: by the verdict on each
    records: int = 0  #: connections that came out of the ring
    scans_told: int = 0
    blocks: int = 0
    backwards: int = 0  #: frames older than one before them
    begin_ns: int = 0  #: since 1970; 0: there is no frame
    end_ns: int = 0
    counters: Counters = ZERO
    skipped: Counter[str] = field(default_factory=Counter)  #: lines, by what is wrong with them
    fault: str = ""  #: why there may be more in the file than was read

    def plus(self, other: Replayed) -> Replayed:
        """Both together, under this name."""
        result = Replayed(self.name, fault=self.fault or other.fault)
        for name in _SUMS:
            setattr(result, name, getattr(self, name) + getattr(other, name))
        result.begin_ns = min(self.begin_ns or other.begin_ns, other.begin_ns or self.begin_ns)
        result.end_ns = max(self.end_ns, other.end_ns)
        result.counters = self.counters.plus(other.counters)
        result.skipped = self.skipped + other.skipped
        return result


_SUMS = ("frames", "set_aside", "too_long", "handed", "dropped", "records", "scans_told", "blocks", "backwards")


def total(accounts: Sequence[Replayed]) -> Replayed:
    """Over all files."""
    result = Replayed(counted(len(accounts), "file"))
    for each in accounts:
        result = result.plus(each)
    return result


def imbalances(account: Replayed) -> Iterator[str]:
    """What does not add up; each SYN has one fate, and each fate one count."""
    c = account.counters
    judged = sum(c.syns) + sum(c.malformed) + sum(c.ignored)
    sums = (
        ("frames", account.frames, account.set_aside + account.too_long + account.handed),
        *((f"SYNs over {name}", c.syns[i], _fates(c, i)) for i, name in enumerate(FAMILIES)),
        ("records", sum(c.recorded), account.records),
        ("verdicts to drop", account.dropped, _within(account.dropped, sum(c.dropped), sum(c.probes))),
        ("scans", sum(c.scans), _within(sum(c.scans), account.scans_told, c.alerts_lost)),
        ("records lost or summed", 0, sum(c.lost) + sum(c.folded)),
        ("frames judged beyond those handed over", 0, max(0, judged - account.handed)),
    )
    for what, one, other in sums:
        if one != other:
            yield f"{account.name}: {what}: {one} is not {other}"


def _within(count: int, least: int, more: int) -> int:
    """The nearest to `count` that is at least `least` and at most so many more."""
    return max(least, min(count, least + more))


def _fates(c: Counters, family: int) -> int:
    return c.recorded[family] + c.folded[family] + sum(c.dropped[family :: len(FAMILIES)]) + c.lost[family]


def as_fields(account: Replayed) -> dict[str, Any]:
    """For JSON; what is 0 is there, reasons without a count are not."""
    c = account.counters
    return {
        "frames": account.frames,
        "set_aside": account.set_aside,
        "too_long": account.too_long,
        "handed": account.handed,
        "begin": rfc3339(account.begin_ns) if account.begin_ns else None,
        "end": rfc3339(account.end_ns) if account.end_ns else None,
        "backwards": account.backwards,
        "syns": sum(c.syns),
        "connections": sum(c.recorded),
        "connections_dropped": sum(c.dropped),
        "connections_would_drop": sum(c.would_drop),
        "dropped": _named(DROP_REASONS, [sum(c.dropped[2 * i : 2 * i + 2]) for i in range(len(DROP_REASONS))]),
        "scans": sum(c.scans),
        "blocks": account.blocks,
        "blocks_refused": c.refused,
        "blocks_frozen": c.frozen,
        "probes": sum(c.probes),
        "probes_untold": sum(c.probes_untold),
        "alerts_lost": c.alerts_lost,
        "evictions": c.evicted,
        "malformed": _named(MALFORMED, c.malformed),
        "ignored": _named(IGNORED, c.ignored),
        "lines_skipped": dict(account.skipped),
        "fault": account.fault or None,
    }


def _named(names: Sequence[str], counts: Sequence[int]) -> dict[str, int]:
    return {name: count for name, count in zip(names, counts) if count}


def as_lines(account: Replayed) -> Iterator[str]:
    """For people, in local time."""
    f = as_fields(account)
    span = f", {local(account.begin_ns)} to {local(account.end_ns)}" if account.begin_ns else ""
    yield f"{account.name}: {account.frames} read{span}"
    yield f"  Judged       {f['syns']} SYNs = {f['connections']} recorded + {f['connections_dropped']} dropped"
    yield f"  Scans        {f['scans']}, blocks {f['blocks']}"
    rows = (
        ("Would drop", f["connections_would_drop"]),
        ("Dropped", _listed(f["dropped"])),
        ("Probes", f["probes"] and f"{f['probes']}, of which {f['probes_untold']} have no record"),
        ("Malformed", _listed(f["malformed"])),
        ("Ignored", _listed(f["ignored"])),
        ("Too long", f["too_long"] and f"{counted(f['too_long'], 'SYN')} of more than one page, not judged"),
        ("Skipped", _listed(f["lines_skipped"])),
        ("Out of order", f["backwards"] and f"{f['backwards']} older than one before"),
        ("Evicted", f["evictions"] and f"{f['evictions']} sources: raise table.trackers"),
        ("Refused", f["blocks_refused"] and f"{counted(f['blocks_refused'], 'block')}: raise table.blocks"),
        ("Storms", f["blocks_frozen"] and f"{counted(f['blocks_frozen'], 'block')} not made"),
        ("Alerts lost", f["alerts_lost"]),
    )
    yield from (f"  {name:<12} {value}" for name, value in rows if value)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def rule(texts: Mapping[str, str], one_host: bool) -> str:
    """What was judged by. texts: the settings as one writes them."""
    host = "the host named" if one_host else "each destination address, as a host of its own"
    return (
        f"{texts['scan.ports']} ports within {texts['scan.window']} of {host}; mode {texts['mode']}; "
        f"blocked by {texts['block.rules'] or 'no rule'}, for {texts['block.first']} to {texts['block.duration']}"
    )


def as_text(accounts: Sequence[Replayed], rule: str) -> list[str]:
    """Each file that could be read, and all together where there are several; nothing where there is none."""
    read = [each for each in accounts if each.frames or not each.fault]
    lines = [line for each in read for line in as_lines(each)]
    if len(read) > 1:
        lines += as_lines(total(accounts))
    return [*lines, f"Judged by: {rule}"] if lines else []


def as_json(accounts: Sequence[Replayed], rule: str) -> str:
    """One line, beside the records."""
    files = [{"file": each.name, **as_fields(each)} for each in accounts]
    return quoted({"event_type": "replay", "rule": rule, **as_fields(total(accounts)), "files": files})


def mismatches(accounts: Sequence[Replayed]) -> list[str]:
    """Sums that do not add up, as messages."""
    return [f"the account does not add up: {each}" for account in accounts for each in imbalances(account)]
