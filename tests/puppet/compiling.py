# SPDX-License-Identifier: Apache-2.0
"""Catalogs as data, many in one process, for a host of facts that are made up."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from tests.puppet.gems import CHECKOUT, Gems

DIRECTORY = "/etc/packetwatch/packetwatch.conf.d"
SETTINGS = f"{DIRECTORY}/50-puppet.conf"
FACTS = {
    "os": {"family": "Debian", "name": "Debian", "architecture": "amd64", "release": {"major": "12"}},
    "kernelrelease": "6.1.0-18-amd64",
}

Catalog = dict[str, Any]  #: "Type[title]" -> parameters, or "error" -> text


def literal(value: Any) -> str:
    """As Puppet's language has it; JSON's strings would be interpolated."""
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)


def compiled(gems: Gems, directory: pathlib.Path, manifests: Sequence[str]) -> list[Catalog]:
    """The catalog of each manifest; the directory is Puppet's to write in."""
    given = {"modulepath": str(CHECKOUT / "puppet/modules"), "facts": FACTS, "manifests": manifests}
    script = str(CHECKOUT / "tests/puppet/compile.rb")
    catalogs: list[Catalog] = json.loads(gems.run("ruby", script, cwd=directory, input=json.dumps(given)).stdout)
    return catalogs
