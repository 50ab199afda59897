# SPDX-License-Identifier: Apache-2.0
"""The control socket, both ends: who may what, hostile clients within bounds, a loop that never waits."""

from __future__ import annotations

import errno
import json
import os
import random
import selectors
import socket
import stat
import struct
import threading
import time

import pytest

from packetwatch import client, clock, control, peer
from packetwatch.control import Client, ControlError, InUse, Refused, Server
from packetwatch.operations import MOST_REQUEST, OPERATIONS, changes, decode

SECOND = 1_000_000_000


def answer(request):
    """A handler that says what it was asked."""
    if request["do"] == "reload":
        raise Refused("2 faults", "mend them", 78, ["a.conf:1: one", "a.conf:2: two"])
    if request["do"] == "allow.list":
        return ({"prefix": f"192.0.2.{number}"} for number in range(300))
    if request["do"] == "block.remove":
        raise ZeroDivisionError("oops")
    return request


class Loop:
    """The daemon's loop in small, in the test's own thread: a step is one turn."""

    def __init__(self, path, handler=answer):
        self.selector = selectors.DefaultSelector()
        self.server = Server(str(path), handler)
        self.server.register(self.selector)

    def step(self, seconds=0.0):
        ready = self.selector.select(seconds)
        for key, events in ready:
            key.data(events)
        return len(ready)

    def settle(self):
        while self.step(0.01):
            pass

    def connect(self, data=b""):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(5)
        link.connect(self.server.path)
        if data:
            link.sendall(data)
        self.settle()
        return link

    def ask(self, data):
        """The answer to a raw line."""
        with self.connect(data) as link:
            return json.loads(self.receive(link))

    def receive(self, link):
        """All that comes until the server has no more to say now."""
        link.setblocking(False)
        parts = []
        while True:
            turns = self.step(0.01)
            try:
                part = link.recv(1 << 20)
            except BlockingIOError:
                if not turns:
                    return b"".join(parts)
                continue
            if not part:
                return b"".join(parts)
            parts.append(part)


@pytest.fixture
def loop(tmp_path):
    loop = Loop(tmp_path / "s")
    yield loop
    loop.server.close()
    assert not loop.selector.get_map(), "close() left something in the selector"
    loop.selector.close()


@pytest.fixture
def running(loop):
    """The same, with the loop in a thread of its own, for the real client."""
    stop = threading.Event()

    def turn():
        while not stop.is_set():
            loop.step(0.01)

    thread = threading.Thread(target=turn)
    thread.start()
    yield loop
    stop.set()
    thread.join()


# requests


def test_the_operations_are_those_of_the_commands():
    assert set(OPERATIONS) == {
        "status", "version", "tail", "confirm", "reload", "mode", "block.list", "block.add", "block.remove",
        "why", "allow.list", "allow.add", "allow.remove",
    }
    reading = {name for name in OPERATIONS if not changes({"do": name})}
    assert reading == {"status", "version", "tail", "mode", "block.list", "why", "allow.list"}
    assert changes({"do": "mode", "mode": "observe"})


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "status"},
        {"do": "mode", "mode": "enforce", "keep": True},
        {"do": "block.list", "would": True, "since_s": 86400},
        {"do": "block.add", "prefix": "::1", "duration_s": None, "reason": "größer", "force": False},
        {"do": "block.add", "prefix": "::1", "duration_s": 0},
        {"do": "block.remove", "all": True},
        {"do": "reload", "confirm_s": 120},
        {"do": "confirm", "revert": True},
    ],
)
def test_a_good_request_is_taken_as_it_is(request_):
    assert decode(json.dumps(request_).encode()) == request_


