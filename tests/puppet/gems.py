# SPDX-License-Identifier: Apache-2.0
"""Puppet, OpenVox and Bolt as gems, each with what it needs in a directory of its own below build/; none is global.

`python3 -m tests.puppet.gems` installs what is missing. Nothing is fetched where nothing is missing.
"""

from __future__ import annotations

import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
MODULE = CHECKOUT / "puppet/modules/packetwatch"

#: Name -> what chooses the versions in the module's Gemfile. Those of one implementation exclude another's.
PROFILES: Mapping[str, Mapping[str, str]] = {
    "puppet8": {"PUPPET_GEM_VERSION": "~> 8.10"},
    "puppet7": {"PUPPET_GEM_VERSION": "~> 7.23"},
    "openvox8": {"OPENVOX_GEM_VERSION": "~> 8.0"},
    "bolt": {"BOLT_GEM_VERSION": "~> 4.0"},
}
INSTALL_S, RUN_S = 900, 240


class Gems:
    """The gems of one profile; installs them when it is made, if they are not there."""

    def __init__(self, profile: str) -> None:
        self.directory = CHECKOUT / f"build/gems-{profile}"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("BUNDLE_", "GEM_", "RUBY"))},
            **PROFILES[profile],
            # A lock file names the hosts that gems came from: none is written beside the module.
            "BUNDLE_GEMFILE": str(self.directory / "Gemfile"),
            "BUNDLE_PATH": str(self.directory),
            "BUNDLE_APP_CONFIG": str(self.directory / ".bundle"),
            "BUNDLE_SILENCE_ROOT_WARNING": "true",
            "LANG": "C.UTF-8",
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._install()

    def _install(self) -> None:
        shutil.copy(MODULE / "Gemfile", self.directory / "Gemfile")
        if self._bundle("check").returncode:
            print(f"gems: installing into {self.directory.relative_to(CHECKOUT)}", flush=True)
            done = self._bundle("install", "--quiet", "--jobs=2", "--retry=3", timeout=INSTALL_S)
            if done.returncode:
                raise RuntimeError(f"the gems could not be installed:\n{(done.stdout + done.stderr)[-4000:]}")

    def _bundle(self, *words: str, timeout: float = RUN_S, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"cwd": MODULE, "env": {}, "input": "", "capture_output": True, "text": True, **options}
        options["env"] = {**self.environment, **options["env"]}
        return subprocess.run(["bundle", *words], timeout=timeout, **options)

    def run(self, *command: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of these gems, by default in the module's directory; text in and out, env is added."""
        done = self._bundle("exec", *command, **options)
        if check and done.returncode:
            told = (done.stdout + done.stderr)[-8000:]
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{told}")
        return done


if __name__ == "__main__":
    for each in sys.argv[1:] or PROFILES:
        Gems(each)
