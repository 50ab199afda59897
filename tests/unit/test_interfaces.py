# SPDX-License-Identifier: Apache-2.0
"""Which interfaces are wanted, where they sit, and the decoding of odd messages; without a kernel."""

from __future__ import annotations

import struct

import pytest

from packetwatch import interfaces, netlink
from packetwatch.address import parse
from packetwatch.netlink import DefaultRoute, Link, Xdp

IPV4, IPV6 = 2, 10
MAC, OTHER = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"

LO = Link(1, "lo", bytes(6), arptype=772)
ETH0 = Link(2, "eth0", MAC)
ETH1 = Link(3, "eth1", OTHER)
WG0 = Link(4, "wg0", b"", "wireguard", arptype=65534)
TUN = Link(5, "gre1", b"", "gre", arptype=778, lower=2)
LINKS = [LO, ETH0, ETH1, WG0, TUN]


def route(oif, gateway=None, family=IPV4, table=254):
    return DefaultRoute(family, oif, parse(gateway) if gateway else None, table)


@pytest.mark.parametrize(
    "patterns, routes, expected",
    [
        (["default-route"], [], []),
        (["default-route"], [route(3, "192.0.2.1")], ["eth1"]),
        (["default-route"], [route(3), route(2, "fe80::1", IPV6), route(3, "fe80::1", IPV6)], ["eth0", "eth1"]),
        (["default-route"], [route(99)], []),
        (["eth1", "default-route"], [route(2), route(3)], ["eth1", "eth0"]),
        (["lo"], [], ["lo"]),
        (["*"], [], ["eth0", "eth1", "wg0", "gre1"]),
        (["l?"], [], []),
        (["lo", "*"], [], ["lo", "eth0", "eth1", "wg0", "gre1"]),
        (["eth*", "eth0"], [], ["eth0", "eth1"]),
        (["eth[1-9]"], [], ["eth1"]),
        (["ETH*"], [], []),
        (["eth7", "eth*"], [], ["eth7", "eth0", "eth1"]),
        (["eth7", "eth7"], [], ["eth7"]),
        (["zz*"], [], []),
        ([], [route(2)], []),
    ],
)
def test_wanted(patterns, routes, expected):
    assert [want.name for want in interfaces.wanted(patterns, LINKS, routes)] == expected


def test_a_missing_name_is_kept_and_says_who_asked():
    found = interfaces.wanted(["eth7", "eth*"], LINKS, [])
    assert found[0] == interfaces.Wanted("eth7", "eth7", None, "")
    assert found[1] == interfaces.Wanted("eth0", "eth*", ETH0, "")


@pytest.mark.parametrize(
    "link, fault",
    [
        (ETH0, ""),
        (LO, ""),
        (WG0, "wg0 carries no Ethernet frames; attach to the interface below it"),
        (TUN, "gre1 carries no Ethernet frames; attach to eth0 below it"),
    ],
)
def test_what_cannot_be_watched_says_why(link, fault):
    (want,) = interfaces.wanted([link.name], LINKS, [])
    assert (want.link, want.fault) == (link, fault)


def with_kind(kind, **more):
    return Link(20, "x0", MAC, kind, **more)


#: The link asked about, the others, where it sits, whether the MAC test holds.
SEATS = [
    (ETH0, [ETH1, LO], "", True),
    (LO, [], "", True),
    (WG0, [], "", False),
    (with_kind("veth", lower=21), [Link(21, "x1", OTHER, "veth", lower=20)], "", True),
    (with_kind("bond"), [ETH0._replace(master=20), ETH1._replace(master=20)], "x0 (bond of eth0, eth1)", False),
    (with_kind("bridge"), [], "x0 (bridge without ports)", False),
    (with_kind("team"), [ETH0._replace(master=20)], "x0 (team of eth0)", False),
    (with_kind("openvswitch"), [], "", False),
    (ETH0._replace(master=20), [with_kind("bond")], "eth0 (port of bond x0)", False),
    (ETH0._replace(master=20), [with_kind("bridge")], "eth0 (port of bridge x0)", False),
    (ETH0._replace(master=20), [with_kind("openvswitch")], "eth0 (port of openvswitch x0)", False),
    (ETH0._replace(master=20), [with_kind("vrf")], "eth0 (in VRF x0)", True),
    (ETH0._replace(master=20), [], "", False),
    (with_kind("vlan", lower=2), [ETH0], "x0 (VLAN on eth0)", True),
    (with_kind("vlan"), [ETH0], "x0 (VLAN on an interface of another namespace)", True),
    (with_kind("vlan", lower=2, master=30), [ETH0, Link(30, "br0", MAC, "bridge")],
     "x0 (VLAN on eth0, port of bridge br0)", False),
    (with_kind("macvlan", lower=2), [ETH0], "x0 (macvlan on eth0)", False),
    (ETH0, [with_kind("macvlan", lower=2)], "", False),
    (ETH0, [with_kind("macvtap", lower=2)], "", False),
    (ETH0, [with_kind("ipvlan", lower=2)], "", False),
    (ETH0, [with_kind("ipvtap", lower=2)], "", False),
    (ETH0, [with_kind("macvlan", lower=3)], "", True),
    (ETH0, [with_kind("vxlan", lower=2)._replace(mac=OTHER)], "", True),
    (ETH0, [with_kind("vlan", lower=2)], "", True),
    (ETH0, [with_kind("vlan", lower=2)._replace(mac=OTHER)], "", False),
    (ETH0, [with_kind("vlan", lower=2), Link(21, "mv0", OTHER, "macvlan", lower=20)], "", False),
    (ETH0, [with_kind("vlan", lower=2), Link(21, "x0.7", OTHER, "vlan", lower=20)], "", False),
    (ETH0, [with_kind("vlan", lower=2, master=30), Link(30, "br0", MAC, "bridge")], "", False),
]


