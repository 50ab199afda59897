# SPDX-License-Identifier: Apache-2.0
"""Changes that are rolled back unless they are confirmed, with real connections; and what a kill in between leaves."""

from __future__ import annotations

import json
import time
from datetime import datetime

import pytest

from packetwatch.client import Client, ControlError

from .resident import wait_for
from .traffic import CLOSED, OPEN, SILENT, Wire

BASE = "interface = v0\nlog.format = json\nmetrics.listen = off\n"
SHORT, SHORT_S = "4s", 4  # long enough for a command and a few connections
LONG = "10m"


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, BASE)


@pytest.fixture(scope="module", autouse=True)
def web(wire):
    with wire.listen(80), wire.listen(80, ipv6=True):
        yield


@pytest.fixture(autouse=True)
def as_before(watch):
    yield
    if pending(watch):
        watch.done("confirm", "--revert")
    watch.write(BASE)
    watch.done("reload")
    watch.done("mode", "enforce")


class Case:
    """A change that can be confirmed, on a host where it makes a difference to one source."""

    words: tuple[str, ...]
    before, after = OPEN, SILENT  #: what the source meets on port 80

    def __init__(self, watch, wire, ipv6):
        self.watch, self.wire, self.source = watch, wire, wire.somebody(ipv6)
        self.prepare()
        assert self.knock() == self.before

    def prepare(self):
        pass

    def knock(self):
        (met,) = self.wire.knock(self.source, 80)
        return met

    def make(self, span):
        return self.watch.answer(*self.words, *self.subject(), "--confirm", span)

    def subject(self):
        return ()

    def words_of_status(self):
        return " ".join((*self.words, *self.subject()))


class BlockAdd(Case):
    words = ("block", "add")

    def subject(self):
        return (self.source,)


class AllowRemove(Case):
    words = ("allow", "remove")

    def prepare(self):
        self.watch.done("block", "add", self.source)
        self.watch.done("allow", "add", self.source)

    def subject(self):
        return (self.source,)


class Enforce(Case):
    words = ("mode", "enforce")

    def prepare(self):
        self.watch.done("block", "add", self.source)
        self.watch.done("mode", "observe")


class Reload(Case):
    words = ("reload",)

    def prepare(self):
        self.watch.write(BASE + f"block = {self.source}\nscan.ports = 5")


CASES = [BlockAdd, AllowRemove, Enforce, Reload]


@pytest.fixture(params=CASES, ids=lambda case: " ".join(case.words))
def case(request, watch, wire):
    return request.param(watch, wire, ipv6=False)


def pending(watch):
    return watch.status()["pending"]


def is_over(watch, timeout_s=12.0):
    wait_for(lambda: not pending(watch), "the end of the wait", timeout_s)


def refused(watch, status, *words):
    """The command's one line."""
    result = watch.command(*words)
    assert result.returncode == status and not result.stdout
    assert result.stderr.count("\n") == 1
    return result.stderr


# each change, confirmed and not


