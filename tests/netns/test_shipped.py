# SPDX-License-Identifier: Apache-2.0
"""The settings as shipped against scans of each kind, and against those who only use what a host serves."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.replays import replay

from .resident import wait_for
from .test_evidence import length_s
from .traffic import CLOSED, HOST4, HOST6, OPEN, OUT4, knock, listen

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/detection.md"
SETTINGS = "interface = v0\nlog.format = json\nmetrics.listen = off\n"


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS)


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    return wire.somebody(ipv6=request.param == "IPv6")


@pytest.fixture
def services(wire):
    """ssh, http and https."""
    with wire.listen(22), wire.listen(80), wire.listen(443):
        yield 22, 80, 443


def test_a_record_says_whether_the_port_is_open(watch, wire, source):
    with wire.listen(80, ipv6=":" in source):
        wire.knock(source, 80, 9)
    states = {each["dest_port"]: each["port_state"] for each in (
        watch.record("connection", src_ip=source, dest_port=port) for port in (80, 9)
    )}
    assert states == {80: "open", 9: "closed"}


def test_a_listener_on_all_addresses_of_both_families_is_open_and_one_on_another_address_is_not(watch, wire):
    source = wire.somebody()
    with listen(wire.host, "127.0.0.1", 81), everywhere(wire.host, 82):
        wire.knock(source, 81, 82)
    found = {port: watch.record("connection", src_ip=source, dest_port=port)["port_state"] for port in (81, 82)}
    assert found == {81: "closed", 82: "open"}


def everywhere(ns, port):
    with ns.enter():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)


class Scene(NamedTuple):
    """Somebody who uses what the host serves."""

    served: tuple[int, ...]
    used: tuple[int, ...]  #: in this order
    scan: bool = True  #: whether it matches the rule of a scan
    called: int = 0  #: connections that the host opens to them


EXPORTERS = 9100, 9104, 9187
SCENES = {
    "administrator with ssh, http and https": Scene((22, 80, 443), (22, 80, 443)),
    "Prometheus after a restart, three exporters": Scene(EXPORTERS, EXPORTERS),
    "NFSv3 mount": Scene((111, 20048, 2049), (111, 20048, 2049)),
    "FTP, passive": Scene((21, 50001, 50002, 50003), (21, 50001, 50002, 50003)),
    "FTP, active": Scene((21,), (21,) * 4, scan=False, called=3),
    "client of a domain controller": Scene((88, 135, 389, 445, 3268), (389, 88, 445, 135, 3268)),
    "gateway with 50 clients behind it": Scene((80, 443), (80, 443) * 25, scan=False),
    "gateway with 50 clients, one an administrator": Scene((22, 80, 443), (80, 443) * 24 + (22, 80)),
    "uptime monitor, one service down": Scene((22, 80, 443), (22, 25, 80, 443)),
}


def of(watch, kind, source):
    """The first record of a kind that names a source, by itself or with others."""
    return next(iter(naming(watch, kind, [source])), None)


def naming(watch, kind, sources):
    return [each for each in watch.records(kind) if {*each.get("src_ips", ()), each.get("src_ip")} & set(sources)]


def told(watch, name, source):
    """The row of the document's tables that says what became of a source."""
    scan, block = (of(watch, kind, source) for kind in ("scan", "block"))
    if scan is None:
        return f"| {name} | no | no | | |"
    kinds = [record for kind in ("connection", "probe") for record in watch.records(kind, src_ip=source)]
    packets = sum(record["timestamp"] <= scan["timestamp"] for record in kinds)
    packets = max(packets, len(scan["ports"]))  # two CPUs may read the clock in another order than they judge in
    return f"| {name} | yes | {length_s(block)} s | {packets} | {block.get('rule', '')} |".replace("  |", " |")


def is_documented(row):
    assert row in DOCUMENT.read_text().splitlines(), f"docs/detection.md lacks this row: {row}"


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
def test_who_uses_what_is_served_is_blocked_for_a_minute_at_most(request, watch, wire, scene):
    source = wire.somebody()
    with contextlib.ExitStack() as stack:
        for port in scene.served:
            stack.enter_context(wire.listen(port))
        found = wire.knock(source, *scene.used)
        call_back(wire, source, scene.called)
    assert found[:3] == [OPEN if port in scene.served else CLOSED for port in scene.used[:3]]
    if scene.scan:
        assert watch.record("scan", src_ip=source)
        block = watch.record("block", src_ip=source)
        assert length_s(block) <= 60 and "rule" not in block
    else:
        wait_for(lambda: len(watch.records("connection", src_ip=source)) == len(scene.used), "all records")
        assert found == [OPEN] * len(scene.used) and not watch.records("scan", src_ip=source)
    is_documented(told(watch, request.node.callspec.id, source))


def call_back(wire, source, times):
    """The host connects to ports of the source, as the server does in active FTP."""
    with listen(wire.outside, source, 0) as listener, wire.host.enter():
        assert [knock(HOST4, *listener.getsockname(), wait_s=1) for _ in range(times)] == [OPEN] * times


def test_who_tries_again_where_services_are_down_is_not_blocked_for_longer_each_time(tmp_path):
    """Prometheus tries each of them every 15 s."""
    scrapes = [refused(15 * number + spread, port) for number in range(20) for spread, port in enumerate(EXPORTERS)]
    log = tmp_path / "log"
    log.write_text("".join(json.dumps(scrape) + "\n" for scrape in scrapes))
    blocks = replay("--config", "/dev/null", "--from-log", log).of("block")
    assert len(blocks) > 3 and {(length_s(block), block["rule"]) for block in blocks} == {(60, "scan:closed")}
    down = "| Prometheus, three exporters down for five minutes"
    is_documented(f"{down} | yes | 60 s, again and again | 3 | scan:closed |")
    named = " ".join(map(str, EXPORTERS))
    blocks = replay("--config", "/dev/null", "--open-ports", named, "--from-log", log).of("block")
    assert len(blocks) > 3 and {(length_s(block), block.get("rule")) for block in blocks} == {(60, None)}


