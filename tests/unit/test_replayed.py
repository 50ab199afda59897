# SPDX-License-Identifier: Apache-2.0
"""The account of a replay: each sum that does not add up is found, files add up, and nothing is hidden in the text."""

from __future__ import annotations

import copy
import json

import pytest

from packetwatch import kernel, replayed

COUNTERS = kernel.ZERO._replace(
    syns=(10, 4), recorded=(6, 3), dropped=(3, 1, 1, 0, 0, 0), scans=(1, 1), malformed=(2, *[0] * 8),
    ignored=(0, 1, 0, 0),
)
ACCOUNT = replayed.Replayed(
    "a.pcap", frames=30, set_aside=9, too_long=1, handed=20, dropped=5, records=9, scans_told=2, blocks=2,
    begin_ns=10**18, end_ns=10**18 + 5 * 10**9, counters=COUNTERS,
)


def changed(**fields):
    account = copy.deepcopy(ACCOUNT)
    for name, value in fields.items():
        setattr(account, name, value)
    return account


def counted(**fields):
    return changed(counters=COUNTERS._replace(**fields))


def test_it_adds_up():
    assert list(replayed.imbalances(ACCOUNT)) == []
    assert replayed.mismatches([ACCOUNT, replayed.Replayed("empty")]) == []


@pytest.mark.parametrize(
    "account, words",
    [
        (changed(set_aside=8), "frames: 30 is not 29"),
        (changed(handed=21), "frames: 30 is not 31"),
        (changed(records=8), "records: 9 is not 8"),
        (changed(dropped=4), "verdicts to drop: 4 is not 5"),
        (changed(scans_told=1), "scans: 2 is not 1"),
        (counted(syns=(11, 4)), "SYNs over ipv4: 11 is not 10"),
        (counted(syns=(10, 5)), "SYNs over ipv6: 5 is not 4"),
        (counted(ignored=(99, 0, 0, 0)), "frames judged beyond those handed over"),
    ],
)
def test_what_does_not_add_up_is_found(account, words):
    (found,) = replayed.mismatches([account])
    assert words in found and "a.pcap" in found


@pytest.mark.parametrize("name", ["lost", "folded"])
def test_nothing_may_be_lost_or_summed(name):
    found = replayed.mismatches([counted(**{name: (1, 0), "syns": (11, 4)})])
    assert len(found) == 1 and "lost or summed" in found[0]


def test_alerts_that_were_lost_are_accounted_for():
    assert replayed.mismatches([changed(scans_told=1, counters=COUNTERS._replace(alerts_lost=1))]) == []


def test_files_add_up():
    other = changed(name="b.pcap", begin_ns=10**17, end_ns=2 * 10**17, fault="cut")
    other.skipped["x"] = 2
    both = replayed.total([ACCOUNT, other])
    assert (both.name, both.frames, both.records, both.fault) == ("2 files", 60, 18, "cut")
    assert (both.begin_ns, both.end_ns) == (10**17, ACCOUNT.end_ns)
    assert both.counters.syns == (20, 8) and both.skipped == {"x": 2}
    assert list(replayed.imbalances(both)) == []
    nothing = replayed.total([replayed.Replayed("empty"), ACCOUNT])
    assert (nothing.begin_ns, nothing.end_ns) == (ACCOUNT.begin_ns, ACCOUNT.end_ns)


def test_text_names_every_count_that_is_not_zero():
    account = changed(backwards=3, counters=COUNTERS._replace(evicted=7, refused=8, would_drop=(2, 0), alerts_lost=6))
    account.skipped["it is not JSON"] = 9
    text = "\n".join(replayed.as_text([account], "rule"))
    for words in (
        "30 read", "14 SYNs = 9 recorded + 5 dropped", "2, blocks 2", "4 scan, 1 list", "2 truncated", "1 martian",
        "1 SYN of more than one page", "9 it is not JSON", "3 older than", "7 sources", "8 blocks", "Would drop   2",
        "Alerts lost  6", "Judged by: rule",
    ):
        assert words in text, words


def test_several_files_have_a_sum():
    lines = replayed.as_text([ACCOUNT, changed(name="b.pcap")], "rule")
    assert [line.split(":")[0] for line in lines if " read" in line] == ["a.pcap", "b.pcap", "2 files"]


def test_json_is_one_line():
    text = replayed.as_json([ACCOUNT], "rule")
    answer = json.loads(text)
    assert "\n" not in text and answer["event_type"] == "replay" and answer["rule"] == "rule"
    assert answer["syns"] == 14 == answer["connections"] + answer["connections_dropped"]
    assert answer["files"][0]["file"] == "a.pcap" and answer["malformed"] == {"truncated": 2}
