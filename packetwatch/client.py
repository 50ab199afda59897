# SPDX-License-Identifier: Apache-2.0
"""The control socket, the commands' end: one request, its answer or a stream of lines, and clear errors."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from packetwatch.operations import FAILED, NOT_PERMITTED, NOT_RUNNING, Refused

TIMEOUT_S = 10.0
MOST_ANSWER = 64 << 20
START = "start it with: sudo systemctl start packetwatch; or name its socket: --socket PATH"


class ControlError(Refused):
    """No answer, or one that says no."""


class Client:
    """Talks to the resident at ``path``."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        self.path, self.timeout_s = path, timeout_s

    def call(self, request: Mapping[str, Any]) -> Any:
        """The result. Raises ControlError."""
        link, stream = self._ask(request)
        with link, stream:
            return self._result(stream)

    def stream(self, request: Mapping[str, Any]) -> Iterator[bytes]:
        """Lines for as long as the resident runs. Raises ControlError."""
        link, stream = self._ask(request)
        with link, stream:
            self._result(stream)
            link.settimeout(None)
            try:
                yield from stream
            except ConnectionError:
                pass  # it was killed

    def _ask(self, request: Mapping[str, Any]) -> tuple[socket.socket, BinaryIO]:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(self.timeout_s)
        try:
            self._connect(link)
            try:
                link.sendall(json.dumps(request).encode() + b"\n")
            except ConnectionError:
                pass  # sent away unheard: the answer says why
            return link, link.makefile("rb")
        except OSError as error:
            link.close()
            raise self._explain(error) from None

    def _connect(self, link: socket.socket) -> None:
        """A full queue is no refusal yet: connect() of a socket with a timeout does not wait for it."""
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                link.connect(self.path)
                return
            except BlockingIOError:
                if time.monotonic() > end:
                    raise socket.timeout from None
                time.sleep(0.02)

    def _result(self, stream: BinaryIO) -> Any:
        try:
            line = stream.readline(MOST_ANSWER)
        except ConnectionError:
            line = b""
        except OSError as error:
            raise self._explain(error) from None
        if not line.endswith(b"\n"):
            raise ControlError("packetwatch ended the connection before it had answered", "try again; see its log")
        answer = _parsed(line)
        if answer["ok"] is True:
            return answer.get("result")
        status = answer.get("exit")
        raise ControlError(
            str(answer.get("error") or "it was refused without a reason"),
            str(answer.get("hint") or ""),
            status if isinstance(status, int) and 0 < status < 128 else FAILED,
            [str(each) for each in answer.get("details") or ()],
        )

    def _explain(self, error: OSError) -> ControlError:
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return ControlError(f"packetwatch is not running: nothing answers at {self.path}", START, NOT_RUNNING)
        if isinstance(error, PermissionError):
            hint = "try it with sudo, or as a member of the group packetwatch or adm"
            return ControlError(f"{self.path}: permission denied", hint, NOT_PERMITTED)
        if isinstance(error, socket.timeout):
            message = f"packetwatch did not answer within {self.timeout_s:g} s"
            return ControlError(message, "see its state: systemctl status packetwatch")
        return ControlError(f"{self.path}: {error.strerror or error}", "check --socket")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        if isinstance(answer, dict) and isinstance(answer.get("ok"), bool):
            return answer
    except (ValueError, RecursionError):
        pass
    raise ControlError("what answers is not packetwatch", "check --socket")
