# SPDX-License-Identifier: Apache-2.0
"""Changes that wait for their confirmation: their file, what they come back to, and a way back that meets trouble."""

from __future__ import annotations

import dataclasses
import json
import os
import types

import pytest

from packetwatch import changes, clock, pending, state
from packetwatch.address import parse_prefix
from packetwatch.operations import Refused
from packetwatch.pending import Pending
from packetwatch.settings import Settings

SECOND = 1_000_000_000
THEN = 1_795_000_000 * SECOND
ONE, OTHER = parse_prefix("192.0.2.1"), parse_prefix("192.0.2.0/24")
ENTRY = state.Manual(ONE, THEN + 3600 * SECOND, THEN, "a reason", True)
SETTINGS = Settings(scan_ports=7, block=(OTHER,), ring_size=8 << 20)

BLOCK = Pending("block.add", THEN, THEN + 120 * SECOND, ONE)
AGAIN = BLOCK._replace(entry=ENTRY)
ALLOW = AGAIN._replace(do="allow.remove")
MODE = Pending("mode", THEN, THEN + SECOND, mode="observe")
RELOAD = Pending("reload", THEN, THEN + 3600 * SECOND, settings=SETTINGS)


def altered(waiting, **fields):
    return json.dumps({**json.loads(pending.encode(waiting)), **fields}).encode()


BROKEN = {
    "newer": altered(MODE, version=2),
    "no version": b"{}",
    "empty": b"",
    "cut": pending.encode(BLOCK)[:-9],
    "zeros": bytes(4096),
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "another operation": altered(BLOCK, do="block.remove"),
    "an operation that cannot be hashed": altered(BLOCK, do=[]),
    "no address": altered(BLOCK, prefix="example.org"),
    "host bits": altered(BLOCK, prefix="192.0.2.1/24"),
    "a prefix that is none": altered(BLOCK, prefix=7),
    "a block without a prefix": altered(BLOCK, prefix=None),
    "a mode with a prefix": altered(MODE, prefix="192.0.2.1"),
    "an entry of another prefix": altered(AGAIN, prefix="192.0.2.2"),
    "a short entry": altered(AGAIN, entry=["192.0.2.1", 0]),
    "an allowance without its entry": altered(ALLOW, entry=None),
    "a mode with an entry": altered(MODE, entry=["192.0.2.1", 0, 0, "", False]),
    "an unknown mode": altered(MODE, mode="panic"),
    "a mode that cannot be hashed": altered(MODE, mode=[]),
    "a reload without settings": altered(RELOAD, settings=None),
    "a mode with settings": altered(MODE, settings="[scan]\nports = 3\n"),
    "settings that are none": altered(RELOAD, settings=7),
    "a time that is none": altered(MODE, since="soon"),
    "an end before its beginning": altered(MODE, until=THEN - 1),
    "an end in a year": altered(MODE, until=THEN + 365 * 86400 * SECOND),
    "a huge time": altered(MODE, until=1 << 70),
}


@pytest.mark.parametrize("waiting", [BLOCK, AGAIN, ALLOW, MODE, MODE._replace(mode=None), RELOAD])
def test_what_is_kept_comes_back(waiting):
    assert pending.decode(pending.encode(waiting)) == waiting


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_what_could_not_have_been_written_is_refused(content):
    with pytest.raises(ValueError):
        pending.decode(content)


def test_settings_of_a_newer_version_lose_what_is_not_known():
    text = json.loads(pending.encode(RELOAD))["settings"]
    assert pending.decode(altered(RELOAD, settings=text + "[scan]\ncolour = red\n")) == RELOAD


@pytest.mark.parametrize(
    "waiting, words",
    [(BLOCK, "block add 192.0.2.1"), (ALLOW, "allow remove 192.0.2.1"), (MODE, "mode enforce"), (RELOAD, "reload")],
)
def test_it_is_named_as_it_was_typed(waiting, words):
    assert waiting.words == words


def test_a_clock_that_is_behind_prolongs_nothing():
    now = 20 * SECOND
    assert BLOCK.until_boot_ns(THEN - now, now) == now + 120 * SECOND
    assert BLOCK.until_boot_ns(0, now) == now + 120 * SECOND
    assert BLOCK.until_boot_ns(THEN + 100 * SECOND - now, now) == now + 20 * SECOND
    assert BLOCK.until_boot_ns(THEN + 999 * SECOND, now) == 1


