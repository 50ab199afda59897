#!/usr/bin/python3 -I
# SPDX-License-Identifier: Apache-2.0
"""The tasks block, unblock and status: parameters as JSON on standard input, the answer as JSON, never a shell.

What an address, a duration or a reason may be is judged by packetwatch itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

TIMEOUT_S = 30
NOT_UNDERSTOOD = "packetwatch-packetwatch/not-understood"


class Failed(Exception):
    """Of what kind, what happened, and what else is known."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.answer = {"_error": {"kind": kind, "msg": message, "details": details}}


class Task(NamedTuple):
    words: tuple[str, ...]  #: the command
    takes: Mapping[str, type]  #: parameters
    needs: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], list[str]]


def _block(given: Mapping[str, Any]) -> list[str]:
    options = [f"--{name}={given[name]}" for name in ("duration", "reason") if name in given]
    return [*options, *(["--force"] if given.get("force") else []), "--", given["prefix"]]


TASKS = {
    "packetwatch::block": Task(
        ("block", "add"), {"prefix": str, "duration": str, "reason": str, "force": bool}, ("prefix",), _block),
    "packetwatch::unblock": Task(
        ("block", "remove"), {"prefix": str}, ("prefix",), lambda given: ["--", given["prefix"]]),
    "packetwatch::status": Task(("status",), {}, (), lambda given: []),
}


def main() -> int:
    try:
        task, given = _read(sys.stdin.buffer.read())
        answer = _ask(["packetwatch", *task.words, "--output=json", *task.arguments(given)])
    except Failed as failed:
        print(json.dumps(failed.answer))
        return 1
    print(json.dumps(answer))
    return 0


def _read(text: bytes) -> tuple[Task, Mapping[str, Any]]:
    try:
        given = json.loads(text)
        task = TASKS[given["_task"]]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise Failed(NOT_UNDERSTOOD, f"the input is no JSON object with \"_task\", one of {', '.join(TASKS)}") from None
    given = {name: value for name, value in given.items() if not name.startswith("_") and value is not None}
    for name, value in given.items():
        if name not in task.takes or not isinstance(value, task.takes[name]):
            raise Failed(NOT_UNDERSTOOD, f"the parameter {name!a} is unknown or of the wrong type", parameter=name)
        if isinstance(value, str) and "\0" in value:
            raise Failed(NOT_UNDERSTOOD, f"the parameter {name} has a NUL in it", parameter=name)
    for name in task.needs:
        if name not in given:
            raise Failed(NOT_UNDERSTOOD, f"the parameter {name} is missing", parameter=name)
    return task, given


def _ask(command: list[str]) -> Any:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise Failed("packetwatch-packetwatch/not-installed", "packetwatch is not installed here") from None
    except subprocess.TimeoutExpired:
        raise Failed("packetwatch-packetwatch/no-answer", f"no answer within {TIMEOUT_S} s") from None
    if done.returncode:
        message = done.stderr.strip() or f"packetwatch ended with {done.returncode}"
        raise Failed("packetwatch-packetwatch/refused", message, exit=done.returncode)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
