# SPDX-License-Identifier: Apache-2.0
"""The tasks, by the JSON they are given and through Bolt: the real command, and a control socket that answers it."""

from __future__ import annotations

import json
import os
import pathlib
import selectors
import subprocess
import threading

import pytest

from packetwatch.operations import NOT_PERMITTED, NOT_RUNNING, USAGE
from packetwatch.control import Refused, Server
from tests.puppet import gems

TASKS = gems.MODULE / "tasks"
BIN = gems.CHECKOUT / "bin"


class Resident:
    """Answers on a control socket, and remembers what it was asked."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.asked = path, []
        self._selector = selectors.DefaultSelector()
        self._server = Server(str(path), self._answer)
        self._server.register(self._selector)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self):
        while not self._ended.is_set():
            for key, events in self._selector.select(0.02):
                key.data(events)

    def _answer(self, request):
        self.asked.append(request)
        if request.get("prefix") == "192.0.2.1":
            raise Refused("192.0.2.1 covers what is always allowed", "--force blocks it anyway", NOT_PERMITTED)
        answers = {
            "block.add": {"prefix": request.get("prefix"), "until": "forever", "note": None},
            "block.remove": {"removed": 1},
            "status": {"mode": "enforce", "protecting": True},
        }
        return answers[request["do"]]

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._ended.set()
        self._thread.join()
        self._server.close()
        self._selector.close()


@pytest.fixture
def resident(tmp_path):
    with Resident(tmp_path / "packetwatch.sock") as one:
        yield one


def environment(socket, path=f"{BIN}:/usr/bin:/bin"):
    return {"PATH": path, "PACKETWATCH_SOCKET": str(socket), "LANG": "C.UTF-8"}


def raw(text, socket="/nonexistent/socket", path=f"{BIN}:/usr/bin:/bin"):
    """Exit status and answer."""
    command = ["/usr/bin/python3", "-I", TASKS / "ask.py"]
    done = subprocess.run(command, input=text, env=environment(socket, path), capture_output=True, timeout=60)
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout)


def task(name, socket="/nonexistent/socket", path=f"{BIN}:/usr/bin:/bin", **given):
    meta = {"_task": f"packetwatch::{name}", "_installdir": "/tmp", "_noop": False}
    return raw(json.dumps({**meta, **given}).encode(), socket, path)


def test_block(resident):
    given = {"prefix": "2001:DB8::/32", "duration": "2h", "reason": "it's $(id) \"odd\"", "force": True}
    assert task("block", resident.path, **given) == (0, {"prefix": "2001:db8::/32", "until": "forever", "note": None})
    asked = {**given, "do": "block.add", "prefix": "2001:db8::/32", "duration_s": 7200}
    del asked["duration"]
    assert resident.asked == [asked]


def test_block_with_no_more_than_it_needs(resident):
    assert task("block", resident.path, prefix="192.0.2.7", duration=None)[0] == 0
    assert resident.asked == [
        {"do": "block.add", "prefix": "192.0.2.7", "duration_s": None, "reason": "", "force": False}]


def test_unblock(resident):
    assert task("unblock", resident.path, prefix="192.0.2.7") == (0, {"removed": 1})
    assert resident.asked == [{"do": "block.remove", "prefix": "192.0.2.7"}]


def test_status(resident):
    assert task("status", resident.path) == (0, {"mode": "enforce", "protecting": True})


def test_what_is_refused_is_an_error_with_its_reason(resident):
    status, answer = task("block", resident.path, prefix="192.0.2.1")
    error = answer["_error"]
    assert (status, error["kind"], error["details"]) == (1, "packetwatch-packetwatch/refused", {"exit": NOT_PERMITTED})
    assert "always allowed" in error["msg"] and "--force" in error["msg"]


@pytest.mark.parametrize(
    "prefix", ["--all", "-h", "192.0.2.7; reboot", "", "192.0.2.7/99", "x" * 5000, "192.0.2.7\n"],
    ids=lambda text: ascii(text)[:20])
def test_what_is_no_address_blocks_nothing(resident, prefix):
    for name in ("block", "unblock"):
        status, answer = task(name, resident.path, prefix=prefix)
        assert (status, answer["_error"]["details"]) == (1, {"exit": USAGE})
    assert resident.asked == []


@pytest.mark.parametrize("given", [
    {}, {"prefix": None}, {"prefix": 7}, {"prefix": ["192.0.2.7"]}, {"prefix": "192.0.2.7", "reason": 1},
    {"prefix": "192.0.2.7", "force": "yes"}, {"prefix": "192.0.2.7", "extra": "1"}, {"prefix": "192.0.2.7\0"},
])
def test_parameters_of_another_kind(resident, given):
    status, answer = task("block", resident.path, **given)
    assert (status, answer["_error"]["kind"]) == (1, "packetwatch-packetwatch/not-understood")
    assert resident.asked == []


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"_task": "packetwatch::reboot"}',
    b'{"_task": ["packetwatch::block"]}',
    b"[" * 100_000,
], ids=lambda text: ascii(text)[:20])
def test_input_that_is_none(text):
    status, answer = raw(text)
    assert (status, answer["_error"]["kind"]) == (1, "packetwatch-packetwatch/not-understood")


def test_a_monitor_that_does_not_run():
    status, answer = task("block", prefix="192.0.2.7")
    assert (status, answer["_error"]["details"]) == (1, {"exit": NOT_RUNNING})


def test_a_host_without_the_package(tmp_path):
    status, answer = task("block", path=str(tmp_path), prefix="192.0.2.7")
    assert (status, answer["_error"]["kind"]) == (1, "packetwatch-packetwatch/not-installed")


def test_metadata_says_what_the_tasks_take(resident):
    for path in sorted(TASKS.glob("*.json")):
        metadata = json.loads(path.read_text())
        assert metadata["input_method"] == "stdin" and metadata["description"].endswith(".")
        if metadata.get("private"):
            continue
        assert metadata["implementations"] == [{"name": "ask.py"}]
        given = {"prefix": "192.0.2.7", "duration": "1h", "reason": "why", "force": True}
        status, _ = task(path.stem, resident.path, **{name: given[name] for name in metadata["parameters"]})
        assert status == 0
    assert {request["do"] for request in resident.asked} == {"block.add", "block.remove", "status"}


def test_through_bolt(bolt, resident, tmp_path):
    """Its parser of metadata and types, its way to hand parameters over, its view of an error."""
    (tmp_path / "bolt-project.yaml").write_text("name: test\nanalytics: false\n")

    def run(*words):
        command = ["bolt", "task", "run", "packetwatch::block", *words, "--targets", "localhost", "--format", "json"]
        command += ["--project", str(tmp_path), "--modulepath", str(gems.MODULE.parent)]
        path = f"{BIN}:{os.environ['PATH']}"
        env = {**environment(resident.path, path), "HOME": str(tmp_path), "BOLT_GEM": "true"}
        done = bolt.run(*command, check=False, env=env)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    status, answer = run("prefix=192.0.2.66", "duration=1h", "reason=abuse ticket")
    assert status == 0 and answer["items"][0]["value"]["prefix"] == "192.0.2.66"
    status, answer = run("prefix=192.0.2.1")
    assert status and answer["items"][0]["value"]["_error"]["details"] == {"exit": NOT_PERMITTED}
    status, answer = run("prefix=nonsense")
    assert status and not answer["items"], answer
    assert [request["prefix"] for request in resident.asked] == ["192.0.2.66", "192.0.2.1"]
