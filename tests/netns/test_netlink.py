# SPDX-License-Identifier: Apache-2.0
"""netlink and interfaces against real namespaces: links, local prefixes, default routes, seats, and what is told of."""

from __future__ import annotations

import collections
import ctypes
import errno
import os
import select
import socket
import struct

import pytest

from packetwatch import interfaces, libbpf, netlink
from packetwatch.address import parse, parse_prefix, prefix_text, text

from .conftest import call, kernel_makes

NOBODY = 65534


def names(links):
    return {link.name: link for link in links}


def link_in(ns, name):
    with ns.enter():
        return names(netlink.links()).get(name)


def local_in(ns):
    with ns.enter():
        return {prefix_text(prefix) for prefix in netlink.local_prefixes()}


def routes_in(ns):
    """Default routes as (interface, gateway as text or "", table)."""
    with ns.enter():
        by_index = {link.index: link.name for link in netlink.links()}
        found = netlink.default_routes()
    return sorted((by_index[route.oif], text(route.gateway) if route.gateway else "", route.table) for route in found)


@pytest.fixture
def watched(netns):
    """A namespace and a monitor in it; ``changes()`` gives what it tells."""
    ns = netns()
    with ns.enter():
        monitor = netlink.Monitor()
    settle(monitor)
    yield ns, lambda: settle(monitor)
    monitor.close()


def settle(monitor):
    """All that is told until 0.15 s of silence."""
    found = set()
    while select.select([monitor], [], [], 0.15)[0]:
        found |= monitor.drain()
    return found


def told(changes, wanted, tries=30):
    """IPv6 tells some things late: waits until what is wanted has been told."""
    found = set()
    for _ in range(tries):
        found |= changes()
        if wanted <= found:
            break
    return found


# Links


def test_a_link_as_ip_shows_it(netns, veth):
    a, b = netns(), netns()
    veth(a, "eth0", b, "far")
    a.ip("link set eth0 address 02:00:00:00:00:07 mtu 1280")
    link = link_in(a, "eth0")
    assert (link.kind, link.arptype, link.up, link.mtu) == ("veth", 1, True, 1280)
    assert link.mac.hex(":") == "02:00:00:00:00:07"
    assert link.lower == 0, "the peer's index is of another namespace"
    a.ip("link set eth0 down")
    assert not link_in(a, "eth0").up


def test_a_peer_in_the_same_namespace_is_the_lower_link(netns, veth):
    ns = netns()
    veth(ns, "one", ns, "two")
    assert link_in(ns, "one").lower == link_in(ns, "two").index


def test_loopback(netns):
    link = link_in(netns(), "lo")
    assert (link.index, link.arptype, link.mac, link.kind) == (1, 772, bytes(6), "")


def test_many_links_come_in_several_messages(netns):
    ns = netns()
    lines = "".join(f"link add name v{n} type veth peer name w{n}\n" for n in range(150))
    ns.run(["ip", "-batch", "-"], input=lines)
    with ns.enter():
        found = netlink.links()
    assert len(found) == 301
    assert [link.index for link in found] == sorted(link.index for link in found)


def test_an_odd_name_survives(netns):
    ns = netns()
    ns.ip("link add name é;* type veth peer name other")
    assert "é;*" in {link.name for link in _links(ns)}


def _links(ns):
    with ns.enter():
        return netlink.links()


def test_changes_during_a_dump_do_not_break_it(netns, tmp_path):
    ns = netns()
    ns.run(["ip", "-batch", "-"], input="".join(f"link add name v{n} type veth peer name w{n}\n" for n in range(100)))
    (tmp_path / "churn").write_text("link set v1 name x1\nlink set x1 name v1\n" * 50_000)
    churn = ns.popen(["ip", "-batch", tmp_path / "churn"])
    seen = collections.Counter()
    try:
        while min(seen["v1"], seen["x1"]) < 10:
            found = _links(ns)
            assert len(found) == 201 and churn.poll() is None
            seen.update(link.name for link in found)
    finally:
        churn.kill()
        churn.wait()


