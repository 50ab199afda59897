# SPDX-License-Identifier: Apache-2.0
"""Which interfaces a running resident watches: those that come, go, are renamed, or are somebody else's."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from packetwatch import libbpf
from tests.bpf import harness

from .resident import wait_for
from .traffic import CLOSED, HOST4, SILENT, knock

QUIET = "log.format = json\nmetrics.listen = off\n"
ORIGINS = {"PW_IFDEV": "eth1", "PW_PORTSCAN_PORT_THRESHOLD": "2", "PW_PROMETHEUS_PORT": "9779"}
PASS_ALL = "int pass_all(struct xdp_md *ctx) { return XDP_PASS; }"


@pytest.fixture
def pair(netns, veth):
    """A host with eth0, cabled to an outside."""
    host, outside = netns(), netns()
    veth(host, "eth0", outside, "far", ["192.0.2.1/24", "2001:db8::1/64"], ["192.0.2.2/24", "2001:db8::2/64"])
    return host, outside


def watched(watch):
    """Name -> mode of what is watched, None for what should be."""
    return {row["name"]: row.get("mode") for row in watch.status()["interfaces"]}


def becomes(watch, wanted):
    wait_for(lambda: watched(watch) == wanted, f"{wanted} instead of {watched(watch)}")


def faults(watch):
    return {row["name"]: row["fault"] for row in watch.status()["interfaces"]}


def reaches(outside, to=HOST4, port=80):
    with outside.enter():
        return knock("192.0.2.2", to, port)


def test_an_interface_comes_gets_an_address_goes_and_comes_back(resident, netns, veth):
    host, outside = netns(), netns()
    watch = resident(host, QUIET + "interface = eth0 lo")
    assert watched(watch) == {"eth0": None, "lo": "generic"}
    assert faults(watch)["eth0"] == "eth0: no such interface; waiting for it"
    assert "waiting for it" in watch.errors() and "NOT WATCHED" in watch.done("status")
    for _ in range(2):
        veth(host, "eth0", outside, "far", [], ["192.0.2.2/24"])
        becomes(watch, {"eth0": "native", "lo": "generic"})
        host.ip("address add 192.0.2.1/24 dev eth0")  # its first address
        seen = len(watch.records("connection", in_iface="eth0"))
        wait_for(lambda: recorded(watch, outside) > seen, "a record of eth0")
        host.ip("link del eth0")
        becomes(watch, {"eth0": None, "lo": "generic"})
    assert len(watch.records("start", in_iface="eth0")) == len(watch.records("stop", in_iface="eth0")) == 2
    assert watch.ledger("eth0")["syns"] == len(watch.records("connection", in_iface="eth0")) >= 2
    with host.enter():
        assert knock("127.0.0.1", "127.0.0.1", 7) == CLOSED
    assert watch.record("connection", in_iface="lo")["dest_ip"] == "127.0.0.1"


def recorded(watch, outside):
    assert reaches(outside) in (CLOSED, SILENT)
    return len(watch.records("connection", in_iface="eth0"))


def test_a_renamed_interface_keeps_its_program_while_it_is_wanted(resident, pair):
    host, outside = pair
    watch = resident(host, QUIET + "interface = e*")
    before = watch.status()["interfaces"][0]["link_id"]
    host.ip("link set eth0 name e7")
    becomes(watch, {"e7": "native"})
    assert watch.status()["interfaces"][0]["link_id"] == before
    reaches(outside)
    watch.record("connection", in_iface="e7")
    host.ip("link set e7 name other")
    becomes(watch, {})
    assert "xdp" not in host.ip("link show other")
    watch.record("stop", in_iface="e7")


def test_globs_and_several_names(resident, netns, veth):
    host, outside = netns(), netns()
    veth(host, "wan0", outside, "far0")
    watch = resident(host, QUIET + "interface = wan* lan0")
    becomes(watch, {"wan0": "native", "lan0": None})
    veth(host, "wan1", outside, "far1")
    veth(host, "lan0", outside, "far2")
    veth(host, "dmz0", outside, "far3")
    becomes(watch, {"wan0": "native", "wan1": "native", "lan0": "native"})
    host.ip("link del wan0")
    becomes(watch, {"wan1": "native", "lan0": "native"})


def test_the_default_route_is_followed(resident, netns, veth):
    """None yet; then one, one more of the other family, and the first one moves."""
    host, outside = netns(), netns()
    veth(host, "eth0", outside, "far0", ["192.0.2.1/24"], ["192.0.2.2/24"])
    veth(host, "eth1", outside, "far1", ["198.51.100.1/24", "2001:db8::1/64"], ["198.51.100.2/24"])
    watch = resident(host, QUIET)
    assert watched(watch) == {} and "none is wanted" in watch.done("status")
    message = watch.records("start")[0]["message"]
    assert "no interface yet" in message and "scanners will be blocked" in message
    host.ip("route add default via 192.0.2.2")
    becomes(watch, {"eth0": "native"})
    host.ip("-6 route add default via 2001:db8::2")
    becomes(watch, {"eth0": "native", "eth1": "native"})
    host.ip("route change default via 198.51.100.2")
    becomes(watch, {"eth1": "native"})
    host.ip("route del default")
    becomes(watch, {"eth1": "native"})


def test_native_where_there_is_none_is_a_clear_refusal(resident, netns):
    host = netns()
    watch = resident(host, QUIET + "interface = lo\nxdp.mode = native")
    assert watched(watch) == {"lo": None}
    assert faults(watch)["lo"] == (
        "lo: the kernel refuses XDP in mode native: Operation not supported (try xdp.mode = generic)"
    )
    assert faults(watch)["lo"] in watch.errors()


def test_a_foreign_program_is_named_and_left_alone(resident, pair):
    """At the start by name; later, with fewer rights, by id and mode and the command that shows the rest."""
    host, _ = pair
    with foreign_program(host, "eth0", "generic") as number:
        watch = resident(host, QUIET + "interface = eth0 lo")
        told = foreign(f"{number}, name pass_all, generic", number)
        assert faults(watch)["eth0"] == told and watch.errors() == f"packetwatch: {told}\n"
        assert f"eth0: NOT WATCHED ({told})" in watch.done("status")
        assert f"prog/xdp id {number}" in host.ip("link show eth0")
    becomes(watch, {"eth0": "native", "lo": "generic"})
    watch.write(QUIET + "interface = lo")
    watch.done("reload")
    assert "xdp" not in host.ip("link show eth0")
    with foreign_program(host, "eth0", "native") as number:
        watch.write(QUIET + "interface = eth0 lo")
        watch.done("reload")
        assert faults(watch)["eth0"] == foreign(f"{number}, native", number)
    becomes(watch, {"eth0": "native", "lo": "generic"})
    assert watch.record("start", in_iface="eth0")["message"] == "watching eth0, XDP mode native"


def foreign(which, number):
    return (
        f"eth0: another XDP program is attached (id {which}); `bpftool prog show id {number}` shows it; "
        "end its owner, or remove it with `ip link set dev eth0 xdp off`"
    )


class foreign_program:
    """Sits on an interface as another tool's would; gives its id."""

    def __init__(self, ns, name, mode):
        self.ns, self.name = ns, name
        self.flags = {"native": libbpf.XDP_FLAGS_DRV_MODE, "generic": libbpf.XDP_FLAGS_SKB_MODE}[mode]

    def __enter__(self):
        (prog,) = harness.load_text(PASS_ALL, harness.CLOCKED, "pass_all", [])
        with self.ns.enter():
            self.link = libbpf.link_xdp(prog, socket.if_nametoindex(self.name), self.flags)
        number = libbpf.prog_id(prog)
        os.close(prog)
        return number

    def __exit__(self, *_):
        os.close(self.link)


