# SPDX-License-Identifier: Apache-2.0
"""Addresses and prefixes: text in, text out, and what covers what."""

import ipaddress
import random

import pytest

from packetwatch import address
from packetwatch.address import Prefix, parse, parse_prefix, prefix_text

MAPPED = bytes(10) + b"\xff\xff"


@pytest.mark.parametrize(
    "text, form, back",
    [
        ("192.0.2.1", MAPPED + bytes([192, 0, 2, 1]), "192.0.2.1"),
        ("0.0.0.0", MAPPED + bytes(4), "0.0.0.0"),
        ("::ffff:192.0.2.1", MAPPED + bytes([192, 0, 2, 1]), "192.0.2.1"),
        ("::FFFF:c000:201", MAPPED + bytes([192, 0, 2, 1]), "192.0.2.1"),
        ("::", bytes(16), "::"),
        ("::1", bytes(15) + b"\1", "::1"),
        ("2001:DB8:0:0:0::80", bytes.fromhex("20010db8") + bytes(11) + b"\x80", "2001:db8::80"),
    ],
)
def test_an_address_is_read_and_written(text, form, back):
    assert parse(text) == form
    assert address.text(form) == back


@pytest.mark.parametrize(
    "text, word",
    [
        ("", "empty"),
        ("fe80::1%eth0", "scope"),
        ("192.0.2.1%eth0", "scope"),
        ("192.0.2", "not an IPv4 or IPv6"),
        ("192.0.2.256", "not an IPv4 or IPv6"),
        ("192.0.2.010", "not an IPv4 or IPv6"),
        (" 192.0.2.1", "not an IPv4 or IPv6"),
        ("[2001:db8::1]", "not an IPv4 or IPv6"),
        ("2001:db8::1::", "not an IPv4 or IPv6"),
        ("1234", "not an IPv4 or IPv6"),
        ("example.com", "not an IPv4 or IPv6"),
        ("::1\0", "not an IPv4 or IPv6"),
        ("١٩٢.0.2.1", "not an IPv4 or IPv6"),
        ("\udcff::", "not an IPv4 or IPv6"),
        ("9" * 100000, "not an IPv4 or IPv6"),
    ],
)
def test_what_is_no_address_is_refused_with_a_short_plain_sentence(text, word):
    with pytest.raises(ValueError, match=word) as caught:
        parse(text)
    message = str(caught.value)
    assert len(message) < 160 and message.isprintable() and "Error" not in message


@pytest.mark.parametrize(
    "text, length, back",
    [
        ("192.0.2.1", 128, "192.0.2.1"),
        ("192.0.2.1/32", 128, "192.0.2.1"),
        ("192.0.2.0/24", 120, "192.0.2.0/24"),
        ("0.0.0.0/0", 96, "0.0.0.0/0"),
        ("::ffff:192.0.2.0/120", 120, "192.0.2.0/24"),
        ("::ffff:0:0/96", 96, "0.0.0.0/0"),
        ("::/0", 0, "::/0"),
        ("::/96", 96, "::/96"),
        ("2001:db8::/32", 32, "2001:db8::/32"),
        ("2001:db8::1", 128, "2001:db8::1"),
    ],
)
def test_a_prefix_is_read_and_written(text, length, back):
    prefix = parse_prefix(text)
    assert prefix.length == length
    assert prefix_text(prefix) == back
    assert parse_prefix(back) == prefix


@pytest.mark.parametrize(
    "text, words",
    [
        ("10.0.0.5/8", "the prefix is 10.0.0.0/8"),
        ("2001:db8::1/64", "the prefix is 2001:db8::/64"),
        ("10.0.0.0/33", "from 0 to 32"),
        ("2001:db8::/129", "from 0 to 128"),
        ("10.0.0.0/", "from 0 to 32"),
        ("10.0.0.0/-1", "from 0 to 32"),
        ("10.0.0.0/+8", "from 0 to 32"),
        ("10.0.0.0/8/8", "from 0 to 32"),
        ("10.0.0.0/٨", "from 0 to 32"),
        ("10.0.0.0/255.0.0.0", "from 0 to 32"),
        ("10.0.0.0/" + "9" * 5000, "from 0 to 32"),
        ("/8", "empty"),
        ("fe80::%1/64", "scope"),
    ],
)
def test_what_is_no_prefix_is_refused(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_prefix(text)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    "outer, inner, expected",
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("10.0.0.0/8", "10.0.0.0/8", True),
        ("10.0.0.0/8", "10.0.0.0/7", False),
        ("0.0.0.0/0", "192.0.2.1", True),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "2001:db8::/32", True),
        ("::/0", "192.0.2.1", False),
        ("::/90", "0.0.0.0/0", False),
        ("2001:db8::1", "2001:db8::1", True),
    ],
)
def test_covers(outer, inner, expected):
    assert parse_prefix(outer).covers(parse_prefix(inner)) is expected


def test_covers_an_address_of_16_bytes():
    assert parse_prefix("10.0.0.0/8").covers(parse("10.255.255.255"))
    assert not parse_prefix("10.0.0.0/8").covers(parse("9.255.255.255"))


def test_text_and_prefixes_agree_with_ipaddress():
    draw = random.Random(1)
    for _ in range(2000):
        v4 = draw.random() < 0.5
        number = draw.getrandbits(32 if v4 else 128) & draw.getrandbits(32 if v4 else 128)
        length = draw.randint(0, 32 if v4 else 128)
        model = (ipaddress.IPv4Network if v4 else ipaddress.IPv6Network)((number, length), strict=False)
        prefix = parse_prefix(str(model))
        assert prefix.is_ipv4 is v4
        assert ipaddress.ip_network(prefix_text(prefix)) == model
        single = parse(str(model.network_address))
        assert ipaddress.ip_address(address.text(single)) == model.network_address
        other = ipaddress.ip_address(draw.getrandbits(32)) if v4 else ipaddress.ip_address(draw.getrandbits(128))
        assert prefix.covers(parse(str(other))) == (other in model)


def test_the_texts_kept_are_bounded():
    for number in range(20000):
        address.text(MAPPED + number.to_bytes(4, "big"))
    assert address.text.cache_info().currsize <= 8192


def test_a_prefix_sorts_after_those_that_cover_it():
    texts = ["10.0.0.0/16", "10.0.0.0/8", "10.0.0.1", "10.0.0.0/24"]
    assert [prefix_text(p) for p in sorted(map(parse_prefix, texts))] == [
        "10.0.0.0/8", "10.0.0.0/16", "10.0.0.0/24", "10.0.0.1"
    ]


def test_single_and_mask():
    here = parse("192.0.2.77")
    assert address.single(here) == Prefix(here, 128)
    assert address.text(address.mask(here, 120)) == "192.0.2.0"
    assert address.mask(here, 0) == bytes(16)


def test_text_of_unknown_origin_is_shown_escaped_and_cut():
    assert address.shown("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert len(address.shown("x" * 10**6)) < 80
