# SPDX-License-Identifier: Apache-2.0
"""The reader: each format and link type gives the same frames; what is cut or lies gives a message with its place."""

from __future__ import annotations

import itertools
import os
import random
import re
import threading

import pytest

from packetwatch import capture
from tests import captures as c
from tests import frames as f

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND + 123_456_789
V4 = f.ethernet(f.ipv4("192.0.2.1", "192.0.2.2", f.tcp("192.0.2.1", "192.0.2.2", 1, 2)), b"\2" * 6, b"\4" * 6)
V6 = f.ethernet(f.ipv6("2001:db8::1", "2001:db8::2", f.tcp("2001:db8::1", "2001:db8::2", 1, 2)), b"\2" * 6, b"\4" * 6)
FRAMES = [(NOW + i * 1_000_001, frame) for i, frame in enumerate((V4, V6, V4))]


def read(tmp_path, content):
    """(frames, the message of what went wrong)"""
    path = tmp_path / "x"
    path.write_bytes(content)
    return read_path(str(path))


def read_path(path):
    found = []
    try:
        opened = capture.Capture(path)
    except capture.CaptureError as fault:
        return found, str(fault)
    try:
        found.extend(opened.frames())
    except capture.CaptureError as fault:
        return found, str(fault)
    finally:
        opened.close()
    assert opened.read == len(found)
    return found, ""


@pytest.mark.parametrize(
    "form, link, order, digits", itertools.product(c.FORMATS, c.LINKS, c.ORDERS, (c.MICRO, c.NANO))
)
def test_formats(tmp_path, form, link, order, digits):
    frames = [(ns, c.LINKS[link](data)) for ns, data in FRAMES]
    found, fault = read(tmp_path, c.FORMATS[form](frames, link, order, digits))
    assert fault == ""
    unit = 10 ** (9 - digits)
    for (ns, size, data), (then, frame) in zip(found, FRAMES):
        assert ns == then // unit * unit
        assert size == len(data) == len(frame) and data[12:] == frame[12:]
        assert (data == frame) == (link == c.ETHERNET)
        assert capture.is_loopback(data) == (link in (c.NULL, c.LOOP))
    assert len(found) == len(FRAMES)


@pytest.mark.parametrize("link, make", [(c.SLL, c.cooked), (c.SLL2, c.cooked2)])
def test_cooked_headers_tell_of_loopback_and_of_groups(tmp_path, link, make):
    frames = [make(V4), make(V4, hardware=772), make(V4, kind=1), make(V4, kind=2), make(V4, kind=4)]
    found, _ = read(tmp_path, c.pcap([(NOW, frame) for frame in frames], link))
    seen = [(capture.is_loopback(data), bool(data[0] & 1)) for _, _, data in found]
    assert seen == [(False, False), (True, False), (False, True), (False, True), (False, False)]


@pytest.mark.parametrize("link", [c.IPV4, c.IPV6])
def test_raw_links_of_one_family(tmp_path, link):
    frame = V4 if link == c.IPV4 else V6
    found, _ = read(tmp_path, c.pcap([(NOW, frame[14:])], link))
    assert found[0][2][12:] == frame[12:]


@pytest.mark.parametrize("link", c.LINKS)
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 13, 15, 16, 20])
def test_frames_that_end_in_their_link_header(tmp_path, link, size):
    found, fault = read(tmp_path, c.pcap([(NOW, c.LINKS[link](V4)[:size]), (NOW, c.LINKS[link](V4))], link))
    assert fault == "" and len(found) == 2 and found[1][2][12:] == V4[12:]


