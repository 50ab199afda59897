# SPDX-License-Identifier: Apache-2.0
"""The maps as user space reads and writes them."""

from __future__ import annotations

import os
import struct

import pytest

from packetwatch import libbpf, rules
from packetwatch.address import parse, parse_prefix
from packetwatch.kernel import Block, Counters, ZERO
from packetwatch.rules import Source
from tests.bpf import harness, traffic

TEXTS = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.1", "::/0", "2001:db8::/32", "2001:db8::1")
PREFIXES = [parse_prefix(text) for text in TEXTS]


def test_local_prefixes_are_read_back_and_removed_one_by_one(rig):
    for prefix in PREFIXES:
        rig.kernel.local.add(prefix)
    rig.kernel.local.add(PREFIXES[0])
    assert rig.kernel.local.read() == set(PREFIXES)
    rig.kernel.local.remove(PREFIXES[1])
    rig.kernel.local.remove(PREFIXES[1])
    assert rig.kernel.local.read() == set(PREFIXES) - {PREFIXES[1]}


def test_sources_are_read_back_with_flags_and_end(rig):
    wanted = {prefix: Source(1 << number % 3, number) for number, prefix in enumerate(PREFIXES)}
    for prefix, source in wanted.items():
        rig.kernel.sources.put(prefix, source)
    assert rig.kernel.sources.read() == wanted
    rig.kernel.sources.remove(PREFIXES[0])
    assert set(rig.kernel.sources.read()) == set(PREFIXES[1:])


def test_a_local_prefix_makes_all_its_addresses_local(rig):
    rig.local("10.9.0.0/30")
    rig.run(traffic.frame(traffic.A, 80))
    assert rig.counters().syns == (1, 0)
    rig.kernel.local.remove(parse_prefix("10.9.0.0/30"))
    rig.kernel.lists_changed()
    rig.run(traffic.frame(traffic.A, 80))
    assert rig.counters().syns == (1, 0) and rig.counters().ignored[0] == 1


def test_blocks_are_put_read_and_removed(rig):
    blocks = [Block(parse(f"2001:db8::{number:x}"), number, 7, number * 2, 3) for number in range(1000)]
    assert all(rig.kernel.blocks.put(block) for block in blocks)
    assert sorted(rig.kernel.blocks.read()) == sorted(blocks)
    assert rig.kernel.blocks.get(blocks[5].address) == blocks[5]
    assert rig.kernel.blocks.remove(blocks[5].prefix) == blocks[5]
    assert rig.kernel.blocks.remove(blocks[5].prefix) is None and rig.kernel.blocks.get(blocks[5].address) is None


def test_settings_are_read_back(rig):
    wanted = harness.SETTINGS._replace(window_ns=1 << 50, observe=1, ports=64, generation=1, seed=(1 << 64) - 1)
    rig.kernel.apply(wanted)
    assert rig.kernel.settings() == wanted


def test_counters_add_up_and_clear(rig):
    traffic.prepare(rig)
    traffic.send(rig, traffic.A, 80)
    counted = rig.kernel.counters(0)
    assert counted.plus(counted).syns == (2, 0) and counted.plus(ZERO) == counted
    assert Counters.of(counted.words()) == counted
    rig.records()
    rig.seen.clear()
    rig.kernel.clear_counters(0)
    assert rig.kernel.counters(0) == ZERO


def test_a_hash_of_many_batches_is_read_whole():
    fd = libbpf._create_map(1, 4, 8, 20000)  # BPF_MAP_TYPE_HASH
    try:
        wanted = {struct.pack("=I", number): struct.pack("=Q", number * 3) for number in range(20000)}
        for key, value in wanted.items():
            libbpf.update(fd, key, value)
        assert sorted(libbpf.items(fd, 4, 8)) == sorted(wanted.items())
        assert sorted(libbpf.keys(fd, 4)) == sorted(wanted)
    finally:
        os.close(fd)


def test_errors_carry_the_kernels_number(rig):
    with pytest.raises(OSError) as fault:
        libbpf.lookup(0, bytes(4), 8)
    assert fault.value.errno
    assert not libbpf.delete(rig.kernel.maps["blocks"], bytes(16))
    assert libbpf.lookup(rig.kernel.maps["blocks"], bytes(16), 32) is None
    rig.source("10.0.0.0/8", rules.OWN)
    with pytest.raises(FileExistsError):
        libbpf.update(rig.kernel.maps["settings"], bytes(4), bytes(64), libbpf.NOEXIST)