@pytest.mark.parametrize(
    "waiting, request_, prefix, ends",
    [
        (BLOCK, {"do": "block.add"}, ONE, True),
        (BLOCK, {"do": "block.add"}, OTHER, False),
        (BLOCK, {"do": "block.remove"}, ONE, True),
        (BLOCK, {"do": "block.remove"}, OTHER, False),
        (BLOCK, {"do": "block.remove", "all": True}, None, True),
        (BLOCK, {"do": "allow.add"}, ONE, False),
        (BLOCK, {"do": "reload"}, None, False),
        (ALLOW, {"do": "allow.add"}, ONE, True),
        (ALLOW, {"do": "allow.add"}, OTHER, False),
        (ALLOW, {"do": "block.add"}, ONE, False),
        (MODE, {"do": "mode", "mode": "observe"}, None, True),
        (MODE, {"do": "mode", "mode": "enforce"}, None, False),
        (MODE, {"do": "mode"}, None, False),
        (MODE, {"do": "reload"}, None, False),
        (RELOAD, {"do": "reload"}, None, False),
        (RELOAD, {"do": "mode", "mode": "observe"}, None, False),
    ],
)
def test_which_change_made_for_good_ends_the_wait(waiting, request_, prefix, ends):
    assert pending.replaces(request_, prefix, waiting) is ends


@pytest.mark.parametrize(
    "waiting, modes, answer, has",
    [
        (BLOCK, ("enforce", "enforce"), {}, True),
        (MODE, ("observe", "enforce"), {}, True),
        (MODE, ("enforce", "enforce"), {}, False),
        (RELOAD, ("enforce", "enforce"), {"changed": []}, False),
        (RELOAD, ("enforce", "enforce"), {"changed": ["ring.size"]}, False),  # not in force before a restart
        (RELOAD, ("enforce", "enforce"), {"changed": ["scan.ports", "ring.size"]}, True),
    ],
)
def test_whether_there_is_anything_to_confirm(waiting, modes, answer, has):
    assert pending.has_changed(waiting, *modes, answer) is has


def test_a_reload_rolls_back_what_it_has_put_in_force():
    files = Settings(scan_ports=2, block=(ONE,), ring_size=1 << 20, socket="/run/other")
    assert pending.rolled_back(files, SETTINGS) == dataclasses.replace(SETTINGS, ring_size=1 << 20, socket="/run/other")


# with a resident that is none


class Lists:
    def __init__(self):
        self.manual_blocks, self.manual_allow = {}, {}

    def saved_blocks(self, offset):
        return tuple(self.manual_blocks.values())

    def put_block(self, entry, offset):
        self.manual_blocks[entry.prefix] = entry

    def until(self, prefix):
        entry = self.manual_blocks.get(prefix)
        return entry and entry.until_wall_ns


class Resident:
    """Remembers what is asked of it; ``fault`` is raised where lists or settings are applied."""

    def __init__(self, folder):
        self.directory = state.Directory(str(folder))
        self.lists, self.settings = Lists(), SETTINGS
        self.mode_by_hand, self.mode, self.fault, self.said, self.saved = None, "enforce", None, [], 0

    def apply_lists(self, *_):
        if self.fault:
            raise self.fault

    apply_settings = take_back = apply_lists

    def save(self):
        self.saved += 1

    def say(self, event_type, **fields):
        self.said.append((event_type, fields["reason"]))

    def shown_mode(self):
        return None


@pytest.fixture
def resident(tmp_path):
    return Resident(tmp_path / "state")


@pytest.fixture
def times(monkeypatch):
    """Both clocks, to be set."""
    times = types.SimpleNamespace(boot=1000 * SECOND, offset=THEN)
    monkeypatch.setattr(clock, "boot_ns", lambda: times.boot)
    monkeypatch.setattr(clock, "wall_offset_ns", lambda: times.offset)
    return times


@pytest.fixture
def one(resident, times):
    return changes.Changes(resident, resident.take_back)


def block(resident, request):
    resident.lists.manual_blocks[ONE] = state.Manual(ONE)
    return {"prefix": "192.0.2.1"}


def make(one, resident, span=60):
    request = {"do": "block.add", "prefix": "192.0.2.1", "confirm_s": span}
    return one.make(request, lambda request: block(resident, request))


def file(resident):
    return resident.directory.path / pending.FILE


def test_the_way_back_is_on_the_disk_before_the_change(one, resident):
    def act(request):
        assert pending.decode(file(resident).read_bytes()).prefix == ONE
        return block(resident, request)

    one.make({"do": "block.add", "prefix": "192.0.2.1", "confirm_s": 60}, act)


