# SPDX-License-Identifier: Apache-2.0
"""The pages: links lead somewhere, decisions stay short, what they name is there, every source says its licence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from packetwatch import __version__, config, operations

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/decisions/*.md"))
SOURCES = [
    path
    for top in ROOT.iterdir()
    if top.name not in ("build", ".git")
    for path in (top.rglob("*") if top.is_dir() else [top])
    if path.suffix in (".py", ".c", ".h", ".sh", ".mk", ".pp", ".rb")
]


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_named_are_there(page):
    """`scan.ports` in backquotes, for every section there is."""
    keys = {row.key for row in config.describe()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = {key for key in re.findall(r"`([a-z]+\.[a-z_]+)(?: = [^`]*)?`", page.read_text())}
    assert {key for key in named if key.partition(".")[0] in sections and not key.endswith((".py", ".md"))} <= keys


@pytest.mark.parametrize("page", DECISIONS, ids=name)
def test_decisions(page):
    lines = page.read_text().splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 120
    number = page.name[:3]
    assert lines[0].startswith(f"# {number} ") and "**Decided.**" in "\n".join(lines) or number == "007"


def test_decisions_are_numbered_through():
    assert [int(page.name[:3]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_exit_statuses():
    """As in operations.py."""
    table = (ROOT / "README.md").read_text().partition("## Exit statuses")[2].partition("## ")[0]
    shown = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for n in row.split(",")}
    ours = {operations.DONE, operations.FAILED, operations.USAGE, operations.NOT_RUNNING, operations.NOT_PERMITTED}
    assert shown == ours | {operations.FAULTY_SETTINGS, 130, 141}


def test_changelog_has_the_version():
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_licence(path):
    licence = "GPL-2.0-only" if path.relative_to(ROOT).parts[0] == "bpf" else "Apache-2.0"
    assert f"SPDX-License-Identifier: {licence}" in "\n".join(path.read_text().splitlines()[:2])
