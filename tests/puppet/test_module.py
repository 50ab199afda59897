# SPDX-License-Identifier: Apache-2.0
"""The module as a whole: specs on every implementation, lint, syntax, metadata, and a reference that is current."""

from __future__ import annotations

import json
import re

import pytest

import packetwatch
from tests.puppet.gems import CHECKOUT, MODULE

METADATA = json.loads((MODULE / "metadata.json").read_text())
SYSTEMS = json.loads((CHECKOUT / "systems.json").read_text())
RUBY = sorted([*MODULE.rglob("*.rb"), MODULE / "Gemfile", CHECKOUT / "tests/puppet/compile.rb"])


def test_specs(puppet):
    """On every system of metadata.json."""
    report = json.loads(puppet.run("rspec", "--format", "json").stdout.partition("{")[2].join(["{", ""]))
    assert report["summary"]["pending_count"] == 0
    assert report["summary"]["example_count"] == len(report["examples"]) > 200
    told = " ".join(example["full_description"] for example in report["examples"])
    assert [system["id"] for system in SYSTEMS if f"on {system['name']} {system['release']} " not in told] == []


def test_lint(puppet8):
    assert puppet8.run("puppet-lint", "--config", ".puppet-lint.rc", ".").stdout == ""


def test_syntax(puppet8):
    code = [str(path) for folder in ("manifests", "functions", "types") for path in (MODULE / folder).rglob("*.pp")]
    puppet8.run("puppet", "parser", "validate", *code)
    puppet8.run("puppet", "epp", "validate", *map(str, MODULE.rglob("*.epp")))


@pytest.mark.parametrize("path", RUBY, ids=lambda path: path.name)
def test_ruby(path, puppet8):
    done = puppet8.run("ruby", "-wc", str(path))
    assert (done.stdout, done.stderr) == ("Syntax OK\n", "")


def test_metadata_lint(puppet8):
    puppet8.run("metadata-json-lint", "--strict-license", "--fail-on-warnings", "metadata.json")


def test_metadata_is_that_of_the_product():
    assert METADATA["version"] == packetwatch.__version__
    assert METADATA["license"] == "Apache-2.0"


def test_metadata_has_the_systems():
    ours = {(system["name"], system["release"]) for system in SYSTEMS}
    theirs = METADATA["operatingsystem_support"]
    assert {(os["operatingsystem"], release) for os in theirs for release in os["operatingsystemrelease"]} == ours


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system["id"])
def test_systems(system):
    assert system["id"] == f"{system['name'].lower()}-{system['release']}"
    assert {"Debian": "deb", "RedHat": "rpm"}[system["family"]] == system["package"]
    assert ("codename" in system) == (system["package"] == "deb")
    assert set(system["boxes"]) == {"libvirt", "virtualbox"} and system["runs"]


def test_reference(strings):
    assert strings("markdown") == (MODULE / "REFERENCE.md").read_text(), (
        "renew it: python3 -m tests.puppet.gems puppet8, and then in the module's directory, with BUNDLE_GEMFILE and"
        " BUNDLE_PATH as there: bundle exec puppet strings generate --format markdown --out REFERENCE.md"
    )


def test_every_parameter_is_explained(interface):
    """What is there has a text, and nothing else has."""
    for kind in ("puppet_classes", "defined_types", "puppet_functions"):
        for each in interface[kind]:
            signatures = each.get("signatures", [each])
            for signature in signatures:
                tags = signature["docstring"].get("tags", [])
                texts = {tag["name"]: tag.get("text") for tag in tags if tag["tag_name"] == "param"}
                assert all(texts.values()), each["name"]
                assert all(tag.get("types") for tag in tags if tag["tag_name"] == "param"), each["name"]
            assert each["docstring"]["text"] or any(tag["tag_name"] == "summary" for tag in each["docstring"]["tags"])


def test_no_host_of_a_registry_is_named():
    assert re.search(r"https?://|source ['\"]", (MODULE / "Gemfile").read_text()) is None
    assert not (MODULE / "Gemfile.lock").exists()
