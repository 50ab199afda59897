# SPDX-License-Identifier: Apache-2.0
"""The marks of the lists: never missing where an entry covers a source, and none asks the trie without them."""

from __future__ import annotations

import random

import pytest

from packetwatch import address, libbpf, lists, marks, program, rules
from packetwatch.address import BITS, IPV4_OFFSET, MAPPED, Prefix, mask, parse_prefix
from packetwatch.kernel import SourceTable
from packetwatch.settings import Settings
from tests.bpf import traffic
from tests.bpf.harness import DROP, PASS
from tests.bpf.traffic import A, B, C, send


@pytest.fixture
def host(clocked):
    return traffic.prepare(clocked)


def in_map(host):
    return marks.unpacked(libbpf.lookup(host.kernel.maps["marks"], bytes(4), marks.SIZE))


def somebody(chance, ipv6):
    """An address that another host may have."""
    if ipv6:
        return bytes([chance.choice((0x20, 0x26, 0x2A, 0xFE))]) + chance.randbytes(15)
    return MAPPED + bytes([chance.choice((11, 100, 130, 200))]) + chance.randbytes(3)


@pytest.mark.parametrize("ipv6", (False, True), ids=("ipv4", "ipv6"))
def test_an_entry_of_any_length_is_found(host, ipv6):
    chance = random.Random(ipv6)
    for length in range(0 if ipv6 else IPV4_OFFSET, BITS + 1):
        for source in (somebody(chance, ipv6) for _ in range(8)):
            prefix = Prefix(mask(source, length), length)
            host.kernel.sources.put(prefix, rules.Source(rules.BLOCK))
            host.kernel.lists_changed()
            assert send(host, address.text(source), 80) == [DROP], address.prefix_text(prefix)
            host.kernel.sources.remove(prefix)
            host.kernel.sources.mark_only(())
            host.kernel.lists_changed()
            assert send(host, address.text(source), 80) == [PASS], address.prefix_text(prefix)


@pytest.mark.parametrize("source", (A, C))
def test_without_a_mark_the_trie_is_not_asked(host, source):
    """An entry that user space would never write so: without its marks it is not seen."""
    entry = address.single(address.parse(source))
    key = program.PREFIX_KEY.pack(entry.length, entry.network)
    libbpf.update(host.kernel.maps["sources"], key, program.SOURCE.pack(0, 0, rules.BLOCK, entry.length))
    assert send(host, source, 80) == [PASS]
    host.source(source, rules.BLOCK)
    assert send(host, source, 80) == [DROP]


@pytest.mark.parametrize("text, count", [
    (A, 1), ("192.0.2.0/24", 1), ("192.0.0.0/16", 1), ("10.0.0.0/8", 256), ("0.0.0.0/0", 1 << 16),
    (C, 1), ("2001:db8::/48", 1), ("2001:db8::/32", 1), ("2001:da8::/29", 8), ("fe80::/10", 1 << 16), ("::/0", 1 << 16),
])
def test_an_entry_marks_no_more_than_it_must(text, count):
    found = marks.of(parse_prefix(text))
    assert bin(found).count("1") == count
    assert found < 1 << marks.COUNT if "." in text else not found % (1 << marks.COUNT)


def test_marks_are_written_before_the_entry(host, monkeypatch):
    written = []
    update = libbpf.update
    monkeypatch.setattr(libbpf, "update", lambda fd, *rest: written.append(fd) or update(fd, *rest))
    host.kernel.sources.put(parse_prefix(A), rules.Source(rules.BLOCK))
    assert written == [host.kernel.maps["marks"], host.kernel.maps["sources"]]


def test_who_takes_over_keeps_the_marks(host):
    host.source(A, rules.BLOCK)
    heir = SourceTable(host.kernel.maps["sources"], host.kernel.maps["marks"])
    heir.put(parse_prefix(B), rules.Source(rules.BLOCK))
    host.kernel.lists_changed()
    assert send(host, A, 80) + send(host, B, 80) == [DROP, DROP]
    assert in_map(host) == marks.of_all(host.kernel.sources.read())


def test_the_lists_take_back_the_marks_of_what_is_gone(rig):
    own = parse_prefix(traffic.HOST4)
    kept = lists.Lists(rig.kernel, Settings())
    kept.host = lists.Host(own=frozenset({own}))
    for text in (A, "10.0.0.0/8", "2001:db8::/32"):
        kept.put_block(lists.manual(parse_prefix(text), None), 0)
    kept.apply()
    assert in_map(rig) == marks.of_all(rig.kernel.sources.read()) != marks.of(own)
    kept.manual_blocks.clear()
    kept.apply()
    assert in_map(rig) == marks.of(own)
