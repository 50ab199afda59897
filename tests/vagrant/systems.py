# SPDX-License-Identifier: Apache-2.0
"""The table of systems, by id."""

from __future__ import annotations

import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
SYSTEMS = {row["id"]: row for row in json.loads((ROOT / "systems.json").read_text())}
