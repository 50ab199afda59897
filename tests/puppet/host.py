# SPDX-License-Identifier: Apache-2.0
"""A booted machine with Debian's Puppet, the module and a repository of packages."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from tests.machine.machine import wait_for
from tests.package.host import Dpkg
from tests.puppet.gems import MODULE

REPO = "/srv/repo"
#: What Puppet ends with under --detailed-exitcodes.
UNCHANGED, CHANGED, FAILED = 0, 2, (4, 6)


class Puppet(Dpkg):
    """Runs Puppet on the machine."""

    def prepare(self, scratch: pathlib.Path) -> None:
        super().prepare(scratch)
        self.sh(": >/etc/resolv.conf")  # there is nobody to ask; facter would wait for an answer
        self.machine.copy(MODULE, "/etc/puppet/code/modules/packetwatch")

    def puppet(self, *words: str) -> tuple[int, str]:
        """The exit status, and all that was said."""
        command = ["puppet", *words, "--color=false", "--detailed-exitcodes"]
        done = self.machine.run(command, False, timeout=300)
        return done.returncode, done.stdout + done.stderr

    def apply(self, **parameters: Any) -> tuple[int, str]:
        """The class with these. Values are those of JSON, which Puppet's language understands."""
        given = {"manage_repo": True, "repo_url": f"file://{REPO}", **parameters}
        rows = "".join(f"  {name} => {json.dumps(value)},\n" for name, value in given.items())
        manifest = f"class {{ 'packetwatch':\n{rows}  repo_key => file('{REPO}/packetwatch.asc'),\n}}\n"
        self.machine.write("/srv/site.pp", manifest)
        return self.puppet("apply", "/srv/site.pp")

    def converge(self, **parameters: Any) -> int:
        code, said = self.apply(**parameters)
        assert code in (UNCHANGED, CHANGED), said
        return code

    def fact(self) -> dict[str, Any]:
        """What facter makes of the module's fact, once the service had the time to answer it."""
        found: dict[str, Any] = wait_for(lambda: self._fact_with("mode"), "the fact has the mode", 60)
        return found

    def _fact_with(self, name: str) -> dict[str, Any]:
        shown = self.machine.run(["puppet", "facts", "show", "packetwatch", "--render-as", "json"], timeout=120).stdout
        found: dict[str, Any] = json.loads(shown)["packetwatch"]
        return found if name in found else {}
