# SPDX-License-Identifier: Apache-2.0
"""What holds for every tier: a skip is a failure, tools come from build/tools too, each tier tells its seconds.

Under pytest-xdist a file stays with one worker, and so does a tier whose tests share machines and follow each other.
"""

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

WITH_MACHINES = {"machine", "package", "puppet", "vm", "fleet"}

seconds = collections.Counter()
passed = collections.Counter()


def tier(nodeid):
    return nodeid.split("/")[1] if nodeid.startswith("tests/") else "other"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist, which reads the marks in the same hook
def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            shared = tier(item.nodeid)
            item.add_marker(pytest.mark.xdist_group(shared if shared in WITH_MACHINES else item.nodeid.split("::")[0]))


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
    seconds[tier(report.nodeid)] += report.duration
    passed[tier(report.nodeid)] += report.when == "call" and report.passed


def pytest_terminal_summary(terminalreporter):
    for name in seconds:
        terminalreporter.write_line(f"tier {name}: {passed[name]} passed in {seconds[name]:.1f} s")