def test_the_way_back_is_taken_at_its_time(watch):
    """Though the host is at rest, where the monitor looks only every two seconds."""
    time.sleep(4)
    for source in ("192.0.2.77", "192.0.2.78", "192.0.2.79"):
        assert watch.answer("block", "add", source, "--confirm", "1s")["pending"]
        begin, end = (watch.record(event, src_ip=source)["timestamp"] for event in ("block", "unblock"))
        assert 0.9 < (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds() < 1.8


def test_not_confirmed_it_is_rolled_back(watch, case):
    answer = case.make(SHORT)
    assert answer["pending"] == pending(watch) and answer["pending"]["change"] == case.words_of_status()
    assert answer["pending"]["confirm"] == "packetwatch confirm"
    assert f"Unconfirmed  {case.words_of_status()}: rolled back at " in watch.done("status")
    assert case.knock() == case.after
    is_over(watch)
    assert case.knock() == case.before
    assert f"packetwatch: {case.words_of_status()}: not confirmed, rolled back\n" in watch.errors()
    late = refused(watch, 1, "confirm")
    assert f"nothing waits for a confirmation: {case.words_of_status()} was rolled back at " in late


def test_confirmed_it_stays(watch, case):
    case.make(SHORT)
    assert watch.done("confirm") == f"Confirmed: {case.words_of_status()}.\n"
    assert pending(watch) is None and not (watch.state / "pending.json").exists()
    time.sleep(SHORT_S + 1.2)  # past its end, and a second of housekeeping
    assert case.knock() == case.after
    assert refused(watch, 1, "confirm") == "packetwatch: nothing waits for a confirmation\n"


def test_rolled_back_at_once(watch, case):
    case.make(LONG)
    assert case.knock() == case.after
    assert watch.done("confirm", "--revert") == f"Rolled back: {case.words_of_status()}.\n"
    assert case.knock() == case.before
    assert pending(watch) is None and not (watch.state / "pending.json").exists()


def test_a_kill_in_between_does_not_end_the_wait(watch, case):
    made = case.make(LONG)["pending"]
    watch.kill()
    watch.start()
    assert pending(watch) == made
    assert case.knock() == case.after
    watch.done("confirm", "--revert")
    assert case.knock() == case.before


def test_it_ends_after_a_kill_as_it_would_have_before(watch, wire):
    case = Enforce(watch, wire, ipv6=True)
    case.make("12s")
    watch.kill()
    watch.start()
    assert case.knock() == SILENT and pending(watch)
    is_over(watch, 20)
    assert case.knock() == OPEN


def test_an_end_that_passed_while_it_was_down(watch, case):
    case.make("1s")
    watch.kill()
    time.sleep(1.2)
    watch.start()
    assert pending(watch) is None and not (watch.state / "pending.json").exists()
    assert case.knock() == case.before
    assert f"packetwatch: {case.words_of_status()}: not confirmed, rolled back\n" in watch.errors()
    watch.kill()
    watch.start()  # what the start has rolled back is on the disk
    assert case.knock() == (case.after if isinstance(case, Reload) else case.before)


@pytest.mark.parametrize("change", [BlockAdd, Enforce, Reload], ids=lambda case: " ".join(case.words))
def test_a_kernel_half_that_judged_on_is_brought_in_step(pins, resident, change):
    """As under systemd: the change holds until a process is there again."""
    wire = Wire()
    try:
        watch = resident(wire.add().host, BASE, "--pin", str(pins))
        with wire.listen(80):
            case = change(watch, wire, ipv6=False)
            case.make("1s")
            watch.kill()
            time.sleep(1.2)
            assert case.knock() == case.after
            watch.start()
            assert watch.status()["adopted"] and case.knock() == case.before
            assert watch.stop() == 0
    finally:
        wire.remove()


def test_whom_such_settings_have_blocked_is_let_in_at_the_start(pins, resident):
    wire = Wire()
    try:
        watch = resident(wire.add().host, BASE, "--pin", str(pins))
        watch.write(BASE + "block.honeypot_ports = 22\nblock.first = 1h")
        watch.done("reload", "--confirm", "2s")
        source = wire.somebody()
        assert wire.knock(source, 22, 80) == [CLOSED, SILENT]
        watch.kill()
        time.sleep(2.2)
        watch.start()
        assert watch.status()["adopted"] and wire.knock(source, 80) == [CLOSED]
        assert watch.stop() == 0
    finally:
        wire.remove()


def test_confirmed_after_a_kill(watch, wire):
    case = BlockAdd(watch, wire, ipv6=True)
    case.make(LONG)
    watch.kill()
    watch.start()
    assert watch.answer("confirm") == {"change": f"block add {case.source}", "reverted": False}
    watch.kill()
    watch.start()
    assert case.knock() == SILENT and pending(watch) is None


# what is there again, and how it is recorded


def test_a_new_block_is_recorded_as_ended(watch, wire):
    case = BlockAdd(watch, wire, ipv6=True)
    case.make("1s")
    assert watch.record("unblock", src_ip=case.source)["reason"] == "not confirmed"
    assert case.source not in {row["prefix"] for row in watch.answer("block", "list")}


def test_a_block_that_was_there_has_its_old_end_and_reason_again(watch, wire):
    source = wire.somebody()
    watch.done("block", "add", source, "--duration", "2h", "--reason", "the first")
    (before,) = (row for row in watch.answer("block", "list") if row["prefix"] == source)
    watch.done("block", "add", source, "--duration", "forever", "--reason", "the second", "--confirm", LONG)
    (between,) = (row for row in watch.answer("block", "list") if row["prefix"] == source)
    assert (between["until"], between["reason"]) == ("forever", "the second")
    watch.kill()
    watch.start()
    watch.done("confirm", "--revert")
    (after,) = (row for row in watch.answer("block", "list") if row["prefix"] == source)
    assert after == before
    record = watch.record("block", src_ip=source, reason="rolled back by hand")
    assert record["until"][:19] == before["until"][:19]
    assert wire.knock(source, 80) == [SILENT]


def test_a_block_whose_old_end_has_passed_meanwhile_is_gone(watch, wire):
    source = wire.somebody()
    watch.done("block", "add", source, "--duration", "1s")
    watch.done("block", "add", source, "--duration", "forever", "--confirm", "3s")
    is_over(watch)
    assert wire.knock(source, 80) == [OPEN]
    watch.record("unblock", src_ip=source)
    assert [r["reason"] for r in watch.records("unblock", src_ip=source)] == ["not confirmed"]


def test_a_block_that_ended_by_itself_is_recorded_once(watch, wire):
    source = wire.somebody()
    watch.done("block", "add", source, "--duration", "1s", "--confirm", "3s")
    is_over(watch)
    watch.record("unblock", src_ip=source)
    assert [r["reason"] for r in watch.records("unblock", src_ip=source)] == ["expired"]


def test_whom_settings_have_blocked_that_were_rolled_back_is_let_in(watch, wire):
    before, source = wire.somebody(), wire.somebody()
    assert wire.knock(before, 1, 2, 3, 80)[-1] == SILENT
    watch.write(BASE + "block.honeypot_ports = 22\nblock.first = 1h")
    watch.done("reload", "--confirm", "3s")
    assert wire.knock(source, 22, 80) == [CLOSED, SILENT]
    is_over(watch)
    assert watch.record("unblock", src_ip=source)["reason"] == "not confirmed"
    assert wire.knock(source, 80) == [OPEN] and watch.answer("why", source)["offences"] is None
    assert wire.knock(before, 80) == [SILENT], "what was before stays"


def test_a_scan_while_the_allowance_was_gone_blocks_no_longer(watch, wire):
    source = wire.somebody()
    watch.done("allow", "add", source)
    watch.done("allow", "remove", source, "--confirm", "3s")
    assert wire.knock(source, 1, 2, 3, 80) == [CLOSED] * 3 + [SILENT]
    is_over(watch)
    assert wire.knock(source, 80) == [OPEN]
    assert {"prefix": source, "reason": "manual"} in watch.answer("allow", "list")


def test_observe_is_in_force_again_and_recorded(watch):
    watch.done("mode", "observe")
    watch.done("mode", "enforce", "--confirm", "1s")
    is_over(watch)
    record = watch.records("start", reason="not confirmed")[-1]
    assert record["mode"] == "observe"
    assert record["message"] == "mode enforce: not confirmed; the mode before is in force again"
    assert watch.answer("mode") == {"mode": "observe", "configured": "enforce", "forgotten": 0}


def test_the_status_says_that_the_files_say_something_else(watch, wire):
    source = wire.somebody()
    watch.write(BASE + f"scan.ports = 2\nring.size = 8M\nallow = {source}")
    answer = watch.answer("reload", "--confirm", SHORT)
    assert answer["changed"] == ["allow", "scan.ports", "ring.size"]
    is_over(watch)
    config = watch.status()["config"]
    assert not config["ok"] and config["differs"] == ["allow", "scan.ports"]
    assert config["restart_needed"] == ["ring.size"]
    text = watch.done("status")
    assert "Settings     NOT THOSE OF THE FILES: the last reload was rolled back: the files differ in" in text
    assert "packetwatch reload, or a restart, takes those of the files" in text
    other = wire.somebody()
    assert wire.knock(other, 1, 2, 3) == [CLOSED] * 3  # 3 ports again
    assert watch.answer("reload")["changed"] == ["allow", "scan.ports"]
    assert watch.status()["config"]["ok"] and watch.status()["config"]["differs"] == []
    assert "NOT THOSE" not in watch.done("status")


def test_a_restart_after_the_roll_back_takes_the_files(watch, wire):
    case = Reload(watch, wire, ipv6=False)
    case.make("1s")
    is_over(watch)
    assert case.knock() == OPEN
    kept = json.loads((watch.state / "last-good.json").read_text())["settings"]
    assert case.source not in kept and "ports = 3" in kept
    assert watch.stop() == 0
    watch.start()
    assert case.knock() == SILENT and watch.status()["config"]["ok"]


# other changes meanwhile


def test_a_second_one_is_refused(watch, wire):
    first, second = wire.somebody(), wire.somebody()
    watch.done("block", "add", first, "--confirm", LONG)
    line = refused(watch, 4, "block", "add", second, "--confirm", LONG)
    assert f"block add {first} waits for its confirmation until 20" in line
    assert "packetwatch confirm, or packetwatch confirm --revert" in line
    assert wire.knock(second, 80) == [OPEN] and pending(watch)["change"] == f"block add {first}"


def test_another_change_without_confirmation_stays(watch, wire):
    first, second = wire.somebody(), wire.somebody()
    watch.done("block", "add", first, "--confirm", LONG)
    watch.done("block", "add", second)
    watch.done("mode", "observe")
    watch.done("mode", "enforce")
    watch.done("confirm", "--revert")
    assert wire.knock(first, 80) + wire.knock(second, 80) == [OPEN, SILENT]


@pytest.mark.parametrize(
    "change, then, met",
    [
        (BlockAdd, "block add {}", SILENT),
        (BlockAdd, "block remove {}", OPEN),
        (BlockAdd, "block remove --all", OPEN),
        (AllowRemove, "allow add {}", OPEN),
        (Enforce, "mode observe", OPEN),
    ],
)
def test_a_change_of_the_same_thing_ends_the_wait(watch, wire, change, then, met):
    case = change(watch, wire, ipv6=False)
    case.make(SHORT)
    printed = watch.done(*then.format(case.source).split())
    assert f"{case.words_of_status()} waits for no confirmation any more." in printed
    assert pending(watch) is None and case.knock() == met


def test_a_reload_does_not_confirm_one(watch, wire):
    case = Reload(watch, wire, ipv6=False)
    case.make("3s")
    watch.write(BASE + f"block = {case.source}\nscan.ports = 7")
    printed = watch.done("reload")
    assert "Reloaded: scan.ports changed." in printed and "reload is rolled back at " in printed
    is_over(watch)
    assert case.knock() == OPEN and watch.status()["config"]["differs"] == ["block", "scan.ports"]


def test_a_reload_with_a_fault_changes_nothing_and_waits_for_nothing(watch):
    watch.write(BASE + "scan.ports = many")
    assert watch.command("reload", "--confirm", LONG).returncode == 78
    assert pending(watch) is None and not (watch.state / "pending.json").exists()


@pytest.mark.parametrize("words", [("mode", "enforce"), ("reload",)])
def test_where_nothing_has_changed_there_is_nothing_to_confirm(watch, words):
    assert "There is nothing to confirm." in watch.done(*words, "--confirm", LONG)
    assert watch.answer(*words, "--confirm", LONG)["pending"] is None
    assert pending(watch) is None


def test_what_is_refused_waits_for_nothing(watch):
    assert "not on the allow list" in refused(watch, 1, "allow", "remove", "203.0.113.9", "--confirm", LONG)
    assert "always allowed" in refused(watch, 4, "block", "add", "192.0.2.1", "--confirm", LONG)
    assert pending(watch) is None and not (watch.state / "pending.json").exists()


# hostile


@pytest.mark.parametrize("span", ["0s", "2h", "61m", "forever", "5", "-1s", "", "soon"])
def test_a_time_that_cannot_be(watch, span):
    result = watch.command("block", "add", "203.0.113.9", f"--confirm={span}")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "--confirm" in result.stderr
    assert pending(watch) is None


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "block.add", "prefix": "203.0.113.9", "confirm_s": 0},
        {"do": "block.add", "prefix": "203.0.113.9", "confirm_s": 3601},
        {"do": "block.add", "prefix": "203.0.113.9", "confirm_s": True},
        {"do": "block.add", "prefix": "x", "confirm_s": 60},
        {"do": "allow.add", "prefix": "203.0.113.9", "confirm_s": 60},
        {"do": "mode", "mode": "observe", "confirm_s": 60},
        {"do": "mode", "confirm_s": 60},
        {"do": "confirm", "revert": "yes"},
    ],
)
def test_a_request_that_cannot_be(watch, request_):
    with pytest.raises(ControlError) as refusal:
        Client(str(watch.socket)).call(request_)
    assert refusal.value.exit_status == 2 and pending(watch) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"version": 2}', b"\xff" * 4096])
def test_a_broken_file_is_set_aside(watch, wire, content):
    case = BlockAdd(watch, wire, ipv6=False)
    case.make(LONG)
    watch.kill()
    (watch.state / "pending.json").write_bytes(content)
    watch.start()
    assert "pending.json could not be read" in watch.errors() and pending(watch) is None
    aside = max(watch.state.glob("pending.json.unread-*"))
    assert aside.read_bytes() == content
    aside.unlink()
    assert case.knock() == SILENT  # what else was saved is there


def test_a_file_that_names_what_is_not_there_does_no_harm(watch, wire):
    """As after a kill between the file and the change."""
    other, now = wire.somebody(), time.time_ns()
    watch.done("block", "add", other)
    watch.kill()
    rest = {"prefix": "203.0.113.9", "entry": None, "mode": None, "settings": None}
    file = {"version": 1, "do": "block.add", "since": now, "until": now + 10**9, **rest}
    (watch.state / "pending.json").write_text(json.dumps(file))
    watch.start()
    is_over(watch)
    assert not watch.records("unblock", src_ip="203.0.113.9")
    assert wire.knock(other, 80) == [SILENT]