def test_an_interrupted_dump_is_repeated_and_at_last_taken(monkeypatch):
    answers = iter([(["torn"], False), (["whole"], True)])
    monkeypatch.setattr(netlink, "_dump_once", lambda *_: next(answers))
    assert netlink._dump("links", 0, b"", lambda data: []) == ["whole"]
    monkeypatch.setattr(netlink, "_dump_once", lambda *_: (["torn"], False))
    assert netlink._dump("links", 0, b"", lambda data: []) == ["torn"]


def test_an_error_names_what_was_asked(netns):
    with pytest.raises(OSError, match="cannot list the planets through netlink: ") as caught:
        netlink._dump("planets", netlink._GETROUTE, b"\2\0\0", lambda data: [])
    assert caught.value.errno == errno.EINVAL


def load_pass():
    """The descriptor of an XDP program that lets everything through: r0 = XDP_PASS; exit."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)
    library = libbpf._load()
    if hasattr(library, "bpf_map_create"):  # libbpf 0.7
        fd = library.bpf_prog_load(6, b"foreign", b"GPL", code, 2, None)
    else:
        fd = library.bpf_load_program(6, code, ctypes.c_size_t(2), b"GPL", 0, None, ctypes.c_size_t(0))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd


@pytest.mark.parametrize("mode, flags", [("native", libbpf.XDP_FLAGS_DRV_MODE), ("generic", libbpf.XDP_FLAGS_SKB_MODE)])
def test_xdp_program_and_mode(netns, veth, mode, flags):
    ns = netns()
    veth(ns, "eth0", ns, "far")
    before = link_in(ns, "eth0")
    assert before.xdp == ()
    program = load_pass()
    with ns.enter():
        attached = libbpf.link_xdp(program, before.index, flags)
    during = link_in(ns, "eth0")
    os.close(attached)
    os.close(program)
    ((number, found),) = during.xdp
    assert found == mode and number > 0
    assert interfaces.foreign_xdp(during, {number + 1}) == (number, mode)
    assert interfaces.foreign_xdp(during, {number}) is None
    assert link_in(ns, "eth0").xdp == ()


# Local prefixes


def test_a_new_namespace_takes_only_loopback(netns):
    assert local_in(netns()) == {"127.0.0.0/8", "127.0.0.1", "::1"}


def test_addresses_of_an_interface_without_a_wire(netns):
    ns = netns()
    ns.device("dummy0")
    ns.ip("address add 192.0.2.7/24 dev dummy0")
    ns.ip("address add 2001:db8::7/64 dev dummy0 nodad")
    local = local_in(ns)
    assert {"192.0.2.7", "2001:db8::7"} <= local
    assert not {"192.0.2.0/24", "192.0.2.255", "2001:db8::/64"} & local


def test_a_whole_prefix_can_be_local(netns):
    ns = netns()
    ns.ip("route add local 198.51.100.0/24 dev lo")
    ns.ip("-6 route add local 2001:db8:5::/48 dev lo")
    assert {"198.51.100.0/24", "2001:db8:5::/48"} <= local_in(ns)
    ns.ip("route del local 198.51.100.0/24 dev lo")
    assert "198.51.100.0/24" not in local_in(ns)


def test_local_routes_of_a_marked_table_do_not_count(netns):
    ns = netns()
    ns.ip("route add local 0.0.0.0/0 dev lo table 100")
    ns.ip("route add local 198.51.100.9 dev lo table 1000")
    assert local_in(ns) == {"127.0.0.0/8", "127.0.0.1", "::1"}


def test_an_address_that_moves_like_keepalived_moves_it(netns, veth):
    a, b = netns(), netns()
    veth(a, "eth0", b, "eth0", ["192.0.2.1/24"], ["192.0.2.2/24"])
    with a.enter():
        monitor_a = netlink.Monitor()
    with b.enter():
        monitor_b = netlink.Monitor()
    with monitor_a, monitor_b:
        a.ip("address add 192.0.2.100/32 dev eth0")
        assert {"address", "route"} <= told(lambda: settle(monitor_a), {"address", "route"})
        assert "192.0.2.100" in local_in(a) and "192.0.2.100" not in local_in(b)
        a.ip("address del 192.0.2.100/32 dev eth0")
        b.ip("address add 192.0.2.100/32 dev eth0")
        for monitor in (monitor_a, monitor_b):
            assert {"address", "route"} <= told(lambda: settle(monitor), {"address", "route"})
        assert "192.0.2.100" not in local_in(a) and "192.0.2.100" in local_in(b)


def test_many_addresses(netns):
    ns = netns()
    lines = "".join(f"address add 10.1.{n >> 8}.{n & 255}/32 dev lo\n" for n in range(2000))
    ns.run(["ip", "-batch", "-"], input=lines)
    assert len([text for prefix in local_in(ns) if prefix.startswith("10.1.")]) == 2000


# Default routes


def test_no_default_route(netns):
    ns = netns()
    ns.device("dummy0")
    ns.ip("address add 192.0.2.7/24 dev dummy0")
    assert routes_in(ns) == []


def test_default_routes_of_both_families(netns):
    ns = netns()
    ns.device("one")
    ns.device("two")
    ns.ip("address add 192.0.2.7/24 dev one")
    ns.ip("route add default via 192.0.2.1")
    ns.ip("-6 route add default via fe80::1 dev two")
    ns.ip("route add default dev two metric 500")
    assert routes_in(ns) == [("one", "192.0.2.1", 254), ("two", "", 254), ("two", "fe80::1", 254)]


def test_every_next_hop_of_a_multipath_route(netns):
    ns = netns()
    for number, name in enumerate(("one", "two")):
        ns.device(name)
        ns.ip(f"address add 192.0.{number}.7/24 dev {name}")
    ns.ip("route add default nexthop via 192.0.0.1 nexthop via 192.0.1.1 weight 3")
    ns.ip("-6 route add default nexthop via fe80::1 dev one nexthop via fe80::2 dev two")
    assert routes_in(ns) == [
        ("one", "192.0.0.1", 254), ("one", "fe80::1", 254), ("two", "192.0.1.1", 254), ("two", "fe80::2", 254),
    ]


def test_an_ipv4_default_route_over_an_ipv6_gateway(netns):
    ns = netns()
    ns.device("one")
    ns.ip("route add default via inet6 fe80::1 dev one")
    assert routes_in(ns) == [("one", "fe80::1", 254)]


def test_default_routes_in_other_tables_count(netns):
    ns = netns()
    ns.device("one")
    ns.ip("route add default dev one table 51820")
    ns.ip("-6 route add default dev one table 7")
    assert routes_in(ns) == [("one", "", 7), ("one", "", 51820)]


def test_what_leads_nowhere_is_no_default_route(netns):
    ns = netns()
    ns.ip("route add unreachable default")
    ns.ip("-6 route add blackhole default")
    ns.ip("route add local default dev lo table 100")
    assert routes_in(ns) == []


@pytest.mark.parametrize("compatible", [1, 0])
def test_nexthop_objects(netns, compatible):
    ns = netns()
    ns.sysctl("net.ipv4.nexthop_compat_mode", compatible)
    for number, name in enumerate(("one", "two")):
        ns.device(name)
        ns.ip(f"address add 192.0.{number}.7/24 dev {name}")
        ns.ip(f"nexthop add id {number + 1} via 192.0.{number}.1 dev {name}")
    ns.ip("nexthop add id 9 group 1/2")
    ns.ip("nexthop add id 5 via fe80::5 dev two")
    ns.ip("route add default nhid 9")
    ns.ip("-6 route add default nhid 5")
    assert routes_in(ns) == [("one", "192.0.0.1", 254), ("two", "192.0.1.1", 254), ("two", "fe80::5", 254)]


def test_without_ipv6(netns):
    ns = netns()
    ns.device("one")
    ns.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    ns.ip("route add default dev one")
    assert routes_in(ns) == [("one", "", 254)]
    assert local_in(ns) == {"127.0.0.0/8", "127.0.0.1"}


# The monitor


def test_nothing_happens_nothing_is_told(watched):
    _, changes = watched
    assert changes() == set()


@pytest.mark.parametrize(
    "before, command, expected",
    [
        ([], "link add name v0 type veth peer name v1", {"link"}),
        (["link add name v0 type veth peer name v1"], "link del v0", {"link"}),
        (["link add name v0 type veth peer name v1"], "link set v0 name v9", {"link"}),
        (["link add name v0 type veth peer name v1"], "link set v0 address 02:00:00:00:00:09", {"link"}),
        (["link add name v0 type veth peer name v1"], "address add 192.0.2.7/24 dev v0", {"address", "route"}),
        ([], "address add 2001:db8::7/64 dev lo nodad", {"address", "route"}),
        (["address add 192.0.2.7/24 dev lo"], "address del 192.0.2.7/24 dev lo", {"address", "route"}),
        ([], "route add local 198.51.100.0/24 dev lo", {"route"}),
        ([], "-6 route add local 2001:db8:5::/48 dev lo", {"route"}),
        (["route add default dev lo"], "route del default", {"route"}),
        ([], "-6 route add default dev lo", {"route"}),
        ([], "route add 203.0.113.0/24 dev lo", set()),
        ([], "-6 route add 2001:db8:9::/48 dev lo", set()),
        ([], "nexthop add id 3 dev lo", {"route"}),
    ],
)
def test_what_is_told(watched, before, command, expected):
    ns, changes = watched
    for line in before:
        ns.ip(line)
    changes()
    ns.ip(command)
    assert told(changes, expected) == expected


def test_a_router_full_of_routes_wakes_nobody(netns):
    ns = netns()
    lines = "".join(f"route add 10.{n >> 8}.{n & 255}.0/24 dev lo\n" for n in range(5000))
    with ns.enter(), netlink.Monitor() as monitor:
        ns.run(["ip", "-batch", "-"], input=lines)
        assert not select.select([monitor], [], [], 0.5)[0]
        ns.ip("route add default dev lo")
        assert settle(monitor) == {"route"}
        assert [route.oif for route in netlink.default_routes()] == [1]


def test_without_the_kernels_filter_the_same_is_told(netns, monkeypatch):
    monkeypatch.setattr(netlink, "_attach_filter", lambda sock: None)
    ns = netns()
    with ns.enter(), netlink.Monitor() as monitor:
        ns.ip("route add 10.0.0.0/24 dev lo")
        assert select.select([monitor], [], [], 1)[0]
        assert settle(monitor) == set()
        ns.ip("route add local 10.0.1.0/24 dev lo")
        assert settle(monitor) == {"route"}


def test_an_overflow_means_read_all_again(netns, monkeypatch):
    monkeypatch.setattr(netlink, "_widen", lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1))
    ns = netns()
    with ns.enter(), netlink.Monitor() as monitor:
        ns.run(["ip", "-batch", "-"], input="".join(f"route add local 10.9.{n}.0/24 dev lo\n" for n in range(200)))
        assert settle(monitor) == {"link", "address", "route", "resync"}
        ns.ip("route add local 10.10.0.0/24 dev lo")
        assert settle(monitor) == {"route"}, "it goes on after the overflow"


def test_one_drain_is_bounded(netns, monkeypatch):
    monkeypatch.setattr(netlink, "_DRAIN_LIMIT", 3)
    ns = netns()
    with ns.enter(), netlink.Monitor() as monitor:
        ns.run(["ip", "-batch", "-"], input="".join(f"route add local 10.9.{n}.0/24 dev lo\n" for n in range(9)))
        drains = 0
        while select.select([monitor], [], [], 0.5)[0]:
            assert monitor.drain() == {"route"}
            drains += 1
        assert drains == 3


def test_no_privilege_is_needed(netns):
    """As nobody, in a process of its own, since capabilities do not come back."""
    ns = netns()
    ns.ip("route add default dev lo")
    code = (
        "import os, sys; sys.path[:0] = sys.argv[1:]; from packetwatch import netlink;"
        f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY});"
        "monitor = netlink.Monitor(); monitor.drain();"
        "assert 'CapEff:\\t0000000000000000' in open('/proc/self/status').read();"
        "print(len(netlink.links()), len(netlink.local_prefixes()), len(netlink.default_routes()))"
    )
    root = os.path.dirname(os.path.dirname(netlink.__file__))
    assert ns.run(["/usr/bin/python3", "-c", code, root]).stdout.split() == ["1", "3", "1"]


# Interfaces that are wanted


def wanted_in(ns, *patterns):
    with ns.enter():
        return interfaces.wanted(patterns, netlink.links(), netlink.default_routes())


def test_a_wanted_interface_appears_is_renamed_and_vanishes(watched):
    ns, changes = watched
    assert [(want.name, want.link) for want in wanted_in(ns, "eth7")] == [("eth7", None)]
    ns.ip("link add name eth7 type veth peer name far")
    assert "link" in told(changes, {"link"})
    first = wanted_in(ns, "eth7")[0].link
    ns.ip("link set eth7 name eth8")
    assert "link" in told(changes, {"link"})
    assert wanted_in(ns, "eth7")[0].link is None
    assert wanted_in(ns, "eth8")[0].link.index == first.index
    ns.ip("link del eth8")
    assert "link" in told(changes, {"link"})
    assert wanted_in(ns, "eth8")[0].link is None


def test_the_default_route_comes_and_goes(watched):
    ns, changes = watched
    ns.device("one")
    ns.device("two")
    changes()
    assert wanted_in(ns, "default-route") == []
    ns.ip("address add 192.0.2.7/24 dev one")
    ns.ip("route add default via 192.0.2.1")
    assert "route" in told(changes, {"route"})
    assert [want.name for want in wanted_in(ns, "default-route")] == ["one"]
    ns.ip("-6 route add default via fe80::1 dev two")
    assert "route" in told(changes, {"route"})
    assert [want.name for want in wanted_in(ns, "default-route")] == ["one", "two"]
    with ns.enter():
        assert interfaces.gateways(netlink.default_routes()) == {parse("192.0.2.1"), parse("fe80::1")}
    ns.ip("link set one down")
    assert "link" in told(changes, {"link"}), "IPv4 does not announce the route that goes"
    assert [want.name for want in wanted_in(ns, "default-route")] == ["two"]


def test_a_tunnel_carries_no_ethernet_frames(netns):
    ns = netns()
    ns.ip("tuntap add dev tun7 mode tun")
    ns.ip("link set tun7 up")
    ns.ip("route add default dev tun7")
    (want,) = wanted_in(ns, "default-route")
    assert want.fault == "tun7 carries no Ethernet frames; attach to the interface below it"


#: What the kernel must make, commands, then per interface: where it sits, and whether the MAC test holds.
#: eth0 and eth1 exist, their peers are elsewhere.
SEATS = [
    ([], [], {"eth0": ("", True), "lo": ("", True)}),
    (["bridge"], ["link add br0 type bridge", "link set eth0 master br0", "link set eth1 master br0"],
     {"br0": ("br0 (bridge of eth0, eth1)", False), "eth0": ("eth0 (port of bridge br0)", False)}),
    (["bridge"], ["link add br0 type bridge"], {"br0": ("br0 (bridge without ports)", False)}),
    (["macvlan"], ["link add mv0 link eth0 type macvlan"],
     {"mv0": ("mv0 (macvlan on eth0)", False), "eth0": ("", False), "eth1": ("", True)}),
    (["macvtap"], ["link add mt0 link eth0 type macvtap"],
     {"mt0": ("mt0 (macvtap on eth0)", False), "eth0": ("", False)}),
    (["ipvlan"], ["link add iv0 link eth0 type ipvlan"], {"iv0": ("iv0 (ipvlan on eth0)", False), "eth0": ("", False)}),
    (["vlan"], ["link add eth0.5 link eth0 type vlan id 5"],
     {"eth0.5": ("eth0.5 (VLAN on eth0)", True), "eth0": ("", True)}),
    (["vlan"], ["link add eth0.5 link eth0 address 02:00:00:00:00:55 type vlan id 5"],
     {"eth0.5": ("eth0.5 (VLAN on eth0)", True), "eth0": ("", False)}),
    (["vlan", "macvlan"], ["link add eth0.5 link eth0 type vlan id 5", "link add mv0 link eth0.5 type macvlan"],
     {"eth0.5": ("eth0.5 (VLAN on eth0)", False), "eth0": ("", False)}),
    (["vlan", "bridge"],
     ["link add eth0.5 link eth0 type vlan id 5", "link add br0 type bridge", "link set eth0.5 master br0"],
     {"eth0.5": ("eth0.5 (VLAN on eth0, port of bridge br0)", False), "eth0": ("", False)}),
    (["bond"], ["link add bond0 type bond mode active-backup", "link set eth0 down", "link set eth1 down",
                "link set eth0 master bond0", "link set eth1 master bond0"],
     {"bond0": ("bond0 (bond of eth0, eth1)", False), "eth1": ("eth1 (port of bond bond0)", False)}),
    (["vrf"], ["link add red type vrf table 77", "link set eth0 master red"],
     {"eth0": ("eth0 (in VRF red)", True), "red": ("red (VRF of eth0)", True)}),
]


def needs(kind):
    """Marks a row that must fail where the kernel makes no such device: xfailed, never passed. tests/vm runs it."""
    reason = f"this kernel makes no {kind}; runs in tests/vm"
    return pytest.mark.xfail(not kernel_makes(kind), reason=reason, raises=AssertionError, strict=True)


@pytest.mark.parametrize(
    "commands, expected",
    [pytest.param(commands, expected, id="; ".join(commands) or "plain", marks=[needs(kind) for kind in kinds])
     for kinds, commands, expected in SEATS],
)
def test_where_an_interface_sits(netns, veth, commands, expected):
    ns, elsewhere = netns(), netns()
    for name in ("eth0", "eth1"):
        veth(ns, name, elsewhere, name)
    for command in commands:
        ns.ip(command)
    links = _links(ns)
    found = {name: (interfaces.seat(link, links), interfaces.mac_test(link, links))
             for name, link in names(links).items() if name in expected}
    assert found == expected


def test_a_macvlan_on_an_interface_of_another_namespace(netns, veth):
    host, container = netns(), netns()
    veth(host, "eth0", netns(), "far")
    host.ip(f"link add name mv0 link eth0 netns {container.name} type macvlan")
    links = _links(container)
    assert interfaces.seat(names(links)["mv0"], links) == "mv0 (macvlan on an interface of another namespace)"


@needs("vrf")
def test_addresses_in_a_vrf_are_local(netns, veth):
    ns = netns()
    ns.ip("link add red type vrf table 1077")
    ns.ip("link set red up")
    veth(ns, "eth0", netns(), "far", ["192.0.2.7/24"])
    ns.ip("link set eth0 master red")
    assert "192.0.2.7" in local_in(ns)


def test_the_namespaces_vanish():
    from .conftest import Namespace

    ns = Namespace().add()
    assert ns.name in call("ip", "netns").stdout
    ns.remove()
    assert ns.name not in call("ip", "netns").stdout


def test_prefixes_are_in_the_inner_form(netns):
    with netns().enter():
        assert parse_prefix("127.0.0.0/8") in netlink.local_prefixes()