def test_a_frame_that_was_cut_keeps_its_size(tmp_path):
    found, _ = read(tmp_path, c.pcap([(NOW, V4[:50], len(V4))]))
    assert found == [(NOW // 1000 * 1000, len(V4), V4[:50])]
    found, _ = read(tmp_path, c.pcap([(NOW, c.cooked2(V4)[:50], len(V4) + 6)], c.SLL2))
    assert found[0][1] == len(V4) and len(found[0][2]) == 44


@pytest.mark.parametrize("form", c.FORMATS)
def test_a_file_that_ends_anywhere(tmp_path, form):
    """What is whole is read; where something is missing, the message says behind which frame."""
    whole = c.FORMATS[form](FRAMES)
    ends = {len(c.FORMATS[form](FRAMES[:n])): n for n in range(len(FRAMES) + 1)}
    for size in range(len(whole) + 1):
        found, fault = read(tmp_path, whole[:size])
        n = max((n for end, n in ends.items() if end <= size), default=0)
        assert len(found) == n, size
        assert (fault == "") == (size in ends), (size, fault)
        assert fault == "" or str(tmp_path / "x") in fault
        if fault and size > min(ends):
            assert re.search(rf"behind frame {n}: \S", fault)


@pytest.mark.parametrize("form", c.FORMATS)
def test_bytes_changed_at_random_are_a_message_at_most(tmp_path, form):
    chance = random.Random(5)
    whole = c.FORMATS[form](FRAMES)
    faults = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 2, 8))):
            content[chance.randrange(len(content))] = chance.choice((0, 255, chance.randrange(256)))
        found, fault = read(tmp_path, bytes(content))
        faults += bool(fault)
        assert "\n" not in fault
        assert all(capture.LEAST_NS <= ns <= capture.MOST_NS for ns, _, _ in found)
    assert faults > 50


def test_a_length_that_lies(tmp_path):
    lie = bytearray(c.pcap(FRAMES))
    lie[24 + 8 : 24 + 12] = b"\xff\xff\xff\x7f"
    found, fault = read(tmp_path, bytes(lie))
    assert found == [] and "behind frame 0" in fault


@pytest.mark.parametrize("content", [b"", b"\n", b"#!/bin/sh\n" * 100, bytes(4096), b"\xff" * 4096])
def test_what_is_no_capture(tmp_path, content):
    found, fault = read(tmp_path, content)
    assert found == [] and fault.startswith(f"{tmp_path / 'x'}: ")


def test_link_types_that_are_not_judged_are_named(tmp_path):
    found, fault = read(tmp_path, c.pcap(FRAMES, link=105))
    assert found == [] and "IEEE802_11" in fault
    found, fault = read(tmp_path, c.pcap(FRAMES, link=147 + 999))
    assert found == [] and "cannot be judged" in fault


def test_a_file_of_several_kinds_of_interfaces_is_read_up_to_there(tmp_path):
    content = c.pcapng(FRAMES) + c.interface(c.RAW) + c.pcapng(FRAMES)
    path = tmp_path / "x"
    path.write_bytes(content)
    opened = capture.Capture(str(path))
    frames = opened.frames()
    for _ in FRAMES:
        next(frames)
    with pytest.raises(capture.CaptureError, match="behind frame 3: .*different from") as caught:
        next(frames)
    opened.close()
    assert "tshark -r" in caught.value.hint


def test_several_interfaces_of_one_kind(tmp_path):
    """Each with a resolution of its own."""
    content = c.pcapng(FRAMES[:1], interfaces=c.interface(digits=c.MICRO) + c.interface(digits=c.NANO))
    found, fault = read(tmp_path, content)
    assert fault == "" and found[0][0] == NOW // 1000 * 1000


@pytest.mark.parametrize("seconds", [0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_times_from_one_end_to_the_other(tmp_path, seconds):
    found, _ = read(tmp_path, c.pcap([(seconds * SECOND, V4)]))
    assert capture.LEAST_NS <= found[0][0] <= capture.MOST_NS
    if seconds:
        assert found[0][0] == seconds * SECOND


def test_paths_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        capture.Capture(str(tmp_path / "nothing"))
    assert read_path(str(tmp_path)) == ([], f"{tmp_path}: a directory")


def test_a_pipe(tmp_path):
    path = str(tmp_path / "pipe")
    os.mkfifo(path)

    def write():
        with open(path, "wb") as pipe:
            pipe.write(c.pcapng(FRAMES))

    writer = threading.Thread(target=write)
    writer.start()
    found, fault = read_path(path)
    writer.join()
    assert fault == "" and [data for _, _, data in found] == [data for _, data in FRAMES]


def test_no_library_is_one_message(monkeypatch):
    def missing(name, **_):
        raise OSError(name)

    monkeypatch.setattr(capture.ctypes, "CDLL", missing)
    with pytest.raises(capture.CaptureError, match="libpcap") as caught:
        capture.check()
    assert "install" in caught.value.hint
