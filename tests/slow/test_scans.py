# SPDX-License-Identifier: Apache-2.0
"""nmap as slow as it is, against the settings as shipped: what tests/netns/test_slow_scans.py says by replay alone."""

from __future__ import annotations

import contextlib
import datetime
import subprocess
from typing import NamedTuple

import pytest

from tests.netns.resident import wait_for
from tests.netns.test_evidence import length_s
from tests.netns.traffic import HOST4, SILENT
from tests.replays import replay

pytestmark = pytest.mark.timeout(600)

SETTINGS = "interface = v0\nlog.format = json\nmetrics.listen = off\n"


class Scan(NamedTuple):
    """What nmap is told, and what is to come of it."""

    words: str
    pace_s: int
    packets: int
    rule: str
    reason: str

    @property
    def seconds(self):
        """Until the probe after the one that blocks, with time to spare."""
        return (self.packets + 1) * self.pace_s + 30


SCANS = (
    Scan("-T1", 15, 3, "scan:closed", "port scan"),
    Scan("-T1 --scan-delay 31s", 31, 5, "5:closed:10m", "slow scan"),
)


@contextlib.contextmanager
def scanning(wire, scan, source):
    """nmap in the background, which would go on for an hour."""
    words = [*scan.words.split(), "-r", "-e", "v1", "-S", source, "-p", "1000-1099", HOST4]
    with wire.outside.popen(["nmap", "-n", "-Pn", *words], stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def began(record):
    return datetime.datetime.fromisoformat(record["timestamp"][:26])


def is_found(watch, wire, scan, source):
    block = watch.record("block", src_ip=source, timeout_s=scan.seconds)
    assert (block["rule"], block["reason"], length_s(block)) == (scan.rule, scan.reason, 60)
    assert bool(watch.records("scan", src_ip=source)) == (scan.reason == "port scan")
    probes = watch.records("connection", src_ip=source)
    assert [probe["dest_port"] for probe in probes] == list(range(1000, 1000 + scan.packets))
    gaps = [(began(after) - began(before)).total_seconds() for before, after in zip(probes, probes[1:])]
    assert all(scan.pace_s <= gap < scan.pace_s + 5 for gap in gaps), gaps
    assert wire.knock(source, 80) == [SILENT]


def dropped(watch, source):
    return next(row["dropped"] for row in watch.answer("block", "list") if row["prefix"] == source)


def test_scans_that_are_really_slow(resident, wire, tmp_path):
    """At one time, by two sources. The next probe of each is dropped; replay says the same of the log."""
    watch = resident(wire.host, SETTINGS)
    sources = [wire.somebody() for _ in SCANS]
    with wire.listen(80), contextlib.ExitStack() as stack:
        for scan, source in zip(SCANS, sources):
            stack.enter_context(scanning(wire, scan, source))
        for scan, source in zip(SCANS, sources):
            is_found(watch, wire, scan, source)
            wait_for(lambda: dropped(watch, source) >= 2, "its next probe", scan.pace_s + 5)
    assert watch.stop() == 0
    log = tmp_path / "log"
    log.write_text("".join(watch.lines))
    found = {block["src_ip"]: block["rule"] for block in replay("--config", "/dev/null", "--from-log", log).of("block")}
    assert found == {source: scan.rule for scan, source in zip(SCANS, sources)}
