# SPDX-License-Identifier: Apache-2.0
"""Sources that have completed a handshake: what `why` and `status` say of them, and how the program lives on."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from packetwatch import libbpf
from tests import frames
from tests.bpf import harness

from .conftest import call
from .resident import wait_for
from .traffic import CLOSED, HOST4, HOST6, OPEN

SETTINGS = "interface = v0\nlog.format = json\nmetrics.listen = off\n"
BARE = "int bare(struct bpf_sock_ops *ops) { return 1; }"
#: `ip netns exec` leaves no cgroup mounted.
CGROUP = ["sh", "-c", 'mount -t cgroup2 none /sys/fs/cgroup && exec "$0" "$@"']


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS, prefix=CGROUP)


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    return wire.somebody(ipv6=request.param == "IPv6")


def links():
    """Ids of all there are."""
    found, number = set(), ctypes.c_uint32(0)
    while True:
        try:
            libbpf._call("bpf_link_get_next_id", number, ctypes.byref(number))
        except FileNotFoundError:
            return found
        found.add(number.value)


def link_of(watch):
    """(id, id of the program) of the link on the root cgroup, of the process itself."""
    for path in Path(f"/proc/{watch.pid}/fdinfo").iterdir():
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue  # one for a moment only
        if re.search(r"^link_type:\s+cgroup$", text, re.M):
            return tuple(int(re.search(rf"^{name}:\s+(\d+)$", text, re.M)[1]) for name in ("link_id", "prog_id"))
    return None


def syn(wire, source, port):
    """Sends one that nobody stands behind."""
    build, to = (frames.ipv6, HOST6) if ":" in source else (frames.ipv4, HOST4)
    packet = build(source, to, frames.tcp(source, to, 40000, port))
    with wire.outside.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("v1", 0))
        raw.send(frames.ethernet(packet, frames.mac(wire.host.mac("v0")), frames.mac(wire.outside.mac("v1"))))


def test_whoever_has_connected_is_established(watch, wire, source):
    with wire.listen(22, ipv6=":" in source):
        assert wire.knock(source, 22) == [OPEN]
    answer = watch.answer("why", source)
    assert (answer["evidence"], answer["client"]["since"]) == ("established", answer["client"]["last"])
    assert "\nestablished: has completed handshakes from " in watch.done("why", source)


def test_syns_and_refused_connections_are_only_seen(watch, wire, source):
    with wire.listen(22, ipv6=":" in source):
        syn(wire, source, 22)
    wait_for(lambda: watch.answer("why", source)["ports"], "the SYN")
    assert wire.knock(source, 5) == [CLOSED]
    answer = watch.answer("why", source)
    assert (answer["evidence"], answer["client"]) == ("seen", None)
    assert "established" not in watch.done("why", source)


def test_status_says_that_they_are_seen(watch):
    assert watch.status()["handshakes"] == "seen"
    assert re.search("^Handshakes +seen$", watch.done("status"), re.M)
    assert "handshakes" not in watch.said()


def test_without_a_cgroup_it_says_so_and_does_the_rest(resident, wire, source):
    watch = resident(wire.host, SETTINGS.replace("v0", "lo"))
    assert watch.status()["handshakes"] == "not seen: no cgroup v2 is mounted"
    told = "handshakes are not seen, so no source counts as established: no cgroup v2 is mounted"
    assert watch.said().count(told) == 1
    assert watch.answer("why", source)["client"] is None
    assert watch.status()["protecting"] and not watch.status()["problems"]


@pytest.fixture
def taken(tmp_path):
    """The name of a cgroup with a program that allows no other, as were usual before bpf_link."""
    root, name = tmp_path / "cgroup", f"pw-{os.getpid()}"
    root.mkdir()
    call("mount", "-t", "cgroup2", "none", str(root))
    try:
        (root / name).mkdir()
        fds = harness.load_text(BARE, harness.CLOCKED, "bare", [], "SOCK_OPS")
        fds.append(os.open(root / name, os.O_RDONLY))
        try:
            libbpf._call("bpf_prog_attach", *fds, libbpf.CGROUP_SOCK_OPS, 0)
        finally:
            for fd in fds:
                os.close(fd)
        yield name
        wait_for(lambda: not (root / name / "cgroup.procs").read_text(), "the cgroup is empty")
        (root / name).rmdir()
    finally:
        call("umount", str(root))


def test_beside_a_program_that_allows_no_other_it_says_so_and_does_the_rest(resident, wire, taken):
    """In a cgroup namespace whose root is that one."""
    there = "/sys/fs/cgroup"
    enter = f"mount -t cgroup2 none {there} && echo $$ >{there}/{taken}/cgroup.procs && umount {there}"
    prefix = ["sh", "-c", enter + ' && exec unshare --cgroup "$0" "$@"', *CGROUP]
    watch = resident(wire.host, SETTINGS.replace("v0", "lo"), prefix=prefix)
    assert watch.status()["handshakes"] == (
        "not seen: the cgroup /sys/fs/cgroup does not take the program: Operation not permitted"
        " (one that is there may allow no other)"
    )
    assert watch.status()["protecting"] and "so no source counts as established" in watch.said()
    watch.stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_outlives_a_kill_and_no_stop(resident, netns, veth, pins, number):
    host, outside = netns(), netns()
    veth(host, "v0", outside, "v1", ["192.0.2.1/24"], ["192.0.2.2/24"])
    watch = resident(host, SETTINGS, "--pin", str(pins), prefix=CGROUP)
    before = link_of(watch)
    knock_open(host, outside)
    if number == signal.SIGTERM:
        assert watch.stop() == 0
        wait_for(lambda: before[0] not in links(), "the link is gone")
        assert not pins.exists()
        return
    watch.kill()
    assert before[0] in links()
    knock_open(host, outside, "192.0.2.3")
    watch.start()
    assert watch.status()["adopted"] and watch.status()["handshakes"] == "seen"
    assert link_of(watch) == before
    assert evidence(watch, "192.0.2.2", "192.0.2.3") == ["established"] * 2


def knock_open(host, outside, source="192.0.2.2"):
    """Connects to a listener."""
    outside.ip(f"address replace {source}/24 dev v1")
    with host.enter():
        listener = socket.create_server(("192.0.2.1", 22))
    with listener, outside.enter():
        socket.create_connection(("192.0.2.1", 22), 5, (source, 0)).close()


def evidence(watch, *sources):
    return [watch.answer("why", source)["evidence"] for source in sources]


def test_another_program_takes_over_with_those_it_knows(resident, netns, veth, pins):
    host, outside = netns(), netns()
    veth(host, "v0", outside, "v1", ["192.0.2.1/24"], ["192.0.2.2/24"])
    watch = resident(host, SETTINGS, "--pin", str(pins), prefix=CGROUP)
    link, prog = link_of(watch)
    knock_open(host, outside)
    since = watch.answer("why", "192.0.2.2")["client"]["since"]
    watch.kill()
    watch.write(SETTINGS + "table.blocks = 2048\n")
    watch.start()
    assert not watch.status()["adopted"]
    assert link_of(watch)[0] == link and link_of(watch)[1] != prog
    knock_open(host, outside)
    knock_open(host, outside, "192.0.2.3")
    assert evidence(watch, "192.0.2.2", "192.0.2.3") == ["established"] * 2
    assert watch.answer("why", "192.0.2.2")["client"]["since"] == since


def test_a_link_that_was_taken_off_is_told_and_made_anew_at_the_start(resident, netns, veth, pins):
    host, outside = netns(), netns()
    veth(host, "v0", outside, "v1", ["192.0.2.1/24"], ["192.0.2.2/24"])
    watch = resident(host, SETTINGS, "--pin", str(pins), prefix=CGROUP)
    before = link_of(watch)
    libbpf.link_detach(libbpf.pinned(str(pins / "handshakes")))
    assert watch.status()["handshakes"].startswith("not seen: the program was taken off")
    watch.kill()
    watch.start()
    assert watch.status()["handshakes"] == "seen" and link_of(watch)[0] != before[0]
    knock_open(host, outside)
    assert evidence(watch, "192.0.2.2") == ["established"]


def test_residents_side_by_side_each_have_theirs(resident, watch, wire):
    other = resident(wire.host, SETTINGS.replace("v0", "lo"), prefix=CGROUP)
    one, two = link_of(watch), link_of(other)
    assert one != two
    source = wire.somebody()
    with wire.listen(22):
        assert wire.knock(source, 22) == [OPEN]
    assert evidence(watch, source) == evidence(other, source) == ["established"]
    assert other.stop() == 0
    assert one[0] in links() and two[0] not in links()
    source = wire.somebody()
    with wire.listen(22):
        assert wire.knock(source, 22) == [OPEN]
    assert evidence(watch, source) == ["established"]
