# SPDX-License-Identifier: Apache-2.0
"""The program on the root cgroup: whose handshakes it remembers, and whose not. Real sockets, in a namespace."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import socket
import time

import pytest

from packetwatch import address, handshakes, libbpf, loader, program
from packetwatch.kernel import Kernel
from tests import frames as f
from tests.netns.conftest import Namespace, connect

SMALL = program.Parameters(trackers=4096, blocks=1024, ring_bytes=1 << 16, headers="auto")
HOST4, HOST6, PEER4, PEER6 = "192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"
TCP_FASTOPEN = 23  # linux/tcp.h


@pytest.fixture(scope="module")
def link():
    """(host, peer): namespaces with a wire between."""
    host, peer = Namespace(), Namespace()
    try:
        host.add()
        peer.add()
        connect(host, "near", peer, "far", (f"{HOST4}/24", f"{HOST6}/64"), (f"{PEER4}/24", f"{PEER6}/64"))
        yield host, peer
    finally:
        host.remove()
        peer.remove()


@pytest.fixture
def clients(rig, link):
    """Asks for the client entry of an address; the program is attached while the test runs."""
    with link[0].enter():
        rig.kernel.put_network(handshakes.network())
    with attached(rig.kernel.handshakes):
        yield lambda text: rig.kernel.client(address.parse(text))


@contextlib.contextmanager
def attached(prog):
    root = handshakes.find_root(open("/proc/self/mountinfo").read())
    folder = os.open(root, os.O_RDONLY)
    try:
        fd = libbpf.link_sock_ops(prog, folder)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        os.close(folder)


@contextlib.contextmanager
def listening(ns, family, at):
    with ns.enter():
        listener = socket.socket(family)
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((at, 0))
        listener.listen()
        yield listener


def reach(ns, to, listener):
    with ns.enter():
        sender = socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET)
    with sender:
        sender.settimeout(5)
        sender.connect((to, listener.getsockname()[1]))
        listener.accept()[0].close()


@pytest.mark.parametrize(
    "family, at, to, source",
    [
        (socket.AF_INET, HOST4, HOST4, PEER4),
        (socket.AF_INET6, HOST6, HOST6, PEER6),
        (socket.AF_INET6, "::", HOST6, PEER6),
        (socket.AF_INET6, "::", HOST4, PEER4),  # a socket of IPv6 with a client of IPv4
    ],
    ids=["IPv4", "IPv6", "any, IPv6", "any, IPv4"],
)
def test_a_handshake_is_remembered_under_the_clients_address(link, clients, family, at, to, source):
    host, peer = link
    begun = boot_ns()
    with listening(host, family, at) as listener:
        reach(peer, to, listener)
        first = clients(source)
        assert begun < first.first_ns == first.last_ns < boot_ns()
        reach(peer, to, listener)
    last = clients(source)
    assert last.first_ns == first.first_ns and last.last_ns > first.last_ns
    others = {HOST4, HOST6, PEER4, PEER6} - {source}
    assert not any(map(clients, others))  # the peer has opened it: to it the host is no client


def test_in_another_namespace_everybody_can_have_any_address(link, clients, rig):
    """Whoever makes one; unless nothing is known of namespaces."""
    host, peer = link
    with listening(peer, socket.AF_INET, PEER4) as listener:
        reach(host, PEER4, listener)
        assert clients(HOST4) is None
        rig.kernel.put_network(0)
        reach(host, PEER4, listener)
        assert clients(HOST4)


def test_who_refuses_a_connection_has_no_client(link, clients):
    host, peer = link
    with listening(host, socket.AF_INET, HOST4) as listener:
        port = listener.getsockname()[1]
    with peer.enter():
        sender = socket.socket()
    with sender, pytest.raises(ConnectionRefusedError):
        sender.connect((HOST4, port))
    assert clients(PEER4) is None


def test_a_syn_alone_is_no_handshake(link, clients):
    """With the peer's own address, whose answer is a RST, and with a forged one."""
    host, peer = link
    with listening(host, socket.AF_INET, HOST4) as listener, raw(peer) as wire:
        for source in (PEER4, "192.0.2.77"):
            wire.send(frame(link, f.tcp(source, HOST4, 40000, listener.getsockname()[1], flags=f.SYN), source))
        wait_for(lambda: half_open(host) == 1)
        assert clients(PEER4) is None and clients("192.0.2.77") is None


def half_open(ns):
    return ns.run(["ss", "-Htn", "state", "syn-recv"]).stdout.count("\n")


