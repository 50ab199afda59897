# SPDX-License-Identifier: Apache-2.0
"""Addresses and prefixes in the one form used inside: 16 bytes, IPv6 or v4-mapped IPv6.

Text is read and written here and nowhere else. Not for names, scopes or interfaces; of ``socket``
only the two pure conversions are used.
"""

from __future__ import annotations

import functools
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import NamedTuple, Union

MAPPED = bytes(10) + b"\xff\xff"
SIZE = 16
BITS = 128
IPV4_OFFSET = 96  #: an IPv4 prefix /n has the length 96 + n


class Prefix(NamedTuple):
    """A network: 16 bytes with host bits zero, and 0..128 leading bits that count.

    Prefixes sort so that one follows all that cover it, within its family.
    """

    network: bytes
    length: int

    def covers(self, other: Union[bytes, Prefix]) -> bool:
        """Whether an address or a whole prefix lies inside. An IPv6 prefix never covers IPv4, not even ::/0."""
        network, length = other if isinstance(other, Prefix) else (other, BITS)
        if length < self.length or is_ipv4(network) != is_ipv4(self.network):
            return False
        return mask(network, self.length) == self.network

    @property
    def is_ipv4(self) -> bool:
        return is_ipv4(self.network)


IPV4 = Prefix(MAPPED + bytes(4), IPV4_OFFSET)  #: all of IPv4: 0.0.0.0/0


def is_ipv4(address: bytes) -> bool:
    """Whether 16 bytes hold an IPv4 address (v4-mapped)."""
    return address.startswith(MAPPED)


def mask(address: bytes, length: int) -> bytes:
    """The address with all but the first ``length`` (0..128) bits zero."""
    spare = BITS - length
    return (int.from_bytes(address, "big") >> spare << spare).to_bytes(SIZE, "big")


def single(address: bytes) -> Prefix:
    """The prefix that holds this address alone."""
    return Prefix(address, BITS)


def parse(text: str) -> bytes:
    """An address in text as 16 bytes; ``::ffff:192.0.2.1`` is 192.0.2.1. Raises ValueError with a plain sentence."""
    if not text:
        raise ValueError("the address is empty")
    if "%" in text:
        raise ValueError(f"{shown(text)} has a scope; write the address without the part from % on")
    try:
        return inet_pton(AF_INET6, text) if ":" in text else MAPPED + inet_pton(AF_INET, text)
    except (OSError, ValueError):  # the latter for NUL and what is not ASCII
        raise ValueError(f"{shown(text)} is not an IPv4 or IPv6 address") from None


def parse_prefix(text: str) -> Prefix:
    """``ADDRESS`` or ``ADDRESS/LENGTH`` as a Prefix. Raises ValueError with a plain sentence."""
    host, slash, bits = text.partition("/")
    address = parse(host)
    if not slash:
        return single(address)
    longest = BITS if ":" in host else BITS - IPV4_OFFSET
    if not (bits.isascii() and bits.isdigit() and len(bits) <= 3 and int(bits) <= longest):
        raise ValueError(f"{shown(text)} has no prefix length from 0 to {longest} after the slash")
    length = int(bits) + BITS - longest
    prefix = Prefix(mask(address, length), length)
    if prefix.network != address:
        raise ValueError(f"{text} has bits set beyond its length; the prefix is {prefix_text(prefix)}")
    return prefix


@functools.lru_cache(maxsize=8192)  # about 1.5 MB; a flood of forged sources must not grow it
def text(address: bytes) -> str:
    """The usual text: dotted for IPv4, compressed for IPv6 (RFC 5952)."""
    if address.startswith(MAPPED):
        return inet_ntop(AF_INET, address[12:])
    return inet_ntop(AF_INET6, address)


def prefix_text(prefix: Prefix) -> str:
    """``192.0.2.0/24``; a single address stands without its length."""
    if prefix.length == BITS:
        return text(prefix.network)
    return f"{text(prefix.network)}/{prefix.length - (IPV4_OFFSET if prefix.is_ipv4 else 0)}"


def shown(value: str, limit: int = 60) -> str:
    """Text of unknown origin, quoted, escaped and cut, fit for a message."""
    return ascii(value) if len(value) <= limit else ascii(value[:limit]) + "…"
