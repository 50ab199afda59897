# SPDX-License-Identifier: Apache-2.0
"""Random SYNs whose headers are right or wrong in ways that a host's stack tells apart: options, chains, lengths.

Left out is what the program does not model: checksums (and so padding that gets into them), options' contents.
"""

from __future__ import annotations

from tests import frames as f
from tests.bpf import rows


def often(chance, probability, value, otherwise):
    return value() if chance.random() < probability else otherwise


def ipv4_options(chance):
    options = b""
    while len(options) < 40 and chance.random() < 0.8:
        kind = chance.choice((0, 1, 1, f.RECORD_ROUTE, f.TIMESTAMP, f.ROUTER_ALERT, f.LSRR, 30, 94, 136))
        if kind < 2:
            options += bytes([kind])
            continue
        length = chance.choice((0, 1, 2, 3, 4, 7, 8, 11, 12, chance.randrange(40)))
        body = bytearray(chance.choice((0, 1, 3, 0x13, 0xF0, chance.randrange(256))) for _ in range(length - 2))
        body[:1] = bytes([chance.choice((3, 4, 5, 6, 8, 9, length, length + 1))])[: len(body)]
        options += bytes([kind, length]) + body
    return options[:40]


def segment(chance):
    return {
        "flags": f.SYN | chance.randrange(256) & (f.PSH | f.URG | f.ECE | f.CWR),
        "reserved": chance.randrange(16),
        "options": f.NOOP * 4 * often(chance, 0.3, lambda: chance.randrange(11), 0),
        "payload": bytes(often(chance, 0.3, lambda: chance.randrange(80), 0)),
        "doff": often(chance, 0.1, lambda: chance.randrange(6), None),
    }


def ethernet(chance, proto):
    return {
        "proto": proto,
        "tags": [(chance.choice((f.ETH_8021Q, f.ETH_8021AD)), 0)] * often(chance, 0.2, lambda: chance.randrange(13), 0),
        "cut": often(chance, 0.1, lambda: chance.randrange(14, 120), None),
    }


def ipv4(chance):
    header = {
        "options": often(chance, 0.7, lambda: ipv4_options(chance), b""),
        "version": often(chance, 0.05, lambda: chance.randrange(16), 4),
        "total": often(chance, 0.1, lambda: chance.choice((0, 19, 20, 33, 39)), None),
        "ident": chance.randrange(1 << 16),
    }
    return rows.v4(tcp=segment(chance), ip=header, pad=chance.choice((0, 0, 7)), **ethernet(chance, f.ETH_IPV4))


def extension(chance):
    size, body = 8 * chance.randrange(1, 20), bytes(chance.choice((4, 12, 20)))
    return chance.choice((
        lambda: f.options_header(f.DESTINATION, size),
        lambda: f.options_header(f.DESTINATION, size),
        lambda: f.options_header(f.HOP_BY_HOP, size),
        lambda: f.routing_header(chance.choice((0, 1, 5, 77)), chance.choice((0, 0, 1)), body),
        lambda: f.fragment_header(ident=chance.randrange(1 << 32)),
    ))()


def ipv6(chance):
    chain = [extension(chance) for _ in range(chance.choice((0, 1, 1, 2, 3, 5)))]
    header = {
        "version": often(chance, 0.05, lambda: chance.randrange(16), 6),
        "length": often(chance, 0.2, lambda: 0, None),
    }
    return rows.v6(*chain, tcp=segment(chance), ip=header, **ethernet(chance, f.ETH_IPV6))


def build(chance, ends):
    return chance.choice((ipv4, ipv6))(chance)(ends)
