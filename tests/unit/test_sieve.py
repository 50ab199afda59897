# SPDX-License-Identifier: Apache-2.0
"""The sieve lets through whatever the kernel half would count; answers tell of ports, also those that come later."""

from __future__ import annotations

import random

import pytest

from packetwatch import event, sieve
from tests import frames as f
from tests.bpf import random_frames, rows

ENDS = rows.Ends(b"\4" * 6, b"\2" * 6, "10.9.0.2", "10.9.0.1", "fd00:9::2", "fd00:9::1", 40000, 80)
SERVER4, SERVER6 = f.packed(ENDS.server4), f.packed(ENDS.server6)
PORT80 = (80).to_bytes(2, "big")


def v4(**tcp):
    return rows.v4(tcp=tcp)(ENDS)[0]


def answer4(flags, seq=0, tags=(), options=b""):
    segment = f.tcp(ENDS.server4, ENDS.client4, 80, 40000, flags, seq=seq)
    packet = f.ipv4(ENDS.server4, ENDS.client4, segment, options=options)
    return f.ethernet(packet, b"\4" * 6, b"\2" * 6, tags=tags)


def answer6(flags, seq=0):
    segment = f.tcp(ENDS.server6, ENDS.client6, 80, 40000, flags, seq=seq)
    return f.ethernet(f.ipv6(ENDS.server6, ENDS.client6, segment), b"\4" * 6, b"\2" * 6)


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.description)
def test_whatever_is_counted_goes_through(row):
    built = row.build(ENDS)
    expected = row.expected * len(built) if len(row.expected) == 1 else row.expected
    for frame, word in zip(built, expected):
        if word != rows.OTHER:
            assert sieve.look(frame)[0] in (sieve.SYN, sieve.PROBE, sieve.UNSURE)


def test_frames_cut_anywhere_raise_nothing():
    chance = random.Random(3)
    for _ in range(300):
        frame = random_frames.build(chance, ENDS)[0]
        for size in range(0, min(len(frame), 120)):
            what, port = sieve.look(frame[:size])
            assert what not in (sieve.SYN, sieve.PROBE) or len(port) in (6, 18)
            sieve.ends(frame[:size])


@pytest.mark.parametrize("flags", range(64))
def test_flags(flags):
    """What has neither ACK nor RST goes through: SYNs, and what no connection has."""
    for frame, server in ((v4(flags=flags), SERVER4), (rows.v6(tcp={"flags": flags})(ENDS)[0], SERVER6)):
        what, port = sieve.look(frame)
        through = sieve.SYN if flags & (f.SYN | f.FIN) == f.SYN else sieve.PROBE
        assert (what == through) == (not flags & (f.ACK | f.RST))
        if what == through:
            assert port == server + PORT80


@pytest.mark.parametrize(
    "frame, what",
    [
        (answer4(f.SYN | f.ACK, seq=5), sieve.OPENED),
        (answer4(f.SYN | f.ACK | f.ECE, seq=5), sieve.OPENED),
        (answer4(f.RST | f.ACK), sieve.REFUSED),
        (answer4(f.RST | f.ACK, tags=[(f.ETH_8021Q, 7)]), sieve.REFUSED),
        (answer4(f.SYN | f.ACK, options=f.NOOP * 8), sieve.OPENED),
        (answer4(f.RST | f.ACK, seq=5), sieve.NOTHING),  # of a connection that was there
        (answer4(f.RST), sieve.NOTHING),
        (answer4(f.ACK), sieve.NOTHING),
        (answer4(f.FIN | f.ACK), sieve.NOTHING),
        (answer6(f.SYN | f.ACK), sieve.OPENED),
        (answer6(f.RST | f.ACK), sieve.REFUSED),
    ],
)
def test_answers(frame, what):
    found, port = sieve.look(frame)
    assert found == what
    if what != sieve.NOTHING:
        assert port == (SERVER6 if len(port) == 18 else SERVER4) + PORT80


@pytest.mark.parametrize(
    "frame",
    [
        f.ethernet(f.ipv4("192.0.2.1", "192.0.2.2", bytes(20), proto=f.UDP), bytes(6), bytes(6)),
        f.ethernet(f.ipv4("192.0.2.1", "192.0.2.2", bytes(20), offset=8), bytes(6), bytes(6)),
        f.ethernet(f.ipv6("2001:db8::1", "2001:db8::2", bytes(20), last=f.UDP), bytes(6), bytes(6)),
        f.ethernet(bytes(28), bytes(6), bytes(6), proto=0x0806),
    ],
)
def test_what_is_set_aside(frame):
    assert sieve.look(frame) == (sieve.NOTHING, b"")


def test_ends():
    assert sieve.ends(v4()) == (f.packed(ENDS.client4), SERVER4)
    assert sieve.ends(rows.in_tags(3)(ENDS)[0]) == (f.packed(ENDS.client4), SERVER4)
    assert sieve.ends(rows.v6(rows.DSTOPTS)(ENDS)[0]) == (f.packed(ENDS.client6), SERVER6)


# lookahead

A, B = b"a", b"b"


def states(ahead, steps):
    """Steps are a port (a SYN) or (what, port); the states in the order of the SYNs."""
    found, number = [], 0
    for step in steps:
        if isinstance(step, tuple):
            ahead.answer(*step)
            continue
        found += ahead.add((number, b""), step)
        number += 1
    found += ahead.rest()
    assert [ns for (ns, _), _ in found] == list(range(number))
    return [state for _, state in found]


def test_an_answer_tells_of_the_syns_before_it():
    assert states(sieve.Lookahead(), [A, B, (sieve.OPENED, A), A]) == [event.OPEN, sieve.UNKNOWN, event.OPEN]


def test_each_syn_has_the_answer_that_follows_it():
    steps = [A, (sieve.REFUSED, A), A, (sieve.OPENED, A), A]
    assert states(sieve.Lookahead(), steps) == [event.CLOSED, event.OPEN, event.OPEN]


def test_frames_without_a_port_are_unknown():
    assert states(sieve.Lookahead(), [b"", (sieve.OPENED, A), b""]) == [sieve.UNKNOWN] * 2


def test_answers_reach_back_one_batch_and_no_more():
    steps = [A, *[B] * 7, (sieve.OPENED, A)]
    assert states(sieve.Lookahead(4), steps)[0] == sieve.UNKNOWN
    assert states(sieve.Lookahead(8), steps)[0] == event.OPEN


def test_what_waits_and_what_is_known_is_bounded(monkeypatch):
    monkeypatch.setattr(sieve, "_KNOWN_PORTS", 10)
    ahead = sieve.Lookahead(8)
    for number in range(1000):
        ahead.add((number, b""), number.to_bytes(2, "big"))
        ahead.answer(sieve.OPENED, number.to_bytes(2, "big"))
        assert len(ahead._known) <= 10
        assert len(ahead._older.frames) + len(ahead._newer.frames) <= 16