def test_without_room_for_the_way_back_nothing_is_changed(one, resident, monkeypatch):
    def full(descriptor, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Refused, match="No space left on device") as caught:
        make(one, resident)
    assert caught.value.hint and not resident.lists.manual_blocks and one.status() is None


def test_a_change_that_fails_leaves_nothing_behind(one, resident):
    def act(request):
        raise Refused("no")

    with pytest.raises(Refused, match="no"):
        one.make({"do": "block.add", "prefix": "192.0.2.1", "confirm_s": 60}, act)
    assert one.status() is None and not file(resident).exists()


def test_a_step_of_the_clock_moves_no_end(one, resident, times):
    make(one, resident)
    times.offset += 86400 * SECOND
    times.boot += 59 * SECOND
    one.expire(times.boot)
    assert ONE in resident.lists.manual_blocks
    times.offset -= 2 * 86400 * SECOND
    times.boot += SECOND
    one.expire(times.boot)
    assert not resident.lists.manual_blocks and resident.said == [("unblock", "not confirmed")]


def test_a_confirmation_that_comes_too_late_rolls_back(one, resident, times):
    """Though nobody has looked since the end."""
    make(one, resident)
    times.boot += 60 * SECOND
    with pytest.raises(Refused, match="nothing waits for a confirmation: block add 192.0.2.1 was rolled back at 20"):
        one.confirm({"do": "confirm"})
    assert not resident.lists.manual_blocks and not file(resident).exists()


def test_a_way_back_that_fails_is_told_of_once_and_tried_again(one, resident, times, capsys):
    make(one, resident)
    capsys.readouterr()
    resident.fault = OSError(7, "65000 prefixes")
    for _ in range(25):
        times.boot += 10 * SECOND
        one.expire(times.boot)
    told = capsys.readouterr().err
    assert told == f"packetwatch: {one.fault}\n" and "cannot be rolled back: 65000 prefixes" in told
    assert one.status() and file(resident).exists() and not resident.said
    with pytest.raises(Refused, match="could not be rolled back: 65000 prefixes"):
        one.confirm({"do": "confirm", "revert": True})
    resident.fault = None
    one.expire(times.boot + 10 * SECOND)
    assert one.status() is None and one.fault == "" and not file(resident).exists()
    assert resident.said == [("unblock", "not confirmed")] and resident.saved == 1


def test_a_confirmation_that_the_disk_does_not_take_is_none(one, resident, monkeypatch):
    make(one, resident)

    def refuse(name):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(resident.directory, "remove", refuse)
    with pytest.raises(Refused, match="could not be confirmed: Read-only file system"):
        one.confirm({"do": "confirm"})
    assert one.status()


@pytest.mark.parametrize("waiting", [BLOCK, AGAIN, ALLOW, MODE, RELOAD], ids=lambda waiting: waiting.words)
def test_a_start_after_the_end_sets_back_before_anything_is_applied(one, resident, times, waiting):
    resident.fault = OSError(1, "too early")
    resident.mode_by_hand = None
    if waiting.do == "block.add":
        resident.lists.manual_blocks[ONE] = state.Manual(ONE)
    times.offset = waiting.until_ns - times.boot
    resident.directory.save_as(pending.FILE, pending.encode(waiting))
    assert one.restore(waiting)
    assert resident.mode_by_hand == waiting.mode
    assert resident.lists.manual_blocks == ({ONE: ENTRY} if waiting is AGAIN else {})
    assert resident.lists.manual_allow == ({ONE: ENTRY} if waiting is ALLOW else {})
    assert file(resident).exists() and not resident.saved  # the directory may be another's yet
    one.settle()
    assert resident.saved == 1 and not file(resident).exists() and one.status() is None


def test_a_start_before_the_end_waits_on(one, resident, times):
    times.offset = BLOCK.until_ns - times.boot - 5 * SECOND
    resident.lists.manual_blocks[ONE] = state.Manual(ONE)
    assert not one.restore(BLOCK)
    one.settle()
    one.expire(times.boot + 4 * SECOND)
    assert one.status()["change"] == "block add 192.0.2.1"
    one.expire(times.boot + 5 * SECOND)
    assert one.status() is None and not resident.lists.manual_blocks


def test_a_start_with_nothing_to_wait_for(one, resident):
    assert not one.restore(None)
    one.settle()
    assert one.status() is None and not resident.saved
