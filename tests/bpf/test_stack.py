# SPDX-License-Identifier: Apache-2.0
"""The kernel's own answer is the oracle: a frame is counted if and only if a live host answers it.

The same table of frames, sent over a veth with the program attached (native) on the listener's side.
Where count and answer differ the row says why, and the difference is asserted too.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import NamedTuple

import pytest

from packetwatch import libbpf, rules
from tests import frames as f
from tests.bpf import harness, rows
from tests.netns.conftest import Namespace, connect

CLIENT_MAC, SERVER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
OPEN, CLOSED, MARK = 80, 81, 9
FIRST_PORT = 10000
#: A closed port refuses what no listener would take either: other segments, and a v4-mapped source.
REFUSED = {"SYN and ACK", "SYN and FIN", "SYN and FIN, IPv6", "FIN", "ACK", "FIN, PSH and URG", "no flags"}
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
        for address in ("10.9.0.2", "fd00:9::2", "fe80::1"):
            server.ip(f"neigh replace {address} lladdr {CLIENT_MAC} nud permanent dev far")
        server.ip("-4 route add default via 10.9.0.2 dev far")
        server.ip("-6 route add default via fd00:9::2 dev far")
        for name in ("all", "default", "far"):
            server.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)
        server.sysctl("net.core.somaxconn", 4096)
        server.sysctl("net.ipv4.tcp_max_syn_backlog", 4096)
        server.sysctl("net.ipv4.tcp_fastopen", 3)
        yield client, server
    finally:
        client.remove()
        server.remove()


@pytest.fixture(scope="module")
def host():
    with two_hosts() as (client, server), contextlib.ExitStack() as stack:
        with client.enter():
            wire = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
            wire.bind(("near", 0))
        with server.enter():
            listener = stack.enter_context(socket.create_server(("::", OPEN), family=socket.AF_INET6, dualstack_ipv6=True))
            listener.listen(4096)
            ifindex = socket.if_nametoindex("far")
        yield Host(client, server, wire, ifindex)


@pytest.fixture(scope="module")
def results(host, product_rig):
    """{(description, destination port): (counted, answered)} of every row, sent to an open and to a closed port."""
    rig = product_rig
    rig.reset()
    rig.attach(1, host.ifindex, f.mac(SERVER_MAC))
    for own in ("10.9.0.1", "fd00:9::1", "127.0.0.0/8", "::1"):
        rig.local(own)
        rig.source(own, rules.OWN)
    rig.source("0.0.0.0/0", rules.ALLOW)
    rig.source("::/0", rules.ALLOW)
    rig.source("10.9.0.1", rules.OWN)
    with host.server.enter():
        link = libbpf.link_xdp(rig.kernel.prog, host.ifindex, libbpf.XDP_FLAGS_DRV_MODE)
    with open(link):
        time.sleep(0.2)
        found = {(port, row.description): both for port in (OPEN, CLOSED) for row, both in send(rig, host, port)}
    rig.check_ledger()
    return found


def send(rig, host, dport):
    """Sends all rows with a source port of their own each, then asks which were recorded and which answered."""
    ports = {row: FIRST_PORT + number if row.sport is None else row.sport for number, row in enumerate(rows.ROWS)}
    for row, sport in ports.items():
        for frame in row.build(host.ends(sport, dport)):
            host.wire.send(frame)
    host.wire.send(rows.v4()(host.ends(MARK, dport))[0])
    answered = answers(host, dport)
    counted = {int.from_bytes(record[3], "big") for record in rig.records()}
    assert MARK in counted
    return [(row, (sport in counted, sport in answered)) for row, sport in ports.items()]


def answers(host, dport):
    """The ports that got a SYN-ACK (open) or a RST (closed), until the last frame's answer has come."""
    wanted = f.SYN | f.ACK if dport == OPEN else f.RST
    found = set()
    host.wire.settimeout(10)
    while MARK not in found:
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
