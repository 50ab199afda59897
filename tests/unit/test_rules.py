# SPDX-License-Identifier: Apache-2.0
"""The flattened lists mean what the lists say, and a difference is never half applied."""

import random
import sys

import pytest

from packetwatch import rules
from packetwatch.address import Prefix, mask, parse, parse_prefix, prefix_text
from packetwatch.rules import ALLOW, BLOCK, OWN, Entry, Source


def entries(*rows):
    return [Entry(parse_prefix(text), *rest) for text, *rest in rows]


def flat(own=(), allow=(), block=()):
    found = rules.effective(map(parse_prefix, own), entries(*allow), entries(*block))
    return {prefix_text(prefix): source for prefix, source in found.items()}


def test_every_named_prefix_inherits_from_those_that_cover_it():
    assert flat(own=["10.0.0.5"], allow=[("10.1.0.0/16", "config")], block=[("10.0.0.0/8", "config")]) == {
        "10.0.0.0/8": Source(BLOCK),
        "10.0.0.5": Source(OWN | BLOCK),
        "10.1.0.0/16": Source(ALLOW),
    }


@pytest.mark.parametrize(
    "allowed, blocked",
    [("10.0.0.0/8", "10.1.0.0/16"), ("10.1.0.0/16", "10.0.0.0/8"), ("10.0.0.0/8", "10.0.0.0/8")],
)
def test_allow_beats_block_whatever_the_lengths(allowed, blocked):
    found = flat(allow=[(allowed, "config")], block=[(blocked, "config")])
    assert found[allowed] == Source(ALLOW)
    longer = max(allowed, blocked, key=lambda t: int(t.split("/")[1]))
    assert found[longer] == Source(ALLOW)


@pytest.mark.parametrize(
    "reason, flags",
    [
        ("own address", BLOCK), ("default gateway", BLOCK), ("session", BLOCK), ("something new", BLOCK),
        ("config", ALLOW), ("manual", ALLOW),
    ],
)
@pytest.mark.parametrize("blocked", ["10.0.0.1", "10.0.0.0/8"])
def test_force_beats_automatic_reasons_only(reason, flags, blocked):
    found = flat(allow=[("10.0.0.1", reason)], block=[(blocked, "manual", True, 7)])
    assert found["10.0.0.1"] == Source(flags, 7 if flags == BLOCK else 0)


def test_an_unforced_block_gives_no_force_to_another():
    found = flat(
        allow=[("10.0.0.1", "session")], block=[("10.0.0.0/8", "manual", True, 7), ("10.0.0.1", "manual", False, 9)]
    )
    assert found["10.0.0.1"] == Source(BLOCK, 7)


def test_the_longest_block_gives_the_end():
    found = flat(
        allow=[("10.9.0.0/16", "config")],
        own=["10.1.2.3"],
        block=[("10.0.0.0/8", "config"), ("10.1.0.0/16", "manual", False, 50)],
    )
    assert found == {
        "10.0.0.0/8": Source(BLOCK),
        "10.1.0.0/16": Source(BLOCK, 50),
        "10.1.2.3": Source(OWN | BLOCK, 50),
        "10.9.0.0/16": Source(ALLOW),
    }


@pytest.mark.parametrize("first, second, end", [(50, 70, 70), (70, 50, 70), (0, 50, 0), (50, 0, 0)])
def test_of_two_blocks_of_one_prefix_the_later_end_holds(first, second, end):
    found = flat(block=[("10.0.0.1", "config", False, first), ("10.0.0.1", "manual", False, second)])
    assert found["10.0.0.1"] == Source(BLOCK, end)


def test_a_prefix_of_all_ipv6_says_nothing_of_ipv4():
    found = flat(allow=[("192.0.2.1", "config")], block=[("::/0", "config"), ("2001:db8::/32", "config")])
    assert found["0.0.0.0/0"] == Source(0)
    assert found["2001:db8::/32"] == found["::/0"] == Source(BLOCK)
    sources = rules.effective([], [], entries(("::/0", "config")))
    assert rules.lookup(sources, parse("192.0.2.1")).flags == 0
    assert rules.lookup(sources, parse("2001:db8::1")).flags == BLOCK
    assert "0.0.0.0/0" not in flat(block=[("2001:db8::/32", "config")])


def naive(address, own, allow, block):
    """The meaning of an address said in one breath, over the lists themselves."""
    by_hand = [e for e in allow if e.prefix.covers(address) and e.reason in ("config", "manual")]
    automatic = [e for e in allow if e.prefix.covers(address) and e.reason not in ("config", "manual")]
    blocks = [e for e in block if e.prefix.covers(address) and (e.forced or not automatic)]
    flags = OWN if any(p.covers(address) for p in own) else 0
    if by_hand or (automatic and not blocks):
        return Source(flags | ALLOW)
    if not blocks:
        return Source(flags)
    longest = max(e.prefix.length for e in blocks)
    ends = [e.until_ns for e in blocks if e.prefix.length == longest]
    return Source(flags | BLOCK, 0 if 0 in ends else max(ends))


def random_prefix(draw):
    base = draw.choice([parse("10.0.0.0"), parse("2001:db8::"), bytes(16)])
    address = base[:15] + bytes([draw.getrandbits(8)]) if draw.random() < 0.8 else base
    length = draw.choice([128, 127, 126, 124, 120, 97 if base != bytes(16) else 90, 96, 8, 0])
    length = max(length, 96) if base[:12] == parse("10.0.0.0")[:12] else length
    return Prefix(mask(address, length), length)