def refused(second, port):
    """The record of a connection to a closed port."""
    timestamp = f"2026-01-01T00:{second // 60:02}:{second % 60:02}.000000Z"
    ends = {"src_ip": OUT4, "src_port": 40000, "dest_ip": HOST4, "dest_port": port}
    return {"event_type": "connection", "timestamp": timestamp, **ends, "port_state": "closed"}


#: Words of nmap, and whether it is a scan here. All are of eleven closed ports, in order.
NMAP = {
    "-sS": True, "-sT": True, "-sF": True, "-sN": True, "-sX": True, "-sA": False, "-sW": False,
    "-sS -f": True, "-sS -D 198.51.100.250,ME": True, "-sS -D RND:10": True, "-sS -g 53": True, "-sS -T3": True,
    "-sS -T4": True, "-sS -T5": True,
}


@pytest.mark.parametrize("words", NMAP)
def test_nmaps_scans(watch, wire, words):
    source = wire.somebody()
    wire.outside.ip(f"route change 192.0.2.0/24 dev v1 src {source}")  # whom a connect scan comes from
    try:
        wire.nmap(*words.split(), "-r", "-p", "1000-1010", HOST4)
    finally:
        wire.outside.ip(f"route change 192.0.2.0/24 dev v1 src {OUT4}")
    if NMAP[words]:
        wait_for(lambda: of(watch, "block", source), "the block")
    else:
        assert wire.knock(source, 9) == [CLOSED]
        watch.record("connection", src_ip=source, dest_port=9)
    is_documented(told(watch, f"nmap {words}", source))


def test_decoys_are_one_event_and_each_is_accounted(watch, wire):
    source, before = wire.somebody(), watch.status()["blocked_now"]
    wire.nmap("-sS", "-D", "RND:10,ME", "-e", "v1", "-S", source, "-r", "-p", "2000-2010", HOST4)
    ports = [2000, 2001, 2002]
    scan = wait_for(lambda: [each for each in watch.records("scan", ports=ports) if "src_ips" in each], "the event")[0]
    assert scan["sources"] == 11 == len(set(scan["src_ips"])) and source in scan["src_ips"]
    assert scan["dest_ip"] == HOST4 and "src_ip" not in scan
    wait_for(lambda: all(of(watch, "block", each) for each in scan["src_ips"]), "the blocks")
    scans, blocks = watch.records("scan", ports=ports), naming(watch, "block", scan["src_ips"])
    assert len(scans) <= 4 and len(blocks) <= 4  # three at most by themselves, then one of all
    assert sum(each.get("count", 1) for each in scans) == sum(each.get("count", 1) for each in blocks) == 11
    assert {length_s(block) for block in blocks} == {60}
    for each in scan["src_ips"]:
        answer = watch.answer("why", each)
        assert answer["verdict"] == "blocked" and answer["blocked_by"][0]["rule"] == "scan:closed"
        assert [record["event_type"] for record in answer["history"]] == ["scan", "block"]
        assert {record["src_ip"] for record in answer["history"]} == {each}
    assert watch.status()["blocked_now"] - before == 11


def test_a_scan_by_itself_waits_for_no_other(watch, wire):
    source = wire.somebody()
    wire.knock(source, 9, 10, 11)
    watch.record("scan", src_ip=source, timeout_s=0.6)


def test_nmap_over_ipv6(watch, wire):
    source = wire.somebody(ipv6=True)
    wire.nmap("-6", "-sS", "-e", "v1", "-S", source, "-r", "-p", "1000-1010", HOST6)
    watch.record("block", src_ip=source)
    is_documented(told(watch, "nmap -6 -sS", source))


@pytest.mark.parametrize("kind, flags", [("-sF", "FIN"), ("-sN", ""), ("-sX", "FIN,PSH,URG")])
def test_nmap_without_syn_is_a_scan_that_learns_nothing(watch, wire, services, kind, flags):
    source = wire.somebody()
    printed = wire.nmap(kind, "-e", "v1", "-S", source, "-p", "22,80,443,1000-1010", HOST4)
    assert "open " not in printed and "closed" not in printed and printed.count("open|filtered") == 14, printed
    assert watch.record("scan", src_ip=source) and watch.record("block", src_ip=source)
    wait_for(lambda: len(watch.records("probe", src_ip=source)) >= 14, "the probes")
    probes = watch.records("probe", src_ip=source)
    assert {probe["tcp_flags"] for probe in probes} == {flags}
    assert {probe["port_state"] for probe in probes if probe["dest_port"] == 22} == {"open"}
    assert {probe["port_state"] for probe in probes if probe["dest_port"] == 1000} == {"closed"}


def test_nmaps_fragments_are_probes(watch, wire):
    source = wire.somebody()
    wire.nmap("-sS", "-f", "-e", "v1", "-S", source, "-p", "1000-1010", HOST4)
    assert watch.record("scan", src_ip=source) and watch.record("probe", src_ip=source)["tcp_flags"] == ""


def test_an_ack_scan_is_no_scan(watch, wire):
    source = wire.somebody()
    wire.nmap("-sA", "-e", "v1", "-S", source, "-p", "1000-1010", HOST4)
    assert wire.knock(source, 9) == [CLOSED]
    assert not watch.records("scan", src_ip=source) and not watch.records("probe", src_ip=source)
