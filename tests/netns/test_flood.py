# SPDX-License-Identifier: Apache-2.0
"""Floods from forged sources, as fast as this machine sends: every SYN has its fate, and memory does not grow."""

from __future__ import annotations

import time

import pytest

from .resident import wait_for
from .traffic import OPEN, SILENT

QUIET = "interface = v0\nlog.format = json\nmetrics.listen = off\n"
COUNT = 200_000
GROWTH_KB = 4096


@pytest.fixture
def watched(resident, wire):
    """Starts one, and tells the fate of a flood."""

    def start(settings=""):
        return resident(wire.host, QUIET + settings)

    return start


def settled(watch, before, count):
    """The ledger after so many SYNs more, at rest."""
    wait_for(lambda: watch.status()["ledger"]["syns"] >= before + count, f"{count} SYNs", 20)
    return watch.ledger()


def summed(watch):
    return sum(record["count"] for record in watch.records("summary"))


def lost(watch, where="ring"):
    return sum(record["count"] for record in watch.records("loss", where=where))


def test_a_flood_is_folded_and_nothing_is_lost(watched, wire):
    """Single records up to the burst, then sums: the log stays small, the account exact, blocking works all along."""
    watch = watched()
    wire.flood(10_000)
    settled(watch, 0, 10_000)
    memory = watch.rss_kb()
    for ipv6 in (True, False):
        wire.flood(COUNT, ipv6=ipv6)
    source = wire.somebody()
    with wire.listen(80):
        assert wire.knock(source, 5, 6, 7, 80)[-1] == SILENT
        assert wire.knock(wire.somebody(), 80) == [OPEN]
    terms = settled(watch, 0, 2 * COUNT + 10_000 + 5)
    assert terms["syns"] == 2 * COUNT + 10_000 + 5
    assert terms["connections_lost"] == 0 and terms["connections_dropped"] == 1
    assert 10_000 <= terms["connections"] < 30_000
    wait_for(lambda: summed(watch) == terms["connections_folded"], "all summaries")
    assert len(watch.records("connection")) == terms["connections"]
    assert {record["level"] for record in watch.records("summary")} <= {"source_port", "port", "interface"}
    assert len(watch.records("summary")) < 1000
    assert watch.records("scan", src_ip=source) and watch.records("block", src_ip=source)
    assert watch.rss_kb() - memory < GROWTH_KB
    tables = watch.status()["tables"]
    assert tables["trackers"]["entries"] <= tables["trackers"]["capacity"]


def test_few_sources_are_summed_by_source_and_port(watched, wire):
    watch = watched("log.fold_rate = 1\nlog.fold_burst = 1")
    wire.flood(50_000, port=8080, sources=4)
    terms = settled(watch, 0, 50_000)
    wait_for(lambda: summed(watch) == terms["connections_folded"], "all summaries")
    fine = watch.records("summary", level="source_port", dest_port=8080)
    assert {record["src_ip"] for record in fine} == {f"2001:db8:f::{n}" if n else "2001:db8:f::" for n in range(4)}
    assert sum(record["count"] for record in fine) == terms["connections_folded"] > 49_000
    assert all(record["in_iface"] == "v0" and record["since"] <= record["timestamp"] for record in fine)


def test_a_ring_too_small_says_how_many_and_what_helps(watched, wire):
    watch = watched("ring.size = 64K\nlog.fold_rate = 0")
    wire.flood(COUNT)
    terms = settled(watch, 0, COUNT)
    assert terms["syns"] == COUNT and terms["connections_folded"] == 0
    assert terms["connections_lost"] > 0
    loss = watch.record("loss", where="ring")
    assert "ring.size" in loss["message"] and "log.fold_rate" in loss["message"]
    printed = watch.done("status")
    assert f"Lost         {terms['connections_lost']} (" in printed
    assert len(watch.records("connection")) == terms["connections"]
    wire.flood(COUNT)  # the same again: told again, or at the stop
    more = settled(watch, COUNT, COUNT)
    assert watch.stop() == 0
    assert lost(watch) == more["connections_lost"] > terms["connections_lost"]


def test_the_scanner_in_a_flood_is_seen(watched, wire):
    """Alerts have a ring of their own: a full one of connections does not crowd them out."""
    watch = watched("ring.size = 64K\nlog.fold_rate = 0")
    source = wire.somebody()
    watch.send(19)  # SIGSTOP: nobody reads
    try:
        wire.flood(20_000)
        assert wire.knock(source, 5, 6, 7, 8)[-1] == SILENT
    finally:
        watch.send(18)
    watch.record("scan", src_ip=source)
    watch.record("block", src_ip=source)
    terms = settled(watch, 0, 20_004)
    assert terms["connections_lost"] > 18_000 and terms["connections_dropped"] == 1


def test_the_log_of_a_day_is_bounded(watched, wire):
    """Beyond log.daily_size only sums are written, and this is told."""
    watch = watched("log.fold_rate = 0\nlog.daily_size = 1M")
    wire.flood(5_000)
    wait_for(lambda: "log.daily_size is used up" in watch.errors(), "the notice", 10)
    settled(watch, 0, 5_000)
    written = len(watch.lines)
    wire.flood(20_000)
    terms = settled(watch, 5_000, 20_000)
    assert terms["connections_folded"] > 19_000 and len(watch.lines) - written < 500
    assert watch.stop() == 0
    assert summed(watch) == terms["connections_folded"]
    assert len(watch.records("connection")) == terms["connections"] == terms["syns"] - terms["connections_folded"]


def test_idle_costs_nothing(watched):
    watch = watched()
    before = cpu_ticks(watch.pid)
    time.sleep(3)
    assert cpu_ticks(watch.pid) - before <= 6  # 2 % of 3 s; bench measures it


def cpu_ticks(pid):
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
