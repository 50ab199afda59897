# SPDX-License-Identifier: Apache-2.0
"""The state directory: what is saved comes back; a file that is newer or broken is kept aside, whatever it holds."""

from __future__ import annotations

import json
import os

import pytest

from packetwatch import state
from packetwatch.address import parse, parse_prefix

SAVED = state.Saved(
    (
        state.SavedBlock(parse("192.0.2.1"), 5, 4),
        state.SavedBlock(parse("2001:db8::1"), 0, 1),
        state.SavedBlock(parse("2001:db8:7::"), 9, 8, 64),
    ),
    (state.Manual(parse_prefix("198.51.100.0/24"), 7, 6, "a reason", True),),
    (state.Manual(parse_prefix("2001:db8::/32")),),
    "observe",
)


def altered(**fields):
    return json.dumps({**json.loads(state.encode(SAVED)), **fields}).encode()


BROKEN = {
    "newer": altered(version=3),
    "a block with host bits": altered(blocks=[["2001:db8::1/64", 0, 0]]),
    "no version": b"{}",
    "empty": b"",
    "cut": state.encode(SAVED)[:-9],
    "zeros": bytes(4096),
    "not UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "a list": b"[]",
    "a word": b'"state"',
    "no address": altered(blocks=[["example.org", 0, 0]]),
    "a short row": altered(blocks=[["192.0.2.1"]]),
    "a time that is none": altered(blocks=[["192.0.2.1", "soon", 0]]),
    "a time before 1970": altered(blocks=[["192.0.2.1", -1, 0]]),
    "a huge time": altered(blocks=[["192.0.2.1", 1 << 70, 0]]),
    "host bits": altered(manual_blocks=[["192.0.2.1/24", 0, 0, "", False]]),
    "a number for a list": altered(manual_allow=7),
    "an unknown mode": altered(mode="panic"),
    "a mode that cannot be hashed": altered(mode=[]),
}


def test_what_is_saved_comes_back(tmp_path):
    directory = state.Directory(str(tmp_path / "state"))
    assert directory.load() == (state.Saved(), None)
    directory.save(SAVED)
    assert state.Directory(str(tmp_path / "state")).load() == (SAVED, None)
    assert os.stat(tmp_path / "state").st_mode & 0o777 == 0o700
    assert os.stat(tmp_path / "state/state.json").st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", BROKEN.values(), ids=list(BROKEN))
def test_what_cannot_be_read_is_kept_aside(tmp_path, content):
    (tmp_path / "state.json").write_bytes(content)
    saved, told = state.Directory(str(tmp_path)).load()
    (aside,) = tmp_path.glob("state.json.unread-*")
    assert saved == state.Saved() and str(aside) in told and "\n" not in told
    assert aside.read_bytes() == content and not (tmp_path / "state.json").exists()


def test_the_last_good_settings_come_back_or_nothing(tmp_path):
    directory = state.Directory(str(tmp_path))
    assert directory.load_inputs() is None
    directory.save_inputs({"settings": "[scan]\nports = 4\n"})
    assert directory.load_inputs() == {"settings": "[scan]\nports = 4\n"}
    for broken in (b"[]", b"{", b"\xff", b"[" * 100_000):
        (tmp_path / "last-good.json").write_bytes(broken)
        assert directory.load_inputs() is None


def test_the_addresses_of_servers_come_back_or_nothing(tmp_path):
    directory = state.Directory(str(tmp_path))
    assert directory.load_servers() is None
    directory.save_servers({"answers": {"a": ["192.0.2.1"]}})
    assert directory.load_servers() == {"answers": {"a": ["192.0.2.1"]}}
    assert directory.load() == (state.Saved(), None) and directory.load_inputs() is None
    file = tmp_path / "servers.json"
    for broken in (b"[]", b"{", b"\xff", b"[" * 100_000):
        file.write_bytes(broken)
        assert directory.load_servers() is None
    file.unlink()
    file.mkdir()
    assert directory.load_servers() is None


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(state.StateError, match="Not a directory") as caught:
        state.Directory(str(tmp_path / "file/state"))
    assert "--state DIR" in caught.value.hint


def test_a_disk_that_refuses_leaves_the_file_before(tmp_path, monkeypatch):
    directory = state.Directory(str(tmp_path))
    directory.save(SAVED)

    def full(descriptor, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError):
        directory.save(state.Saved())
    assert directory.load() == (SAVED, None)


def test_what_stands_in_the_place_of_a_file_neither_hangs_nor_leads_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    home = tmp_path / "state"
    home.mkdir()
    os.mkfifo(home / "state.json")
    (home / ".probe").symlink_to(elsewhere)
    with pytest.raises(state.StateError, match="Too many levels"):
        state.Directory(str(home))
    (home / ".probe").unlink()
    (home / ".state.json.new").symlink_to(elsewhere)
    directory = state.Directory(str(home))
    saved, aside = directory.load()
    assert saved == state.Saved() and "could not be read" in aside
    with pytest.raises(OSError):
        directory.save(state.Saved())
    assert elsewhere.read_text() == "mine"


def test_a_clock_that_is_behind_prolongs_no_block():
    """1970 at a boot without a battery: an hour stays an hour at the most."""
    hour, now, then = 3600 * 10**9, 20 * 10**9, 1_795_000_000 * 10**9
    block = state.SavedBlock(b"\0" * 16, then + hour, then)
    assert block.until_boot_ns(0, now) == now + hour
    assert block.until_boot_ns(then + hour // 2 - now, now) == now + hour // 2
    assert block.until_boot_ns(then + 2 * hour, now) == 1
    assert block._replace(until_wall_ns=0).until_boot_ns(0, now) == 0


def test_a_directory_in_the_place_of_the_file_is_kept_aside(tmp_path):
    (tmp_path / "state.json").mkdir()
    directory = state.Directory(str(tmp_path))
    saved, aside = directory.load()
    assert saved == state.Saved() and "Is a directory" in aside
    directory.save(SAVED)
    assert directory.load() == (SAVED, None)


def test_two_residents_do_not_share_a_directory(tmp_path):
    one, other = state.Directory(str(tmp_path)), state.Directory(str(tmp_path))
    one.hold()
    with pytest.raises(state.StateError, match="another packetwatch uses it"):
        other.hold()
    os.close(one._held)
    other.hold()
    os.close(other._held)


def test_the_first_version_of_the_file_is_read():
    """Its blocks are of single addresses."""
    text = altered(version=1, blocks=[["192.0.2.1", 5, 4], ["2001:db8::1", 0, 1]])
    assert state.decode(text) == SAVED._replace(blocks=SAVED.blocks[:2])
    assert json.loads(state.encode(SAVED))["blocks"][2] == ["2001:db8:7::/64", 9, 8]