@pytest.mark.parametrize(
    "line, about",
    [
        (b"", "not JSON"),
        (b"status", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"do": "status"', "not JSON"),
        (b"[" * 60000, "not JSON"),
        (b'{"do":' * 9000, "not JSON"),
        (b'{"do": "block.list", "since_s": NaN}', "not JSON"),
        (b'{"do": "block.list", "since_s": 1.5}', "not JSON"),
        (b'{"do": "block.list", "since_s": ' + b"9" * 60000 + b"}", "not JSON"),
        (b'["status"]', "names no operation"),
        (b"null", "names no operation"),
        (b"{}", "names no operation"),
        (b'{"do": ["status"]}', "names no operation"),
        (b'{"do": "statu"}', "names no operation"),
        (b'{"do": "status", "x": 1}', "takes no 'x'"),
        (b'{"do": "allow.add"}', "lacks prefix"),
        (b'{"do": "allow.add", "prefix": 7}', "prefix has the wrong type"),
        (b'{"do": "allow.add", "prefix": {"a": []}}', "prefix has the wrong type"),
        (b'{"do": "block.list", "since_s": true}', "since_s has the wrong type"),
        (b'{"do": "block.list", "since_s": -1}', "negative"),
        (b'{"do": "block.list", "would": 1}', "would has the wrong type"),
        (b'{"do": "allow.add", "prefix": "\\u001b[2J"}', "do not print"),
        (b'{"do": "allow.add", "prefix": "\\ud800"}', "do not print"),
        (b'{"do": "allow.add", "prefix": "' + b"x" * 5000 + b'"}', "too long"),
    ],
)
def test_a_bad_request_is_refused_with_status_2(loop, line, about):
    got = loop.ask(line + b"\n")
    assert (got["ok"], got["exit"]) == (False, 2) and about in got["error"]
    assert loop.ask(b'{"do": "status"}\n') == {"ok": True, "result": {"do": "status"}}


def test_noise_is_refused_and_nothing_else():
    random.seed(7)
    good = b'{"do": "block.add", "prefix": "192.0.2.1", "duration_s": 60, "reason": "x", "force": true}'
    refused = 0
    for _ in range(3000):
        line = bytearray(good)
        for _ in range(random.randrange(1, 4)):
            line[random.randrange(len(line))] = random.randrange(256)
        try:
            assert decode(bytes(line))["do"] in OPERATIONS
        except Refused as error:
            assert error.exit_status == 2
            refused += 1
    assert refused > 1000


# the client


def test_a_call_gives_the_result(running):
    assert Client(running.server.path).call({"do": "mode"}) == {"do": "mode"}


def test_a_refusal_comes_with_hint_status_and_details(running):
    with pytest.raises(ControlError) as caught:
        Client(running.server.path).call({"do": "reload"})
    error = caught.value
    assert (str(error), error.hint, error.exit_status) == ("2 faults", "mend them", 78)
    assert error.details == ("a.conf:1: one", "a.conf:2: two")


def test_a_fault_of_the_handler_ends_one_answer_and_not_the_loop(running):
    with pytest.raises(ControlError, match="internal error: ZeroDivisionError: oops") as caught:
        Client(running.server.path).call({"do": "block.remove", "all": True})
    assert caught.value.exit_status == 1
    assert Client(running.server.path).call({"do": "mode"}) == {"do": "mode"}


def test_an_iterator_comes_as_a_list(running):
    got = Client(running.server.path).call({"do": "allow.list"})
    assert [each["prefix"] for each in got] == [f"192.0.2.{number}" for number in range(300)]


@pytest.mark.parametrize("items", [[], [1], list(range(128)), list(range(129))])
def test_lists_of_every_length_are_json(items):
    assert json.loads(b"".join(control._pieces(items))) == {"ok": True, "result": items}


def test_nothing_there_is_status_3(tmp_path):
    with pytest.raises(ControlError, match="not running") as caught:
        Client(str(tmp_path / "none")).call({"do": "status"})
    assert caught.value.exit_status == 3 and "systemctl start" in caught.value.hint


def test_a_socket_nobody_listens_on_is_status_3(tmp_path):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.close()
    with pytest.raises(ControlError) as caught:
        Client(str(tmp_path / "s")).call({"do": "status"})
    assert caught.value.exit_status == 3


@pytest.mark.parametrize(
    "error, status, about",
    [
        (PermissionError(errno.EACCES, "Permission denied"), 4, "permission denied"),
        (OSError("AF_UNIX path too long"), 1, "AF_UNIX path too long"),
        (socket.timeout(), 1, "did not answer within 10 s"),
    ],
)
def test_what_else_may_go_wrong_is_told(monkeypatch, error, status, about):
    def connect(self, link):
        raise error

    monkeypatch.setattr(Client, "_connect", connect)
    with pytest.raises(ControlError, match=about) as caught:
        Client("/s").call({"do": "status"})
    assert caught.value.exit_status == status and caught.value.hint


class Impostor:
    """Answers whoever connects first with these bytes."""

    def __init__(self, path, data):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.data = data
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        link, _ = self.listener.accept()
        with link:
            link.recv(4096)
            link.sendall(self.data)

    def close(self):
        self.thread.join()
        self.listener.close()


@pytest.mark.parametrize(
    "data, about",
    [
        (b"", "before it had answered"),
        (b'{"ok": true, "result": [1, 2', "before it had answered"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not packetwatch"),
        (b'{"ok": 1}\n', "not packetwatch"),
        (b"[]\n", "not packetwatch"),
        (b'{"ok": false}\n', "without a reason"),
        (b'{"ok": false, "error": "no", "exit": "x"}\n', "no"),
        (b'{"ok": false, "error": "no", "exit": 0}\n', "no"),
    ],
)
def test_strange_answers_fail_with_a_sentence(tmp_path, data, about):
    impostor = Impostor(tmp_path / "s", data)
    with pytest.raises(ControlError, match=about) as caught:
        Client(str(tmp_path / "s")).call({"do": "status"})
    assert caught.value.exit_status == 1
    impostor.close()


def test_a_resident_that_hangs_is_given_up(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        start = time.monotonic()
        with pytest.raises(ControlError, match="did not answer within 0.2 s"):
            Client(str(tmp_path / "s"), 0.2).call({"do": "status"})
        with socket.socket(socket.AF_UNIX) as fills, socket.socket(socket.AF_UNIX) as queue:
            for link in fills, queue:
                link.setblocking(False)
                link.connect_ex(str(tmp_path / "s"))
            with pytest.raises(ControlError, match="did not answer within 0.2 s"):  # its queue is full
                Client(str(tmp_path / "s"), 0.2).call({"do": "status"})
        assert time.monotonic() - start < 3


# who may what


class Link:
    """A connection as getsockopt() tells of it."""

    def __init__(self, user, group, groups=()):
        self.options = {
            socket.SO_PEERCRED: struct.pack("=iII", 1, user, group),
            control.SO_PEERGROUPS: struct.pack(f"={len(groups)}I", *groups),
        }

    def getsockopt(self, level, option, size):
        value = self.options[option]
        if len(value) > size:
            raise OSError(errno.ERANGE, "more groups than fit")
        return value


@pytest.mark.parametrize(
    "link, rights",
    [
        (Link(0, 0), control.CHANGER),
        (Link(os.geteuid(), 1), control.CHANGER),
        (Link(7001, 7001), control.NOBODY),
        (Link(7001, 7001, [7002, 7003]), control.NOBODY),
        (Link(7001, 501), control.CHANGER),
        (Link(7001, 7001, [7002, 501]), control.CHANGER),
        (Link(7001, 502), control.READER),
        (Link(7001, 7001, [502]), control.READER),
        (Link(7001, 502, [501]), control.CHANGER),
        (Link(7001, 7001, range(501, 801)), control.NOBODY),
        (Link(7001, 502, range(501, 801)), control.READER),
        (Link(4294967295, 4294967295), control.NOBODY),
    ],
)
def test_rights_come_from_user_and_groups(loop, link, rights):
    loop.server._groups = {501}, {502}
    assert loop.server._rights(link)[0] == rights


def test_a_group_that_does_not_exist_gives_rights_to_nobody(tmp_path):
    server = Server(str(tmp_path / "g"), answer, group="no-such-group", readers="nor-this-one")
    assert server._groups == (set(), set())
    assert server._rights(Link(7001, 0, [0]))[0] == control.NOBODY
    server.close()


def as_rights(monkeypatch, rights):
    monkeypatch.setattr(Server, "_rights", lambda self, link: (rights, 7001))


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_a_reader_reads_and_changes_nothing(loop, monkeypatch, operation):
    as_rights(monkeypatch, control.READER)
    fields = {name: "::1" for name in OPERATIONS[operation].needs}
    got = loop.ask(json.dumps({"do": operation, **fields}).encode() + b"\n")
    refused = operation in ("confirm", "reload", "block.add", "block.remove", "allow.add", "allow.remove")
    assert got["ok"] is not refused
    if refused:
        assert got["exit"] == 4 and "user 7001 is not permitted to change" in got["error"] and "adm" in got["hint"]


def test_a_reader_may_ask_for_the_mode_and_not_set_it(loop, monkeypatch):
    as_rights(monkeypatch, control.READER)
    assert loop.ask(b'{"do": "mode"}\n')["ok"]
    assert loop.ask(b'{"do": "mode", "mode": "observe"}\n')["exit"] == 4


def test_a_stranger_is_refused_at_once_and_holds_no_place(loop, monkeypatch):
    as_rights(monkeypatch, control.NOBODY)
    with loop.connect() as link:
        got = json.loads(loop.receive(link))
    assert got["exit"] == 4 and "not permitted to use" in got["error"] and got["hint"]
    assert not loop.server._peers


def test_a_stranger_with_the_real_client_gets_status_4(running, monkeypatch):
    as_rights(monkeypatch, control.NOBODY)
    for _ in range(20):  # the refusal may come before, with or after the request
        with pytest.raises(ControlError, match="not permitted") as caught:
            Client(running.server.path).call({"do": "status"})
        assert caught.value.exit_status == 4


# hostile clients


def test_a_request_may_come_in_pieces(loop):
    with loop.connect(b'{"do": ') as link:
        link.sendall(b'"sta')
        loop.settle()
        link.sendall(b'tus"}\nand more that nobody reads')
        assert json.loads(loop.receive(link)) == {"ok": True, "result": {"do": "status"}}
    assert not loop.server._peers


def test_a_request_without_end_is_refused(loop):
    with loop.connect() as link:
        link.setblocking(False)
        sent = 0
        while loop.server._peers:
            try:
                sent += link.send(b"x" * 10000)
            except (BlockingIOError, BrokenPipeError):
                pass
            for each in loop.server._peers:
                assert len(each._line) <= MOST_REQUEST + peer.PIECE_BYTES
            loop.step()
        got = json.loads(loop.receive(link))
    assert "too long" in got["error"] and got["exit"] == 2
    assert MOST_REQUEST < sent < MOST_REQUEST + (1 << 20)


def test_the_longest_request_is_taken(loop):
    line = b'{"do": "status"}'
    assert loop.ask(line.ljust(MOST_REQUEST) + b"\n")["ok"]
    assert not loop.ask(line.ljust(MOST_REQUEST + 1) + b"\n")["ok"]


def test_who_sends_no_request_in_five_seconds_is_sent_away(loop):
    links = [loop.connect(), loop.connect(b'{"do"')]
    loop.server.expire(clock.boot_ns() + 4 * SECOND)
    assert len(loop.server._peers) == 2
    loop.server.expire(clock.boot_ns() + 6 * SECOND)
    assert not loop.server._peers
    for link in links:
        assert link.recv(10) == b""
        link.close()


def test_who_leaves_without_a_request_is_forgotten(loop):
    loop.connect().close()
    loop.connect(b'{"do": "st').close()
    loop.settle()
    assert not loop.server._peers


def test_who_closes_its_sending_half_gets_its_answer(loop):
    with loop.connect() as link:
        link.sendall(b'{"do": "status"}\n')
        link.shutdown(socket.SHUT_WR)
        assert json.loads(loop.receive(link))["ok"]


def test_who_does_not_wait_for_the_answer_harms_nobody(loop):
    loop.connect(b'{"do": "status"}\n').close()
    loop.settle()
    assert not loop.server._peers and loop.ask(b'{"do": "status"}\n')["ok"]


def test_many_clients_are_bounded_and_the_rest_is_told(loop):
    links = [loop.connect() for _ in range(40)]
    assert len(loop.server._peers) == control.MOST_CLIENTS
    got = json.loads(loop.receive(links[-1]))
    assert "too many clients" in got["error"] and got["exit"] == 1
    for link in links:
        link.close()
    loop.settle()
    assert not loop.server._peers and loop.ask(b'{"do": "status"}\n')["ok"]


def test_readers_cannot_keep_those_out_who_may_change(loop, monkeypatch):
    as_rights(monkeypatch, control.READER)
    links = [loop.connect() for _ in range(40)]
    assert len(loop.server._peers) == control.MOST_CLIENTS - control.RESERVED
    as_rights(monkeypatch, control.CHANGER)
    assert loop.ask(b'{"do": "reload"}\n')["error"] == "2 faults"
    for link in links:
        link.close()


def test_a_turn_takes_only_some_of_those_who_wait(loop):
    links = []
    for _ in range(control.MOST_ACCEPTED + 3):
        link = socket.socket(socket.AF_UNIX)
        link.connect(loop.server.path)
        links.append(link)
    loop.step()
    assert len(loop.server._peers) == control.MOST_ACCEPTED
    loop.settle()
    assert len(loop.server._peers) == control.MOST_ACCEPTED + 3
    for link in links:
        link.close()


def test_without_descriptors_the_listener_rests_instead_of_spinning(loop, monkeypatch):
    class Exhausted:
        def __init__(self, listener):
            self.listener = listener

        def accept(self):
            raise OSError(errno.EMFILE, "Too many open files")

        def __getattr__(self, name):
            return getattr(self.listener, name)

    listener = loop.server._listener
    monkeypatch.setattr(loop.server, "_listener", Exhausted(listener))
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(loop.server.path)
        assert loop.step() == 1 and loop.step() == 0  # it waits, and is not reported again
        monkeypatch.setattr(loop.server, "_listener", listener)
        loop.server.expire(clock.boot_ns())
        loop.step()
        assert len(loop.server._peers) == 1


def test_a_long_answer_is_made_as_it_is_taken(tmp_path):
    made = []

    def entries(request):
        for number in range(100_000):
            made.append(number)
            yield {"prefix": f"2001:db8::{number:x}", "reason": "port scan"}

    loop = Loop(tmp_path / "s", entries)
    with loop.connect(b'{"do": "block.list"}\n') as link:
        (only,) = loop.server._peers
        assert len(made) < 20_000 and len(only._out) < 2 * peer.PIECE_BYTES
        got = json.loads(loop.receive(link))
    assert len(got["result"]) == len(made) == 100_000
    loop.server.close()


def test_who_does_not_take_a_long_answer_ends(tmp_path):
    loop = Loop(tmp_path / "s", lambda request: ("x" * 1000 for _ in range(10_000)))
    with loop.connect(b'{"do": "block.list"}\n') as link:
        loop.server.expire(clock.boot_ns() + 50 * SECOND)
        assert len(loop.server._peers) == 1
        loop.server.expire(clock.boot_ns() + 61 * SECOND)
        assert not loop.server._peers
        assert link.recv(10)
    loop.server.close()


def test_an_answer_that_fails_midway_is_cut_and_noticed(tmp_path):
    def entries(request):
        yield 1
        raise OSError("the map is gone")

    loop = Loop(tmp_path / "s", entries)
    with loop.connect(b'{"do": "block.list"}\n') as link:
        assert not loop.receive(link).endswith(b"\n")
    assert not loop.server._peers
    loop.server.close()


# tails

TAIL = b'{"do": "tail"}\n'
BEGUN = b'{"ok": true, "result": null}\n'


def numbered(start, count, size=100):
    return b"".join(b'{"number": %d, "fill": "%s"}\n' % (start + n, b"x" * size) for n in range(count))


def test_a_tail_gets_what_is_published_from_then_on(loop):
    loop.server.publish(b'{"early": 1}\n')
    with loop.connect(TAIL) as link, loop.connect(TAIL) as other:
        assert loop.server.tails == 2
        loop.server.publish(b'{"a": 1}\n{"b": 2}\n')
        loop.server.publish(b'{"c": 3}\n')
        for each in link, other:
            assert loop.receive(each) == BEGUN + b'{"a": 1}\n{"b": 2}\n{"c": 3}\n'


def test_a_tail_that_leaves_is_forgotten(loop):
    with loop.connect(TAIL):
        assert loop.server.tails == 1
    loop.settle()
    assert loop.server.tails == 0
    loop.server.publish(b"{}\n")


def test_a_tail_that_left_unseen_is_forgotten_when_it_is_fed(loop):
    with loop.connect(TAIL):
        pass
    loop.server.publish(b"{}\n")
    assert loop.server.tails == 0


def test_a_tail_has_no_deadline(loop):
    with loop.connect(TAIL) as link:
        loop.server.expire(clock.boot_ns() + 10**6 * SECOND)
        loop.server.publish(b"{}\n")
        assert loop.receive(link) == BEGUN + b"{}\n"


def test_tails_are_bounded(loop):
    links = [loop.connect(TAIL) for _ in range(control.MOST_TAILS)]
    got = loop.ask(TAIL)
    assert not got["ok"] and "8 clients follow" in got["error"]
    assert loop.server.tails == control.MOST_TAILS
    for link in links:
        link.close()


@pytest.mark.parametrize("batch", [7, 1000, 40_000])
def test_a_slow_tail_is_told_its_losses_and_the_count_is_exact(loop, batch):
    with loop.connect(TAIL) as link:
        (slow,) = loop.server._peers
        published, got = 0, bytearray()
        while loop.server.lost < 50_000:
            loop.server.publish(numbered(published, batch))
            published += batch
            assert len(slow._out) <= peer.STREAM_BYTES + 1000
        got += loop.receive(link)
        loop.server.publish(numbered(published, 7))
        published += 7
        loop.server.expire(clock.boot_ns())
        got += loop.receive(link)
    assert got.startswith(BEGUN)
    records = [json.loads(line) for line in got[len(BEGUN) :].splitlines()]
    losses = [each for each in records if each.get("event_type") == "loss"]
    numbers = [each["number"] for each in records if "number" in each]
    assert len(numbers) + sum(each["count"] for each in losses) == published
    assert sum(each["count"] for each in losses) == loop.server.lost > 0
    assert numbers == sorted(set(numbers)) and numbers[-1] == published - 1
    assert all(each["where"] == "tail" and each["timestamp"].endswith("Z") and each["message"] for each in losses)
    gap = next(index for index, each in enumerate(records) if each.get("event_type") == "loss")
    assert records[gap + 1]["number"] - records[gap - 1]["number"] - 1 == records[gap]["count"]


def test_a_loss_is_told_though_nothing_more_comes(loop):
    with loop.connect(TAIL) as link:
        loop.server.publish(numbered(0, 40_000))
        loop.receive(link)
        loop.server.expire(clock.boot_ns())
        assert json.loads(loop.receive(link))["count"] == loop.server.lost > 0


def test_one_slow_tail_does_not_hold_up_another(loop):
    with loop.connect(TAIL), loop.connect(TAIL) as quick:
        got = 0
        for start in range(0, 50_000, 1000):
            loop.server.publish(numbered(start, 1000))
            got += loop.receive(quick).count(b"\n")
        assert got - 1 == 50_000  # one is the beginning


def test_the_real_client_streams_until_the_resident_ends(running):
    lines = Client(running.server.path).stream({"do": "tail"})
    first = threading.Timer(0.2, running.server.publish, [b'{"a": 1}\n'])
    first.start()
    assert next(lines) == b'{"a": 1}\n'
    first.join()
    for each in list(running.server._peers):
        each.finish()
    assert list(lines) == []


def test_a_refused_stream_is_an_error(running, monkeypatch):
    as_rights(monkeypatch, control.NOBODY)
    with pytest.raises(ControlError, match="not permitted"):
        next(Client(running.server.path).stream({"do": "tail"}))


def test_what_a_tail_still_gets_when_the_resident_ends(tmp_path):
    loop = Loop(tmp_path / "s")
    with loop.connect(TAIL) as link:
        loop.server.publish(b'{"event_type": "stop"}\n')
        loop.server.close()
        assert loop.receive(link) == BEGUN + b'{"event_type": "stop"}\n'
        assert link.recv(1) == b""


# the socket


def test_all_may_connect(loop):
    assert stat.S_IMODE(os.stat(loop.server.path).st_mode) == 0o666


def test_the_mask_is_restored_whatever_happens(loop):
    before = os.umask(0o027)
    try:
        Server(loop.server.path + "2", answer).close()
        with pytest.raises(InUse):
            Server(loop.server.path, answer)
    finally:
        assert os.umask(before) == 0o027


def test_the_socket_is_gone_after_close(tmp_path):
    Server(str(tmp_path / "s"), answer).close()
    assert os.listdir(tmp_path) == []


def test_a_directory_that_was_made_goes_too(tmp_path):
    server = Server(str(tmp_path / "run/s"), answer)
    assert stat.S_ISSOCK(os.stat(tmp_path / "run/s").st_mode)
    server.close()
    assert os.listdir(tmp_path) == []


def test_a_directory_that_holds_more_stays(tmp_path):
    server = Server(str(tmp_path / "run/s"), answer)
    (tmp_path / "run/other").touch()
    server.close()
    assert os.listdir(tmp_path / "run") == ["other"]


def test_a_directory_too_deep_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Server(str(tmp_path / "a/b/s"), answer)
    assert caught.value.filename


def test_a_dead_socket_is_replaced(tmp_path):
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "s"))
    dead.listen()
    dead.close()
    loop = Loop(tmp_path / "s")
    assert loop.ask(b'{"do": "status"}\n')["ok"]
    loop.server.close()


def test_a_living_one_is_left_alone(loop):
    with pytest.raises(InUse, match="running already") as caught:
        Server(loop.server.path, answer)
    assert "--socket" in caught.value.hint
    loop.settle()
    assert loop.ask(b'{"do": "status"}\n')["ok"]


def test_a_living_one_whose_queue_is_full_is_left_alone(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as one:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        one.connect(str(tmp_path / "s"))
        with pytest.raises(InUse):
            Server(str(tmp_path / "s"), answer)
    assert os.path.exists(tmp_path / "s")


def test_what_is_no_socket_is_not_removed(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(InUse, match="no socket"):
        Server(str(tmp_path / "s"), answer)
    assert (tmp_path / "s").read_text() == "precious"


def test_a_place_where_no_socket_can_be_is_named(tmp_path):
    with pytest.raises(OSError) as caught:
        Server("/proc/s", answer)
    assert caught.value.filename == "/proc/s"


def test_the_socket_of_a_successor_is_not_removed(tmp_path):
    first = Server(str(tmp_path / "s"), answer)
    os.unlink(tmp_path / "s")
    second = Server(str(tmp_path / "s"), answer)
    first.close()
    assert os.path.exists(tmp_path / "s")
    second.close()
    assert not os.path.exists(tmp_path / "s")


def test_descriptors_are_not_inherited(loop):
    with loop.connect():
        for key in loop.selector.get_map().values():
            assert not os.get_inheritable(key.fd)


def test_the_limits_of_both_ends_agree():
    assert peer.REQUEST_BYTES == MOST_REQUEST
    assert client.MOST_ANSWER > 65536 * 2 * 300  # a full table of blocks
