# SPDX-License-Identifier: Apache-2.0
"""The kernel's own answer is the oracle: a frame is counted if and only if a live host answers it.

The same table of frames, sent over a veth with the program attached (native) on the listener's side.
Where count and answer differ the row says why, and the difference is asserted too.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import time
from typing import NamedTuple

import pytest

from packetwatch import address, libbpf, rules
from tests import frames as f
from tests.bpf import random_frames, rows
from tests.netns.conftest import Namespace, connect

CLIENT_MAC, SERVER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
OPEN, CLOSED = 80, 81
FIRST_PORT = 10000
MARKS = itertools.count(9000)  # source ports of the frames that are sent last
#: A closed port refuses what no listener would take either: other segments, and a v4-mapped source.
REFUSED = {"SYN and ACK", "SYN and FIN", "SYN and FIN, IPv6", "FIN", "ACK", "FIN, PSH and URG", "no flags", "FIN, IPv6"}
REFUSED.add("source v4-mapped")


class Host(NamedTuple):
    """A listening host and the wire to it."""

    client: Namespace
    server: Namespace
    wire: socket.socket
    ifindex: int

    def ends(self, sport, dport):
        return rows.Ends(
            f.mac(CLIENT_MAC), f.mac(SERVER_MAC), "10.9.0.2", "10.9.0.1", "fd00:9::2", "fd00:9::1", sport, dport
        )


@contextlib.contextmanager
def two_hosts():
    client, server = Namespace(), Namespace()
    try:
        client.add()
        server.add()
        connect(client, "near", server, "far", (), ("10.9.0.1/24", "fd00:9::1/64"))
        client.ip(f"link set near address {CLIENT_MAC} arp off")
        server.ip(f"link set far address {SERVER_MAC}")
        for neighbour in ("10.9.0.2", "fd00:9::2", "fe80::1"):
            server.ip(f"neigh replace {neighbour} lladdr {CLIENT_MAC} nud permanent dev far")
        server.ip("-4 route add default via 10.9.0.2 dev far")
        server.ip("-6 route add default via fd00:9::2 dev far")
        for name in ("all", "default", "far"):
            server.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)
        server.sysctl("net.core.somaxconn", 4096)
        server.sysctl("net.ipv4.tcp_max_syn_backlog", 4096)
        server.sysctl("net.ipv4.tcp_fastopen", 3)
        server.sysctl("net.ipv4.tcp_synack_retries", 0)
        yield client, server
    finally:
        client.remove()
        server.remove()


def listen():
    return socket.create_server(("::", OPEN), family=socket.AF_INET6, dualstack_ipv6=True)


@pytest.fixture(scope="module")
def host():
    with two_hosts() as (client, server), contextlib.ExitStack() as stack:
        with client.enter():
            wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            wire.bind(("near", 0))
        with server.enter():
            listener = stack.enter_context(listen())
            listener.listen(4096)
            ifindex = socket.if_nametoindex("far")
        yield Host(client, server, wire, ifindex)


@pytest.fixture(scope="module")
def results(host, product_rig):
    """{(description, destination port): (counted, answered)} of every row, sent to an open and to a closed port."""
    with attached(product_rig, host.server, "far", 1, libbpf.XDP_FLAGS_DRV_MODE, mac=f.mac(SERVER_MAC)):
        allow_all(product_rig)
        time.sleep(0.2)
        return {(port, row.description): both for port in (OPEN, CLOSED) for row, both in send(product_rig, host, port)}


@contextlib.contextmanager
def attached(rig, namespace, device, number, flags, **attachment):
    """The program on a device of a namespace, as attachment `number` of a freshly reset rig."""
    rig.reset()
    with namespace.enter():
        ifindex = socket.if_nametoindex(device)
        link = libbpf.link_xdp(rig.kernel.prog, ifindex, flags)
    rig.attach(number, ifindex, **attachment)
    with open(link):
        yield
    rig.check_ledger()


def allow_all(rig):
    """The host's addresses, and nobody ever judged."""
    for own in ("10.9.0.1", "fd00:9::1", "127.0.0.0/8", "::1"):
        rig.local(own)
        rig.source(own, rules.OWN)
    rig.source("0.0.0.0/0", rules.ALLOW)
    rig.source("::/0", rules.ALLOW)


def send(rig, host, dport):
    """Sends all rows with a source port of their own each, then asks which were recorded and which answered."""
    ports = {row: FIRST_PORT + number if row.sport is None else row.sport for number, row in enumerate(rows.ROWS)}
    frames = [frame for row, sport in ports.items() for frame in row.build(host.ends(sport, dport))]
    counted, answered = exchange(rig, host, dport, frames)
    return [(row, (sport in counted, sport in answered)) for row, sport in ports.items()]