@pytest.mark.parametrize("link, others, seat, test", SEATS)
def test_where_it_sits(link, others, seat, test):
    links = [link, *others]
    assert (interfaces.seat(link, links), interfaces.mac_test(link, links)) == (seat, test)


def test_links_read_while_they_change_may_form_a_circle():
    links = [Link(2, "a", MAC, "vlan", lower=3), Link(3, "b", MAC, "vlan", lower=2)]
    assert interfaces.mac_test(links[0], links) is False


def test_gateways():
    routes = [route(2, "192.0.2.1"), route(3), route(3, "fe80::1", IPV6), route(2, "192.0.2.1", table=7)]
    assert interfaces.gateways(routes) == {parse("192.0.2.1"), parse("fe80::1")}


@pytest.mark.parametrize(
    "attached, own, expected",
    [
        ((), (), None),
        ((Xdp(7, "native"),), {7}, None),
        ((Xdp(7, "native"),), {8}, (7, "native")),
        ((Xdp(7, "native"), Xdp(9, "offload")), [7], (9, "offload")),
    ],
)
def test_foreign_xdp(attached, own, expected):
    assert interfaces.foreign_xdp(ETH0._replace(xdp=attached), own) == expected


# Decoding what no kernel here sends


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def number(kind, value):
    return attribute(kind, struct.pack("=I", value))


def decoded(*attributes, family=0):
    return list(netlink.decode_link(memoryview(struct.pack("=BxHiII", family, 1, 7, 1, 0) + b"".join(attributes))))


NAME = attribute(3, b"eth7\0")


def test_a_program_per_mode():
    nested = attribute(2, b"\4") + number(5, 11) + number(6, 12) + number(7, 13)
    (link,) = decoded(NAME, attribute(43, nested))
    assert link.xdp == (Xdp(11, "native"), Xdp(12, "generic"), Xdp(13, "offload"))


def test_nested_flag_in_the_type_is_no_part_of_it():
    (link,) = decoded(NAME, attribute(18 | 0x8000, attribute(1, b"vrf\0") + attribute(2 | 0x8000, number(1, 77))))
    assert (link.kind, link.table) == ("vrf", 77)


def test_the_first_value_of_another_kinds_details_is_no_table():
    (link,) = decoded(NAME, attribute(18, attribute(1, b"vlan\0") + attribute(2, number(1, 77))))
    assert (link.kind, link.table) == ("vlan", 0)


def test_lower_counts_only_in_this_namespace():
    assert decoded(NAME, number(5, 3))[0].lower == 3
    assert decoded(NAME, number(5, 3), number(37, 0))[0].lower == 0


def test_a_bridge_port_message_is_no_link():
    assert decoded(NAME, family=7) == []
    assert decoded() == []


@pytest.mark.parametrize("tail", [b"\0", b"\0\0\0\0", b"\3\0\1\0", b"\xff\xff\1\0", bytes(3)])
def test_a_torn_attribute_ends_the_list(tail):
    (link,) = decoded(NAME, number(4, 1400), tail)
    assert (link.name, link.mtu) == ("eth7", 1400)


def test_a_torn_datagram_ends_the_messages():
    whole = struct.pack("=IHHII", 20, 16, 0, 1, 0) + b"body"
    for tail in (b"", b"\1", struct.pack("=IHHII", 3, 16, 0, 1, 0)):
        assert [(kind, bytes(payload)) for kind, _, payload in netlink._messages(whole + tail)] == [(16, b"body")]


def test_next_hops_of_a_torn_multipath_attribute():
    hop = struct.pack("=HBBi", 16, 0, 0, 2) + attribute(5, b"\xc0\0\2\1")
    whole = [netlink._Hop(2, parse("192.0.2.1"))]
    for tail in (b"", b"\x10\0", struct.pack("=HBBi", 4, 0, 0, 3)):
        assert list(netlink._multipath(hop + tail, IPV4)) == whole
