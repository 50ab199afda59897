# SPDX-License-Identifier: Apache-2.0
"""The challenge on the wire: real clients, direct and through routers, scanners, and addresses that others forge."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time

import pytest

from tests import frames

from .conftest import connect
from .resident import wait_for
from .test_evidence import length_s
from .traffic import CLOSED, HOST4, HOST6, OPEN, SILENT, begin, growing, knock

#: Generic: out of a native veth a challenge is lost unless the peer has a program, too.
SETTINGS = "interface = v0\nlog.format = json\nmetrics.listen = off\nxdp.mode = generic\n"
SHORT = SETTINGS + "block.first = 1s\nblock.duration = 1h\n"
ETH_ALL = socket.htons(3)


@pytest.fixture
def watched(resident, wire):
    return lambda settings=SHORT: resident(wire.host, settings)


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    return wire.somebody(ipv6=request.param == "IPv6")


def fate(ns, source, destination, port, wait_s=2.0):
    """Of one real connection: how its handshake ends, and whether it is reset then."""
    with ns.enter(), begin(source, destination, port) as link:
        if not select.select([], [link], [], wait_s)[1]:
            return SILENT
        fault = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if not fault:
            assert select.select([link], [], [], wait_s)[0], "neither data nor an end"
            fault = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return {errno.ECONNREFUSED: CLOSED, errno.ECONNRESET: "reset"}[fault]


def evidence(watch, source):
    return watch.answer("why", source)["evidence"]


def test_a_real_client_proves_itself_and_its_next_block_is_longer(watched, wire, source):
    watch, host = watched(), HOST6 if ":" in source else HOST4
    assert wire.knock(source, 1, 2, 3) == [CLOSED] * 3
    block = watch.record("block", src_ip=source)
    assert (length_s(block), block["evidence"], evidence(watch, source)) == (1, "seen", "seen")
    assert fate(wire.outside, source, host, 4) == "reset"
    assert evidence(watch, source) == "proven" and watch.answer("why", source)["offences"]["proven"]
    watch.record("unblock", src_ip=source)
    watch.lines.clear()
    assert wire.knock(source, 5, 6, 7) == [CLOSED] * 3
    block = watch.record("block", src_ip=growing(source))
    assert (length_s(block), block["evidence"]) == (2, "proven")
    assert fate(wire.outside, source, host, 8, 0.3) == SILENT
    status = watch.status()
    assert (status["challenges"], status["proven"]) == (1, 1)
    assert watch.ledger()["connections_dropped"] >= 2


def test_the_same_services_that_are_down_again_do_not_make_blocks_longer(watched, wire):
    watch, source = watched(), wire.somebody()
    for _ in range(3):
        assert wire.knock(source, 1, 2, 3) == [CLOSED] * 3
        assert length_s(watch.record("block", src_ip=source)) == 1
        fate(wire.outside, source, HOST4, 2, 0.3)
        watch.record("unblock", src_ip=source)
        watch.lines.clear()
    assert evidence(watch, source) == "proven"


def test_who_wants_an_open_port_is_not_lied_to(watched, wire, source):
    """A blocked client's connection waits, and stands when the block is over."""
    watch = watched()
    with wire.listen(80, ipv6=":" in source):
        assert wire.knock(source, 1, 2, 3) == [CLOSED] * 3
        with wire.outside.enter(), begin(source, HOST6 if ":" in source else HOST4, 80) as link:
            assert not select.select([], [link], [], 0.5)[1]
            assert select.select([], [link], [], 5)[1] and not link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert evidence(watch, source) != "proven" and watch.status()["challenges"] == 0


def test_a_scan_with_real_connections_is_proven_and_one_with_frames_of_its_own_is_not(watched, wire):
    """The kernel of who scans with raw frames knows nothing of the scan, and resets what it did not ask for."""
    watch = watched(SETTINGS)
    for kind, proven in (("-sT", True), ("-sS", False)):
        source = wire.somebody()
        wire.nmap(kind, "-p1-30", "--max-rate", "50", "-S", source, "-e", "v1", HOST4)
        block = watch.record("block", src_ip=source)
        assert length_s(block) == 60
        assert (evidence(watch, source) == "proven") == proven, kind
        assert watch.answer("why", source)["offences"]["unanswered_challenges"] == (0 if proven else 2)


def test_observe_challenges_nobody(watched, wire, source):
    watch = watched(SHORT + "mode = observe\n")
    assert wire.knock(source, 1, 2, 3, 4, 5) == [CLOSED] * 5
    assert watch.status()["challenges"] == 0 and evidence(watch, source) == "seen"


def test_acknowledgments_of_nothing_are_counted(watched, wire):
    """nmap's ACK and window scans: nothing is blocked, and what the host's stack says is not held back."""
    watch = watched(SETTINGS)
    for kind in ("-sA", "-sW"):
        source, before = wire.somebody(), watch.status()["acks"]
        found = wire.nmap(kind, "-p1-40", "-S", source, "-e", "v1", HOST4)
        assert "unfiltered" in found or "closed" in found
        wait_for(lambda: watch.status()["acks"] == before + 40, "the acknowledgments")
        assert not watch.answer("block", "list")