def exchange(rig, host, dport, frames):
    """The source ports that were counted, and those that were answered. No more at a time than every queue holds."""
    counted, answered = set(), set()
    for start in range(0, len(frames), 100):
        for frame in frames[start : start + 100]:
            host.wire.send(frame)
        for whole, part in zip((counted, answered), outcome(rig, host, dport)):
            whole |= part
    return counted, answered


def outcome(rig, host, dport):
    """The same of what was sent so far, once the answer to one more frame has come."""
    mark = next(MARKS)
    host.wire.send(rows.v4()(host.ends(mark, dport))[0])
    answered = answers(host, dport, mark)
    counted = {int.from_bytes(record[3], "big") for record in rig.records()}
    assert mark in counted
    return counted, answered


def answers(host, dport, mark):
    """The ports that got a SYN-ACK (open) or a RST (closed), until the last frame's answer has come."""
    wanted = f.SYN | f.ACK if dport == OPEN else f.RST
    found = set()
    host.wire.settimeout(10)
    while mark not in found:
        segment = f.tcp_of(host.wire.recv(2048))
        if segment and segment[2] == dport and segment[4] & wanted == wanted:
            found.add(segment[3])
    return found


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.description)
def test_a_listener_answers_what_is_counted(results, row):
    assert results[OPEN, row.description] == (row.counted, row.answered)


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: row.description)
def test_a_closed_port_refuses_what_is_counted(results, row):
    assert results[CLOSED, row.description] == (row.counted, row.answered or row.description in REFUSED)


@pytest.mark.parametrize("seed", range(5))
def test_random_frames_are_answered_if_they_are_counted(host, product_rig, seed):
    host.server.sysctl("net.ipv4.tcp_syncookies", 2)
    chance, sent = random.Random(seed), {}
    with attached(product_rig, host.server, "far", 1, libbpf.XDP_FLAGS_DRV_MODE, mac=f.mac(SERVER_MAC)):
        allow_all(product_rig)
        time.sleep(0.2)
        for sport in range(20000 + 2000 * seed, 22000 + 2000 * seed):
            sent[sport] = random_frames.build(chance, host.ends(sport, OPEN))[0]
        counted, answered = exchange(product_rig, host, OPEN, list(sent.values()))
    assert 500 < len(counted) < 1500
    assert {sport: sent[sport].hex() for sport in counted ^ answered if sport in sent} == {}


def recorded(rig):
    return [(address.text(record[1]), address.text(record[2]), record[5]) for record in rig.records()]


def test_on_the_loopback_device_own_connections_are_counted(host, product_rig):
    pairs = (("127.0.0.1", "127.0.0.1"), ("127.0.0.9", "10.9.0.1"), ("10.9.0.1", "10.9.0.1"), ("10.9.0.1", "127.0.0.1"),
             ("::1", "::1"), ("fd00:9::1", "fd00:9::1"), ("fd00:9::1", "::1"))
    generic = libbpf.XDP_FLAGS_SKB_MODE
    with attached(product_rig, host.server, "lo", 3, generic, mac=bytes(6), loopback=True, mac_test=False):
        for own in ("10.9.0.1", "fd00:9::1", "127.0.0.0/8", "::1"):
            product_rig.local(own)
            product_rig.source(own, rules.OWN | rules.ALLOW)
        with host.server.enter():
            for source, destination in pairs:
                socket.create_connection((destination, OPEN), 10, (source, 0)).close()
        assert recorded(product_rig) == [(source, destination, 3) for source, destination in pairs]


@pytest.mark.parametrize("flags", (libbpf.XDP_FLAGS_DRV_MODE, libbpf.XDP_FLAGS_SKB_MODE), ids=("native", "generic"))
def test_a_syn_whose_checksum_is_left_to_the_device_is_counted(product_rig, flags):
    """What this machine's own sockets send over a veth carries the sum of the pseudo-header alone."""
    client, server = Namespace(), Namespace()
    try:
        client.add()
        server.add()
        connect(client, "near", server, "far", ("10.8.0.2/24", "fd00:8::2/64"), ("10.8.0.1/24", "fd00:8::1/64"))
        server.ip(f"link set far address {SERVER_MAC}")
        with attached(product_rig, server, "far", 4, flags, mac=f.mac(SERVER_MAC)):
            product_rig.local("10.8.0.1", "fd00:8::1")
            with server.enter():
                listener = listen()
            with listener, client.enter():
                for destination in ("10.8.0.1", "fd00:8::1"):
                    socket.create_connection((destination, OPEN), 10).close()
            assert recorded(product_rig) == [("10.8.0.2", "10.8.0.1", 4), ("fd00:8::2", "fd00:8::1", 4)]
    finally:
        client.remove()
        server.remove()
