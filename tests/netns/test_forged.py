# SPDX-License-Identifier: Apache-2.0
"""Forged sources under the settings as shipped: what becomes of those whose addresses they are.

The owner of an address is alive and answers what it did not ask for.
"""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple

import pytest

from .files import Files
from .resident import wait_for
from .segment import lives
from .test_evidence import length_s
from .test_shipped import is_documented, told
from .traffic import OPEN, SILENT

ALLOWED, RESOLVER, GATEWAY = (f"192.0.2.{number}" for number in (20, 53, 254))
SETTINGS = f"interface = v0\nlog.format = json\nmetrics.listen = off\nallow = {ALLOWED}\n"
PROTECTED = {"allow list": ALLOWED, "name server of the host": RESOLVER, "default gateway": GATEWAY}
ORDINARY = {"IPv4": ("192.0.2.101", "192.0.2.102", "192.0.2.103")}
ORDINARY["IPv6"] = tuple(f"2001:db8::{number}" for number in (101, 102, 103))
PORTS = 5, 6, 7


class Client(NamedTuple):
    """An ordinary neighbour with a connection that is older than the watch: its two ends."""

    address: str
    connection: tuple[socket.socket, socket.socket]


@pytest.fixture(scope="module")
def ordinary(segment):
    """Clients of each family; a test takes one."""
    with contextlib.ExitStack() as stack:
        made = {}
        for name, addresses in ORDINARY.items():
            server = stack.enter_context(segment.listen(80, ipv6=name == "IPv6"))
            segment.neighbours(*addresses)
            made[name] = [
                Client(address, stack.enter_context(segment.connection(address, server))) for address in addresses
            ]
        yield made


@pytest.fixture(params=ORDINARY)
def client(request, ordinary, watch):
    client = ordinary[request.param].pop()
    assert lives(client.connection)
    return client


@pytest.fixture(scope="module")
def watch(shared, segment, ordinary, tmp_path_factory):
    files = Files(tmp_path_factory.mktemp("files"))
    files.write("/etc/resolv.conf", f"nameserver {RESOLVER}\n")
    segment.neighbours(*PROTECTED.values())
    segment.host.ip(f"route add default via {GATEWAY}")
    return shared(segment.host, SETTINGS, prefix=files.prefix)


@pytest.fixture
def short(watch):
    """The same with blocks that one waits for."""
    watch.write(SETTINGS + "block.first = 2s\n")
    watch.done("reload")
    yield watch
    watch.write(SETTINGS)
    watch.done("reload")


@pytest.mark.parametrize("name", PROTECTED)
def test_a_protected_source_is_never_blocked_for_what_others_forge(watch, segment, name):
    source = PROTECTED[name]
    for _ in range(3):
        segment.forge(source, *PORTS)
    wait_for(lambda: len(watch.records("connection", src_ip=source)) == 9, "the records")
    assert segment.knock(source, 80) == [OPEN]
    assert source not in {row["prefix"] for row in watch.answer("block", "list")}
    is_documented(told(watch, name, source))


def test_an_ordinary_client_is_blocked_for_a_minute_at_most_and_its_connection_lives_on(watch, segment, client):
    segment.forge(client.address, *PORTS)
    assert length_s(watch.record("block", src_ip=client.address)) <= 60
    assert segment.knock(client.address, 80) == [SILENT]
    assert lives(client.connection)
    is_documented(told(watch, "ordinary client", client.address))


def test_an_ordinary_client_connects_again_when_the_block_is_over(short, segment, client):
    segment.forge(client.address, *PORTS)
    assert length_s(short.record("block", src_ip=client.address)) == 2
    assert segment.knock(client.address, 80) == [SILENT]
    short.record("unblock", src_ip=client.address)
    assert segment.knock(client.address, 80) == [OPEN] and lives(client.connection)


def test_a_repeated_forgery_blocks_for_no_longer(watch, segment, client):
    """The second one comes when the block is over, which here nobody waits for."""
    for _ in range(3):
        watch.lines.clear()
        segment.forge(client.address, *PORTS)
        assert length_s(watch.record("block", src_ip=client.address)) <= 60
        watch.done("block", "remove", client.address)
    assert segment.knock(client.address, 80) == [OPEN] and lives(client.connection)