def test_an_acknowledgment_that_answers_nothing_is_no_handshake(link, clients):
    host, peer = link
    with listening(host, socket.AF_INET, HOST4) as listener, raw(peer) as wire:
        port = listener.getsockname()[1]
        for flags in (f.SYN, f.ACK):
            wire.send(frame(link, f.tcp("192.0.2.77", HOST4, 40000, port, flags=flags), "192.0.2.77"))
        wait_for(lambda: half_open(host) == 1)
        assert clients("192.0.2.77") is None


def test_fast_open_is_no_proof(link, clients):
    """Where a host asks for no cookie, the listener has the connection with the SYN."""
    host, peer = link
    host.sysctl("net.ipv4.tcp_fastopen", 0x603)
    try:
        with listening(host, socket.AF_INET, HOST4) as listener, raw(peer) as wire:
            listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
            port = listener.getsockname()[1]
            syn = f.tcp("192.0.2.77", HOST4, 40000, port, flags=f.SYN, payload=b"GET /")
            wire.send(frame(link, syn, "192.0.2.77"))
            listener.settimeout(5)
            connection, sender = listener.accept()
            with connection:
                assert sender == ("192.0.2.77", 40000) and connection.recv(16) == b"GET /"
                assert clients("192.0.2.77") is None
    finally:
        host.sysctl("net.ipv4.tcp_fastopen", 1)


@contextlib.contextmanager
def raw(ns):
    with ns.enter():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire:
        wire.bind(("far", 0))
        yield wire


def frame(link, segment, source):
    macs = [bytes.fromhex(ns.mac(name).replace(":", "")) for ns, name in zip(link, ("near", "far"))]
    return f.ethernet(f.ipv4(source, HOST4, segment), *macs)


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def boot_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_a_link_can_be_updated_and_taken_off(rig):
    other = loader.load(SMALL)
    try:
        with attached(rig.kernel.handshakes) as fd:
            before = libbpf.link_info(fd)
            assert before.prog_id == libbpf.prog_id(rig.kernel.handshakes) and libbpf.cgroup_id(fd)
            libbpf.link_update(fd, other.handshakes)
            after = libbpf.link_info(fd)
            assert (after.id, after.prog_id) == (before.id, libbpf.prog_id(other.handshakes))
            libbpf.link_detach(fd)
            assert not libbpf.cgroup_id(fd)
    finally:
        Kernel(other.prog, other.maps, SMALL, other.handshakes).close()


def test_programs_of_several_see_the_same(rig, link, clients):
    host, peer = link
    other = loader.load(SMALL)
    kernel = Kernel(other.prog, other.maps, SMALL, other.handshakes)
    try:
        with attached(kernel.handshakes), listening(host, socket.AF_INET, HOST4) as listener:
            reach(peer, HOST4, listener)
        assert clients(PEER4) and kernel.client(address.parse(PEER4))
    finally:
        kernel.close()


@pytest.fixture
def refused(tmp_path):
    """Sources whose functions of these names the verifier refuses."""
    shutil.copytree(program.SOURCES, tmp_path / "bpf")
    path = tmp_path / "bpf/packetwatch.c"

    def make(*names):
        for name in names:
            text, count = re.subn(rf"(int {name}\(.*\n(?:.*\n)*?\treturn) 1;", r"\1 7;", path.read_text())
            assert count == 1
            path.write_text(text)
        return tmp_path / "bpf"

    return make


def test_a_kernel_that_does_not_tell_namespaces_apart_has_another(refused):
    loaded = loader.load(SMALL, refused("established"))
    try:
        assert loaded.refused == "" and libbpf.prog_name(libbpf.prog_id(loaded.handshakes)) == "established_any"
    finally:
        Kernel(loaded.prog, loaded.maps, SMALL, loaded.handshakes).close()


def test_without_it_the_rest_is_there(refused):
    """What the verifier refuses is told, and everything else is handed over."""
    loaded = loader.load(SMALL, refused("established", "established_anywhere"))
    Kernel(loaded.prog, loaded.maps, SMALL).close()
    assert loaded.handshakes is None and list(loaded.maps) == list(program.MAPS)
    assert "verifier refuses" in loaded.refused and "\n" not in loaded.refused


def test_replays_have_none():
    loaded = loader.load(SMALL._replace(replay=True))
    Kernel(loaded.prog, loaded.maps, SMALL).close()
    assert (loaded.handshakes, loaded.refused) == (None, "")


def test_the_verifier_has_little_to_do(rig):
    about = pathlib.Path(f"/proc/self/fdinfo/{rig.kernel.handshakes}").read_text()
    assert int(re.search(r"^verified_insns:\s(\d+)$", about, re.M)[1]) < 500
