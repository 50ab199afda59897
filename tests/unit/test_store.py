# SPDX-License-Identifier: Apache-2.0
"""Pins: only what is ours is taken up, and only that goes."""

from __future__ import annotations

from packetwatch import libbpf
from packetwatch.store import PinStore

OURS = (
    *("0123456789abcdefv1_" + name for name in ("prog", "handshakes", "map_folds_by_port")),
    "link_12",
    "handshakes",
)
THEIRS = ("their_map", "theirs", "link_me", "v1_handshakes", "handshakes_of_theirs", "v1_prog")


def test_what_others_pinned_in_the_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(libbpf, "pinned", lambda path: 7)
    (tmp_path / "folder").mkdir()
    for name in OURS + THEIRS:
        (tmp_path / name).touch()
    store = PinStore(str(tmp_path))
    assert sorted(store.inherited()) == sorted(OURS)
    store.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((*THEIRS, "folder"))


def test_a_folder_of_our_own_goes_with_the_stop(tmp_path):
    store = PinStore(str(tmp_path / "ours"))
    for name in OURS:
        (tmp_path / "ours" / name).touch()
    store.end()
    assert not (tmp_path / "ours").exists()
