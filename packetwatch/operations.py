# SPDX-License-Identifier: Apache-2.0
"""What clients may ask of the resident: the table of operations, and a request read from a line and checked.

Pure. What an operation does is the daemon's, who may ask for it control.py's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from packetwatch import address
from packetwatch.address import Prefix

DONE, FAILED, USAGE, NOT_RUNNING, NOT_PERMITTED = range(5)
FAULTY_SETTINGS = 78  # EX_CONFIG of sysexits.h

MOST_REQUEST = 64 << 10  # bytes of a line
MOST_STRING = 4096

Request = dict[str, Any]  #: "do" and the fields of that operation


class Refused(Exception):
    """An operation that was not done: a sentence, the next step, the exit status of the command, and more lines."""

    def __init__(self, error: str, hint: str = "", exit_status: int = FAILED, details: Sequence[str] = ()) -> None:
        super().__init__(error)
        self.error, self.hint, self.exit_status, self.details = error, hint, exit_status, tuple(details)


class Operation(NamedTuple):
    """One thing to ask for. Fields are flat: name -> types that it may have."""

    changes: bool  #: else it reads
    needs: Mapping[str, tuple[type, ...]] = {}
    takes: Mapping[str, tuple[type, ...]] = {}
    reads_without: str = ""  #: the field without which it changes nothing


_TEXT, _WHOLE, _YES = (str,), (int,), (bool,)
_CONFIRM = {"confirm_s": _WHOLE}  #: rolled back after so many seconds unless it is confirmed

OPERATIONS: Mapping[str, Operation] = {
    "status": Operation(False),
    "version": Operation(False),
    "tail": Operation(False),
    "confirm": Operation(True, takes={"revert": _YES}),
    "reload": Operation(True, takes=_CONFIRM),
    "mode": Operation(True, takes={"mode": _TEXT, "keep": _YES, **_CONFIRM}, reads_without="mode"),
    "block.list": Operation(False, takes={"would": _YES, "since_s": _WHOLE}),
    "block.add": Operation(
        True, {"prefix": _TEXT}, {"duration_s": (int, type(None)), "reason": _TEXT, "force": _YES, **_CONFIRM}),
    "block.remove": Operation(True, takes={"prefix": _TEXT, "all": _YES}),
    "why": Operation(False, {"prefix": _TEXT}),
    "allow.list": Operation(False),
    "allow.add": Operation(True, {"prefix": _TEXT}),
    "allow.remove": Operation(True, {"prefix": _TEXT}, _CONFIRM),
}


def decode(line: bytes) -> Request:
    """A request of a known operation, with its fields alone and of the right types. Raises Refused."""
    try:
        request = json.loads(line.decode(), parse_int=_whole, parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise Refused("the request is not JSON", 'one object on one line, as in {"do": "status"}', USAGE) from None
    if not isinstance(request, dict) or _word(request) not in OPERATIONS:
        raise Refused("the request names no operation", f"\"do\" is one of {', '.join(OPERATIONS)}", USAGE)
    _check(request, OPERATIONS[request["do"]])
    return request


def changes(request: Request) -> bool:
    """Whether only those may ask for it who may change."""
    operation = OPERATIONS[request["do"]]
    return operation.changes and (not operation.reads_without or operation.reads_without in request)


def prefix_of(request: Request) -> Prefix:
    """Raises Refused."""
    try:
        return address.parse_prefix(request.get("prefix") or "")
    except ValueError as fault:
        raise Refused(str(fault), "ADDRESS or ADDRESS/LENGTH", USAGE) from None


def _whole(text: str) -> int:
    if len(text) > 18:
        raise ValueError("too long for a number")
    return int(text)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text[:20]} is not a whole number")


def _word(request: Mapping[str, Any]) -> str:
    word = request.get("do")
    return word if isinstance(word, str) else ""


def _check(request: Request, operation: Operation) -> None:
    known: dict[str, tuple[type, ...]] = {"do": _TEXT, **operation.needs, **operation.takes}
    missing = [name for name in operation.needs if name not in request]
    if missing:
        raise Refused(f"{request['do']} lacks {missing[0]}", exit_status=USAGE)
    for name, value in request.items():
        if name not in known:
            raise Refused(f"{request['do']} takes no {ascii(name[:40])}", _fields(known), USAGE)
        if type(value) not in known[name]:
            raise Refused(f"{name} has the wrong type", f"it is {_types(known[name])}", USAGE)
        if isinstance(value, str) and not (len(value) <= MOST_STRING and value.isprintable()):
            raise Refused(f"{name} is too long or has characters that do not print", exit_status=USAGE)
        if isinstance(value, int) and value < 0:
            raise Refused(f"{name} is negative", exit_status=USAGE)


def _fields(known: Mapping[str, Any]) -> str:
    return f"it takes {', '.join(name for name in known if name != 'do') or 'no fields'}"


def _types(types: Sequence[type]) -> str:
    words = {str: "text", int: "a whole number", bool: "true or false", type(None): "null"}
    return " or ".join(words[each] for each in types)
