# SPDX-License-Identifier: Apache-2.0
"""What holds for every tier: a skip is a failure, tools come from build/tools too, each tier tells its seconds."""

from __future__ import annotations

import collections
import os
import pathlib
import signal

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ["PATH"] = os.pathsep.join([str(ROOT / "build/tools"), os.environ["PATH"], "/usr/sbin", "/sbin"])

# What a shell starts in the background ignores Ctrl-C, and so would all that the tests start and then interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

seconds = collections.Counter()
passed = collections.Counter()


def refuse_skip(report):
    """A test that did not run shows nothing: what it lacks belongs into deps/."""
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped, which counts as a failure: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    outcome = yield
    refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    outcome = yield
    refuse_skip(outcome.get_result())


def pytest_runtest_logreport(report):
    tier = report.nodeid.split("/")[1] if report.nodeid.startswith("tests/") else "other"
    seconds[tier] += report.duration
    passed[tier] += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter):
    for tier in seconds:
        terminalreporter.write_line(f"tier {tier}: {passed[tier]} passed in {seconds[tier]:.1f} s")
