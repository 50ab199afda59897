# SPDX-License-Identifier: Apache-2.0
"""Which addresses no entry of the table `sources` covers, as a set of marks; may_be_listed() in bpf/packetwatch.c asks.

Exact where the answer is no; where it is yes, the table is asked. Says nothing of what entries mean.
"""

from __future__ import annotations

import functools
import operator
import struct
from collections.abc import Iterable

from packetwatch.address import BITS, Prefix

COUNT = 1 << 16  #: of each family
SIZE = 2 * COUNT // 8  #: bytes of a set
_NETWORK4, _NETWORK6 = 112, 32  # bits of the networks that have a mark


def of(prefix: Prefix) -> int:
    """The marks that an entry sets: that of an address, or those of all networks that it touches.

    Mark n is bit n, those of IPv6 come after those of IPv4. An address's mark is the sum (xor) of its
    words of 16 bits; that of its network is its first word in IPv4, the sum of its first two in IPv6.
    """
    words: tuple[int, ...] = struct.unpack("!8H", prefix.network)
    first, bits = (words[6], _NETWORK4) if prefix.is_ipv4 else (words[0] ^ words[1], _NETWORK6)
    free = min(16, max(0, bits - prefix.length))
    if prefix.length == BITS:
        first = functools.reduce(operator.xor, words)
    start = first >> free << free
    return ((1 << (1 << free)) - 1) << (start if prefix.is_ipv4 else COUNT + start)


def of_all(prefixes: Iterable[Prefix]) -> int:
    return functools.reduce(operator.or_, map(of, prefixes), 0)


def packed(marks: int) -> bytes:
    """As the map holds them."""
    return marks.to_bytes(SIZE, "little")


def unpacked(value: bytes) -> int:
    return int.from_bytes(value, "little")
