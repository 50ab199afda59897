# SPDX-License-Identifier: Apache-2.0
"""`packetwatch replay` as people run it, and what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Done:
    """What a replay has said."""

    def __init__(self, done):
        self.status, self.errors = done.returncode, done.stderr
        self.lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.account = self.lines.pop() if self.lines and self.lines[-1]["event_type"] == "replay" else None

    def of(self, *kinds):
        return [line for line in self.lines if line["event_type"] in kinds]

    def files(self):
        return {os.path.basename(each["file"]): each for each in self.account["files"]}


def environment(**more):
    """Of whoever runs the tests, without what would be a setting."""
    return {**{k: v for k, v in os.environ.items() if not k.startswith(("PACKETWATCH_", "PW_"))}, "TZ": "UTC", **more}


def command(*arguments, before=(), **options):
    return subprocess.run(
        [*before, sys.executable, "-m", "packetwatch", "replay", *map(str, arguments)],
        capture_output=True, text=options.pop("text", True), timeout=120, cwd=ROOT,
        env=environment(**options.pop("env", {})),
        **options,
    )


def replay(*arguments, **options):
    return Done(command("-o", "json", *arguments, **options))
