# SPDX-License-Identifier: Apache-2.0
"""What the Vagrantfile and the docs say of the systems is what the table says. Starts no machine, and fetches none."""

from __future__ import annotations

import os
import re
import subprocess

import pytest

from tests.vagrant.systems import ROOT, SYSTEMS


PROVIDERS = ("libvirt", "virtualbox")


@pytest.fixture
def vagrant(tmp_path):
    """`vagrant WORDS` for a provider, without boxes or packages; the Vagrantfile may be another directory's."""
    tool = tmp_path / "bin/VBoxManage"  # all that the provider wants to see before it looks at its settings
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 7.0.10r158379\n")
    tool.chmod(0o755)

    def run(*words, provider="libvirt", cwd=ROOT):
        own = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "PACKETWATCH_PACKAGES": tmp_path}
        own.update({f"VAGRANT_{name}": tmp_path / name for name in ("HOME", "DOTFILE_PATH")})
        return subprocess.run(
            ["vagrant", *words],
            cwd=cwd,
            env={**os.environ, **own, "VAGRANT_DEFAULT_PROVIDER": provider},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize("provider", PROVIDERS)
def test_is_valid(vagrant, provider):
    done = vagrant("validate", provider=provider)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_setting_that_is_none_is_found(vagrant, tmp_path, provider):
    """So that the test above says something of each provider."""
    text = (ROOT / "Vagrantfile").read_text()
    assert f"{provider}.memory" in text
    for entry in ("systems.json", "tests"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    (tmp_path / "Vagrantfile").write_text(text.replace(f"{provider}.memory", f"{provider}.memroy"))
    done = vagrant("validate", provider=provider, cwd=tmp_path)
    assert done.returncode != 0 and "memroy" in done.stderr, done.stderr


def test_has_a_machine_of_each_system(vagrant):
    lines = vagrant("status", "--machine-readable").stdout.splitlines()
    assert [line.split(",")[1] for line in lines if ",state," in line] == list(SYSTEMS)


@pytest.mark.parametrize("system", ("debian-12", "fedora-43"))
def test_says_what_to_make_when_there_is_no_package(vagrant, tmp_path, system):
    done = vagrant("up", system, "--provider=libvirt")
    assert done.returncode != 0
    kind = SYSTEMS[system]["package"]
    assert f"No .{kind} in {tmp_path}: make {kind}" in done.stdout + done.stderr


def test_the_docs_list_the_systems():
    page = (ROOT / "docs/systems.md").read_text()
    rows = [
        (name, system, package, runs, re.findall("`([^`]+)`", boxes))
        for name, system, package, runs, boxes in re.findall(
            r"^\| (.+) \| `(.+)` \| \.(\w+) \| (.+) \| (.+) \|$", page, re.MULTILINE
        )
    ]
    assert rows == [
        (f"{row['name']} {row['release']}", row["id"], row["package"], row["runs"], sorted(set(row["boxes"].values())))
        for row in SYSTEMS.values()
    ]