def random_lists(draw):
    def some(most):
        return range(draw.randint(0, most))

    reasons = ["config", "manual", "session", "own address"]
    return (
        [random_prefix(draw) for _ in some(3)],
        [Entry(random_prefix(draw), draw.choice(reasons)) for _ in some(5)],
        [Entry(random_prefix(draw), "manual", draw.random() < 0.3, draw.randint(0, 3)) for _ in some(6)],
    )


def addresses_near(draw, lists):
    for prefix in [*lists[0], *(e.prefix for e in lists[1]), *(e.prefix for e in lists[2])]:
        spare = 128 - prefix.length
        number = int.from_bytes(prefix.network, "big")
        yield prefix.network
        yield (number | draw.getrandbits(128) & ((1 << spare) - 1)).to_bytes(16, "big")
        yield (number ^ 1 << spare & (1 << 128) - 1).to_bytes(16, "big")
    yield parse("192.0.2.1")


def test_the_longest_match_means_what_the_lists_say():
    draw = random.Random(2)
    seen = set()
    for _ in range(600):
        lists = random_lists(draw)
        sources = rules.effective(*lists)
        for address in addresses_near(draw, lists):
            expected = naive(address, *lists)
            assert rules.lookup(sources, address) == expected
            seen.add(expected.flags)
    assert seen >= {0, OWN, ALLOW, BLOCK, OWN | ALLOW, OWN | BLOCK}


def test_an_address_goes_from_its_old_to_its_new_meaning_and_nowhere_between():
    draw = random.Random(3)
    for _ in range(40):
        lists, others = random_lists(draw), random_lists(draw)
        old, new = rules.effective(*lists), rules.effective(*others)
        addresses = [*addresses_near(draw, lists), *addresses_near(draw, others)]
        meanings = {address: (rules.lookup(old, address), rules.lookup(new, address)) for address in addresses}
        trie, difference = dict(old), rules.difference(old, new)
        steps = [lambda p=p, s=s: trie.update({p: s}) for p, s in difference.changed]
        steps += [lambda p=p: trie.pop(p) for p in difference.removed]
        for step in steps:
            step()
            for address, both in meanings.items():
                assert rules.lookup(trie, address) in both
        assert trie == new


def test_the_difference_holds_only_what_differs():
    old = rules.effective([], entries(("10.0.0.1", "config"), ("10.0.0.2", "config")), [])
    new = rules.effective([], entries(("10.0.0.2", "manual")), entries(("10.0.0.3", "manual", False, 5)))
    removed, changed = rules.difference(old, new)
    assert removed == [parse_prefix("10.0.0.1")]
    assert changed == [(parse_prefix("10.0.0.3"), Source(BLOCK, 5))]
    assert rules.difference(new, new) == ([], [])


def test_the_work_grows_with_the_entries_not_with_their_square():
    def work(count):
        calls = 0

        def count_call(frame, kind, argument):
            nonlocal calls
            calls += kind == "call"

        block = [Entry(Prefix(mask(number.to_bytes(16, "big"), 128), 128), "config") for number in range(1, count)]
        allow = entries(("::/64", "session"))
        sys.setprofile(count_call)
        try:
            rules.effective([], allow, block)
        finally:
            sys.setprofile(None)
        return calls

    assert work(4000) < 5 * work(1000)


def test_what_a_manual_block_would_hit():
    always = entries(("10.0.0.5", "own address"), ("10.0.0.1", "default gateway"), ("192.0.2.0/24", "config"))
    assert [e.reason for e in rules.covered(always, parse_prefix("10.0.0.0/24"))] == ["own address", "default gateway"]
    assert rules.covered(always, parse_prefix("10.0.0.2")) == []
    assert [e.reason for e in rules.covering(always, parse_prefix("192.0.2.7"))] == ["config"]


def test_why_an_address_is_allowed():
    allow = entries(
        ("10.0.0.0/8", "config"), ("10.0.0.5", "session"), ("10.0.0.0/24", "manual"), ("::1", "own address")
    )
    assert rules.why_allowed(parse("10.0.0.5"), allow) == allow[2]
    assert rules.why_allowed(parse("10.0.0.5"), allow[1:2]) == allow[1]
    assert rules.why_allowed(parse("::1"), allow) == allow[3]
    assert rules.why_allowed(parse("::2"), allow) is None


def test_networks_with_an_allowed_address_and_one_that_may_be_judged_are_spared():
    allow = [Entry(parse_prefix(text), rules.CONFIG) for text in
             ("2001:db8:1::7", "2001:db8:2:3::/112", "2001:db8:4::/64", "2001:db8:5::/48", "192.0.2.1")]
    forced = Entry(parse_prefix("2001:db8:5:6::/96"), rules.MANUAL, True)
    inside = Entry(parse_prefix("2001:db8:9::1"), rules.MANUAL)
    found = rules.effective([parse_prefix("2001:db8:8::1")], allow, [forced, inside])
    networks = {parse_prefix(f"{text}/64").network for text in
                ("2001:db8:1::", "2001:db8:2:3::", "2001:db8:5:6::", "2001:db8:8::")}
    assert rules.spared(found, 64) == networks
    assert rules.spared(found, 128) == set()