@pytest.fixture(params=["routed", "masqueraded", "stateful"])
def behind(request, wire, netns):
    """Somebody behind a router: (namespace, own address, the address that the host sees)."""
    router, inner = netns(), netns()
    number = 200 + ("routed", "masqueraded", "stateful").index(request.param)
    seen, own = f"198.51.100.{number}", f"203.0.113.{number}"
    link = f"10.77.{number}"
    connect(wire.outside, f"r{number}", router, "wan", (f"{link}.1/30",), (f"{link}.2/30",))
    connect(router, "lan", inner, "c0", (f"203.0.113.{number + 20}/24",), (f"{own}/24",))
    for ns in (wire.outside, router):
        ns.sysctl("net.ipv4.ip_forward", 1)
    inner.ip(f"route add default via 203.0.113.{number + 20}")
    router.ip(f"route add default via {link}.1")
    router.ip(f"address add {seen}/32 dev lo")
    wire.outside.ip(f"route add {seen}/32 via {link}.2")
    wire.outside.ip(f"route add {own}/32 via {link}.2")
    wire.host.ip(f"route replace {own}/32 via 192.0.2.2")
    if request.param != "routed":
        router.run(["iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "wan", "-j", "SNAT", "--to-source", seen])
    if request.param == "stateful":
        for chain in ("INPUT", "FORWARD"):
            router.run(["iptables", "-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"])
            inner.run(["iptables", "-A", chain, "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"])
    yield inner, own, own if request.param == "routed" else seen
    wire.outside.ip(f"link del r{number}")


def test_a_client_behind_a_router_proves_itself_too(watched, wire, behind):
    watch, (inner, own, seen) = watched(), behind
    assert [fate(inner, own, HOST4, port) for port in (1, 2, 3)] == [CLOSED] * 3
    watch.record("block", src_ip=seen)
    assert fate(inner, own, HOST4, 4) == "reset"
    assert evidence(watch, seen) == "proven"
    watch.record("unblock", src_ip=seen)
    with wire.listen(80) as server:
        with inner.enter(), begin(own, HOST4, 80) as link:
            server.settimeout(5)
            theirs, (address, _) = server.accept()
            with theirs:
                theirs.sendall(b"x")
                assert address == seen and select.select([link], [], [], 2)[0] and link.recv(1) == b"x"


def forge(wire, source, *ports):
    """A SYN to each port from somewhere on the way, as if that source had sent it."""
    with wire.outside.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("v1", 0))
        for port in ports:
            packet = frames.ipv4(source, HOST4, frames.tcp(source, HOST4, 40000 + port, port))
            link.send(frames.ethernet(packet, frames.mac(wire.host.mac("v0")), frames.mac(wire.outside.mac("v1"))))


@pytest.mark.parametrize("behind", ["routed"], indirect=True)
def test_nobody_is_blocked_for_long_for_what_others_forge(watched, wire, behind):
    """Its owner is alive and a client of this host, and its kernel answers what it did not ask for."""
    watch, (inner, victim, _) = watched(SETTINGS), behind
    with wire.listen(80), inner.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, ETH_ALL) as tap:
        assert knock(victim, HOST4, 80) == OPEN
        for number in range(4):
            watch.lines.clear()
            forge(wire, victim, *range(100 + 10 * number, 110 + 10 * number))
            block = watch.record("block", src_ip=victim)
            assert length_s(block) == 60 and block["evidence"] == "seen"
            assert knock(victim, HOST4, 80) == SILENT
            watch.done("block", "remove", victim)
        assert knock(victim, HOST4, 80) == OPEN
        assert answered(tap, victim)
    why = watch.answer("why", victim)
    assert why["evidence"] != "proven" and not why["offences"]["proven"] and not why["offences"]["contested"]
    assert why["offences"]["unanswered_challenges"] == watch.status()["challenges"] == 2


def answered(tap, source):
    """Whether a reset left for the host from the source."""
    tap.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found = frames.tcp_of(tap.recv(2048))
            if found and found[0] == frames.packed(source) and found[4] & frames.RST:
                return True
    return False


@pytest.mark.parametrize("ipv6", (False, True), ids=("IPv4", "IPv6"))
def test_a_flood_of_blocked_sources_leaves_the_account_exact(watched, wire, ipv6):
    watch = watched(SETTINGS + "block.storm = 0\nxdp.mode = native\n")  # what the generator sends arrives there only
    for port in (1, 2, 3):
        wire.flood(4_000, ipv6=ipv6, port=port, sources=256)
    settled(watch)
    before = watch.ledger()["connections_dropped"]
    wire.flood(300_000, ipv6=ipv6, port=4, sources=256)
    settled(watch)
    assert watch.ledger()["connections_dropped"] > before + 10_000
    assert watch.status()["challenges"] == 2 if ipv6 else 100 <= watch.status()["challenges"] <= 2 * 256


def settled(watch):
    """Until no SYN comes any more."""
    seen = [-1]

    def rests():
        seen.append(watch.status()["ledger"]["syns"])
        time.sleep(0.2)
        return seen[-1] == seen[-2]

    wait_for(rests, "the end of a flood", 20)