def test_a_program_taken_off_is_put_back(resident, pair):
    """`ip link set xdp off` cannot remove a link's program, but the device can go to another namespace."""
    host, outside = pair
    watch = resident(host, QUIET + "interface = eth0")
    result = host.ip("link set dev eth0 xdp off", check=False)
    assert watched(watch) == {"eth0": "native"}, result
    host.ip(f"link set eth0 netns {outside.name}")
    becomes(watch, {"eth0": None})
    outside.ip(f"link set eth0 netns {host.name}")
    becomes(watch, {"eth0": "native"})


def test_two_residents_do_not_touch_each_other(resident, netns, veth):
    """The second one is told what to do as the program before this one was."""
    host, outside = netns(), netns()
    veth(host, "eth0", outside, "far0", ["192.0.2.1/24"], ["192.0.2.2/24"])
    veth(host, "eth1", outside, "far1", ["198.51.100.1/24"], ["198.51.100.2/24"])
    first = resident(host, QUIET + "interface = eth0")
    second = resident(host, QUIET, env=ORIGINS)
    assert second.status()["metrics"] == ["127.0.0.1:9779"]
    with outside.enter():
        for port in (1, 2, 3, 4):
            last = knock("192.0.2.2", "192.0.2.1", port)
        assert last == SILENT
        assert [knock("198.51.100.2", "198.51.100.1", port) for port in (1, 2, 3)] == [CLOSED, CLOSED, SILENT]
    first.record("block", src_ip="192.0.2.2")
    assert {record["in_iface"] for record in first.records("connection")} == {"eth0"}
    second.record("connection", src_ip="198.51.100.2", dest_port=2)
    assert [entry["prefix"] for entry in second.answer("block", "list")] == ["198.51.100.2"]
    assert not second.records("connection", in_iface="eth0")
    assert first.stop() == 0
    assert watched(second) == {"eth1": "native"} and "xdp" not in host.ip("link show eth0")


def test_another_device_with_the_same_index_is_watched(resident, pair):
    """It came while the process was busy: the link of the one before is dead, and nothing else tells."""
    host, outside = pair
    watch = resident(host, QUIET + "interface = eth0")
    index = watch.status()["interfaces"][0]["ifindex"]
    watch.send(signal.SIGSTOP)
    host.ip("link del eth0")
    host.ip(f"link add eth0 index {index} type veth peer name far netns {outside.name}")
    host.ip("address add 192.0.2.1/24 dev eth0")
    host.ip("link set eth0 up")
    outside.ip("address add 192.0.2.2/24 dev far")
    outside.ip("link set far up")
    watch.send(signal.SIGCONT)
    wait_for(lambda: len(watch.records("start", in_iface="eth0")) == 2, "it is put on again")
    assert watch.status()["protecting"]
    wait_for(lambda: recorded(watch, outside), "a record")
