# SPDX-License-Identifier: Apache-2.0
"""What the bench makes of its numbers: ratios within a round, verdicts, the table and the page."""

from __future__ import annotations

import os

import pytest

from tests.bench import load, packets, report
from tests.bench.__main__ import QUICK
from tests.bench.report import Measure
from tests.netns.resident import TERMS


def test_a_machine_that_slows_down_does_not_change_a_ratio():
    times = {"empty": [10.0, 20.0, 40.0], "reference": [60.0, 120.0, 240.0], "x": [85.0, 170.0, 340.0]}
    assert packets.in_references(times, "x") == 1.5


def test_every_round_begins_with_another_case():
    order = []
    runs = {name: lambda block, name=name: order.append(name) or 1.0 for name in "abc"}
    times = packets.interleave(runs, rounds=3, block=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert times == {name: [1.0] * 3 for name in "abc"}


@pytest.mark.parametrize(
    "value, target, verdict",
    [(1.8, 1.8, "reached"), (1.81, 1.8, "MISSED"), (5, None, ""), (0, 0, "reached"), (None, 1, "not measured")],
)
def test_verdict(value, target, verdict):
    assert Measure("s", "n", value, "u", target).verdict() == verdict


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0, "0"), (0.0042, "0.0042"), (0.1, "0.1"), (1.556, "1.56"), (31.44, "31.4"), (1234567, "1,234,567")],
)
def test_number(value, text):
    assert report.number(value) == text


def test_the_page_has_every_row_and_the_machine():
    rows = [Measure("A", "one", 1.0, "s", 2.0, "note"), Measure("B", "two", None, "s", None, "why not")]
    page = report.document(rows, "- CPU: a good one")
    assert "| one | 1 s | 2 s | reached | note |" in page and "| two | - s |  | not measured | why not |" in page
    assert "- CPU: a good one" in page and page.index("## A") < page.index("## B") < page.index("## Notes")


def test_the_machine_is_described_without_its_name():
    text = report.machine(0.25)
    assert "kernel: " in text and "load before: 0.2" in text and "CPUs" in text
    assert open("/proc/sys/kernel/hostname").read().strip() not in text.split()


def test_the_table_for_the_terminal():
    lines = report.table([Measure("A", "one", 3.0, "s", 2.0)]).splitlines()
    assert lines[1] == "A:" and lines[2].split() == ["one", "3", "s", "2", "s", "MISSED"]


class Stage:
    """A resident, a generator and a store in one, whose store takes 300 of a step at most."""

    pid = os.getpid()
    syns = kept = 0

    def at_rate(self, rate, seconds):
        self.syns += round(rate * seconds)
        self.kept += min(300, round(rate * seconds))

    def status(self):
        return {"ledger": {**dict.fromkeys(TERMS, 0), "syns": self.syns, "connections": self.syns}}

    def cpu_s(self):
        return 0.0

    def take(self):
        kept, self.kept = self.kept, 0
        return kept, 10 * kept


def test_a_record_that_is_not_where_it_belongs_is_lost_whatever_the_ledger_says():
    stage = Stage()
    best, note = load.climb(stage, stage, 200, QUICK._replace(step_s=1.0, steps=9), stage)
    assert (best.records, best.lost, best.size) == (250, 0, 2500)
    assert note == "of 312 a second 12 were lost or late"


def test_lines_of_connections_are_counted_and_taken_away(tmp_path):
    with load.File(tmp_path / "f", "json") as file:
        file.stream.write(b'{"event_type":"connection"}\n{"event_type":"start"}\n{"event_type":"connection"}\n')
        file.stream.flush()
        assert file.take() == (2, 79) and file.take() == (0, 0)
    assert not file.path.exists()
