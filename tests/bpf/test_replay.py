# SPDX-License-Identifier: Apache-2.0
"""packetwatch replay: real captures against other counters, every format, the one rule and the one account.

Loads programs by the command, as people do; attaches nothing.
"""

from __future__ import annotations

import collections
import csv
import json
import os
import random
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from packetwatch import address, config, detection, event, kinds, libbpf, loader, privileges, program
from packetwatch.kernel import Kernel
from tests import captures as c
from tests import frames as f
from tests.bpf import harness, rows, test_frames
from tests.replays import ROOT, command, environment, replay

PCAPS = ROOT / "tests" / "pcaps"
SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
HERE, THERE = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
ROWS = list(csv.DictReader((PCAPS / "pcaps.csv").open()))
#: Where fewer SYNs are judged than other counters see: how many, and why.
FEWER = {
    "suricata-verify-ipopts-esec-test.pcap": (1, "sent to the broadcast MAC", {"ignored": {"foreign_mac": 1}}),
    "zeek-ip6-hoa-tcp-good-chksum.pcap": (1, "sent to the broadcast MAC", {"ignored": {"foreign_mac": 1}}),
    "zeek-fragmented-4.pcap": (1, "to 127.0.0.1 over a wire", {"ignored": {"martian": 1}}),
    "nDPI-fuzz-2006-06-26-2594.pcap": (1, "no host takes it", {"malformed": {"truncated": 2, "ip_header": 3}}),
    "zeek-mixed-vlan-mpls.pcap": (1, "within MPLS", {}),
    "zeek-pppoe-over-qinq.pcap": (1, "within PPPoE", {}),
}


def syn(src, dst, port, sport=40000, to=HERE, source=THERE, **fields):
    make = f.ipv6 if ":" in src else f.ipv4
    return f.ethernet(make(src, dst, f.tcp(src, dst, sport, port, **fields)), to, source)


def scan(src="192.0.2.1", dst="192.0.2.2", ports=(21, 22, 23, 25), at=NOW, gap=SECOND):
    return [(at + i * gap, syn(src, dst, port)) for i, port in enumerate(ports)]


@pytest.fixture
def made(tmp_path):
    """A file of frames."""

    def make(frames, name="x.pcap", form=c.pcap, **fields):
        path = tmp_path / name
        path.write_bytes(form(frames, **fields))
        return path

    return make


# real captures


def began(path):
    """The time of the first frame, as tcpdump tells it."""
    first = subprocess.run(["tcpdump", "-ttnnc1", "-r", path], capture_output=True, text=True, errors="replace")
    return float(first.stdout.split()[0])


@pytest.fixture(scope="module")
def captures():
    """All at once, in order of time: files that have nothing to do with each other do not meet."""
    done = replay(*sorted((PCAPS / row["file"] for row in ROWS), key=began))
    assert done.status == 0 and done.errors == ""
    return done


def syns_by_tcpdump(path):
    """Segments with SYN and without ACK, RST and FIN, in whatever they are wrapped."""
    out = subprocess.run(["tcpdump", "-nn", "-r", path], capture_output=True, text=True, errors="replace", check=True)
    flags = [set(found) for found in re.findall(r"Flags \[([A-Z.]+)\]", out.stdout)]
    return sum("S" in each and not each & set("RF.") for each in flags)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["file"])
def test_a_real_capture_has_the_syns_and_scans_that_others_count(captures, row):
    name = row["file"]
    account = captures.files()[name]
    missing, _, fields = FEWER.get(name, (0, "", {}))
    assert account["syns"] + missing == int(row["syn_without_ack"]) == syns_by_tcpdump(PCAPS / name)
    for key, value in fields.items():
        assert account[key] == value
    scanners = {line["src_ip"] for line in captures.of("scan") if line["in_iface"] == name}
    assert len(scanners) == int(row["sources_with_3_ports_of_one_host_in_60s"])


def test_the_account_of_all_captures(captures):
    total = captures.account
    assert total["connections"] == len(captures.of("connection")) > 10_000
    assert total["scans"] == len(captures.of("scan")) == sum(each["scans"] for each in captures.files().values())
    assert total["blocks"] == len(captures.of("block"))
    assert total["connections_dropped"] == sum(line["count"] for line in captures.of("drop")) > 1900
    assert total["syns"] == total["connections"] + total["connections_dropped"]
    assert total["frames"] == total["set_aside"] + total["handed"]
    assert total["fault"] is None


def test_the_folder_of_captures_is_complete_and_small():
    files = {path.name for path in PCAPS.iterdir()} - {"README.md", "pcaps.csv"}
    assert files == {row["file"] for row in ROWS} and all(row["licence"] for row in ROWS)
    assert sum(path.stat().st_size for path in PCAPS.iterdir()) < 8 << 20


# the replay build


class ReplayRig(harness.Rig):
    """The replay build; what its header tells is said here."""

    now_ns, hosts, ifindex = NOW, 0, harness.LO

    def run(self, frame, ifindex=None, repeat=1):
        header = program.REPLAY_HEADER.pack(self.now_ns, self.ifindex, event.CLOSED, self.hosts)
        return self.runner(header + frame)


@pytest.fixture(scope="module")
def replay_rig():
    loaded = loader.load(harness.PRODUCT._replace(replay=True))
    rig = ReplayRig(Kernel(loaded.prog, loaded.maps, harness.PRODUCT))
    rig.runner = libbpf.test_runner(loaded.prog)
    yield rig
    rig.kernel.close()


@pytest.fixture
def host(replay_rig):
    replay_rig.reset()
    replay_rig.hosts, replay_rig.now_ns, replay_rig.ifindex = 0, NOW, harness.LO
    replay_rig.local(*test_frames.LOCAL)
    yield replay_rig
    replay_rig.check_ledger()


def test_the_replay_build_counts_each_frame_as_the_product_does(host, product_rig):
    product_rig.reset()
    product_rig.local(*test_frames.LOCAL)
    for row in rows.ROWS:
        for frame in row.build(test_frames.ENDS):
            before = [rig.counters(0) for rig in (host, product_rig)]
            verdicts = {rig.run(frame) for rig in (host, product_rig)}
            changes = [harness.changes(old, rig.counters(0)) for old, rig in zip(before, (host, product_rig))]
            assert changes[0] == changes[1], row.description
            assert len(verdicts) == 1, row.description
    product_rig.check_ledger()


def test_the_header_gives_time_and_attachment(host):
    host.attach(number=7, ifindex=9)
    host.ifindex, host.now_ns = 9, NOW + 5
    assert host.run(syn("10.9.0.2", "10.9.0.1", 80, to=harness.MAC)) == harness.PASS
    ((boot_ns, _, _, _, _, attachment, _),) = host.records()
    assert (boot_ns, attachment) == (NOW + 5, 7)


@pytest.mark.parametrize("ends", [("10.9.0.2", "10.9.0.1", "127.0.0.9"), ("fd00:9::2", "fd00:9::1", "fd00:9::8")])
@pytest.mark.parametrize("hosts", [0, 1])
def test_hosts_are_told_apart_where_the_header_says_so(host, hosts, ends):
    """Blocks, too, are of one host then; records tell the source as it is."""
    source, one, other = ends
    host.hosts = hosts
    host.local(one, other)
    host.attach(loopback=True)
    passed = [host.run(syn(source, dst, port, to=harness.MAC)) for port in (1, 2) for dst in (one, other)]
    passed += [host.run(syn(source, dst, port, to=harness.MAC)) for dst, port in ((one, 3), (one, 4), (other, 5))]
    assert passed == ([harness.PASS] * 5 + [harness.DROP, harness.PASS] if hosts else
                      [harness.PASS] * 4 + [harness.PASS, harness.DROP, harness.DROP])
    scans = host.scans()
    assert [address.text(each.saddr) for each in scans] == [source] * (2 if hosts else 1)
    assert {address.text(record[1]) for record in host.records()} == {source}


def test_the_options_struct_that_serves_all_calls_forgets_the_size_before(host):
    for size in (10, 500, 0, 2900, 1):
        assert host.run(syn("10.9.0.2", "10.9.0.1", 80, to=harness.MAC, payload=bytes(size))) == harness.PASS
    assert sum(host.counters(0).syns) == 5


# the rule on the capture's clock


def oracle(frames, settings):
    """(actions, scans) of the pure rule, for each destination on its own; frames are answered as answers() does."""

    def guard():
        rules = [rule.beside(settings.scan_ports, settings.scan_window_ns) for rule in settings.block_rules]
        detector = detection.Detector(settings.scan_ports, settings.scan_window_ns, block_rules=rules)
        open_ns = min(settings.block_first_ns, 60 * SECOND)
        lengths = detection.Blocks(
            settings.block_duration_ns, settings.block_first_ns, open_ns, settings.block_forget_ns)
        return detection.Guard(detector, lengths)

    guards = collections.defaultdict(guard)
    actions, found = collections.Counter(), []
    for ns, frame in frames:
        source, destination, _, port, _, _ = f.tcp_of(frame)
        verdict = guards[destination].judge(source, port, ns, closed=is_closed(port))
        actions[verdict.action] += 1
        if verdict.action == detection.SCAN:
            found.append((source, destination, verdict.rule))
    return actions, found


def is_closed(port):
    return port % 3 != 0


def answers(frames):
    """Each SYN with its answer behind it; some ports are silent."""
    for ns, frame in frames:
        yield ns, frame
        source, destination, sport, port, _, _ = f.tcp_of(frame)
        if is_closed(port):
            flags = {"flags": f.RST | f.ACK, "seq": 0}
        elif port % 2:
            flags = {"flags": f.SYN | f.ACK, "seq": 7}
        else:
            continue
        make = f.ipv6 if len(source) == 16 else f.ipv4
        reply = f.tcp(destination, source, port, sport, **flags)
        yield ns + 1, f.ethernet(make(destination, source, reply), THERE, HERE)


def some_traffic(seed, count=6000):
    chance, now, frames = random.Random(seed), NOW, []
    for _ in range(count):
        now += chance.choice((1000, SECOND, 2 * SECOND)) * chance.randrange(1, 6)
        if chance.random() < 0.3:
            ends = f"2001:db8::{chance.randrange(1, 5)}", f"2001:db8:1::{chance.randrange(1, 3)}"
        else:
            ends = f"192.0.2.{chance.randrange(1, 9)}", f"198.51.100.{chance.randrange(1, 4)}"
        frames.append((now, syn(*ends, chance.randrange(1, 40), sport=chance.randrange(1, 65536))))
    return frames


@pytest.mark.parametrize(
    "flags",
    [
        {"scan.ports": "3", "block.duration": "10m"},
        {"scan.ports": "4", "scan.window": "100s", "block.first": "30s", "block.rules": "4:closed:2m 9:all:5m"},
        {"scan.ports": "4", "block.first": "20s", "block.rules": "2:closed:1m", "block.forget": "5m"},
    ],
)
def test_the_pure_rule_agrees(made, flags):
    """Scans and blocks over open and closed ports, as the capture's answers tell them; longer for who comes again."""
    frames = some_traffic(len(flags))
    words = [word for key, value in flags.items() for word in (config.flag(key), value)]
    done = replay(made(answers(frames), digits=c.NANO), *words)
    settings = config.load([], {}, {key: [value] for key, value in flags.items()})
    actions, found = oracle(frames, settings)
    assert min(actions[detection.PASS], actions[detection.DROP], len(found)) > 100
    assert {bool(rule) for _, _, rule in found} == {True, False} or len(flags) == 4
    assert done.status == 0
    assert done.account["connections"] == actions[detection.PASS] + actions[detection.SCAN]
    assert done.account["connections_dropped"] == actions[detection.DROP]
    assert [(f.packed(each["src_ip"]), each.get("rule")) for each in done.of("block")] == [
        (source, kinds.rule_text(settings.block_rules[rule - 1]) if rule else None) for source, _, rule in found
    ]
    assert {line["port_state"] for line in done.of("connection") if is_closed(line["dest_port"])} == {"closed"}
    states = {line["dest_port"]: line.get("port_state") for line in done.of("connection")}
    assert (states[2], states[3], states[6]) == ("closed", "open", None)


def test_records_have_the_times_of_the_capture(made):
    done = replay(made(scan(at=NOW + 123_456_000)))
    assert [line["timestamp"] for line in done.of("connection")] == [
        f"2023-11-14T22:13:2{i}.123456Z" for i in range(3)
    ]
    (block,), (drop,) = done.of("block"), done.of("drop")
    assert block["until"] == "2023-11-14T22:14:22.123456Z"
    assert (drop["count"], drop["dest_ip"], drop["timestamp"]) == (1, "192.0.2.2", "2023-11-14T22:13:23.123456Z")
    assert {line["in_iface"] for line in done.lines} == {"x.pcap"}


@pytest.mark.parametrize("form", c.FORMATS)
@pytest.mark.parametrize("link", c.LINKS)
def test_every_format_and_link_type_is_judged_alike(made, form, link):
    frames = scan() + scan("2001:db8::1", "2001:db8::2", at=NOW + 9 * SECOND)
    path = made([(ns, c.LINKS[link](frame)) for ns, frame in frames], form=c.FORMATS[form], link=link, order=">")
    done = replay(path)
    assert (done.status, done.errors) == (0, "")
    assert [(each["src_ip"], each["ports"]) for each in done.of("scan")] == [
        ("192.0.2.1", [21, 22, 23]), ("2001:db8::1", [21, 22, 23])
    ]
    assert (done.account["syns"], done.account["connections_dropped"]) == (8, 2)


def test_odd_frames_are_judged(made):
    """Tags, options, extension headers, and SYNs of which the capture kept the headers alone."""
    port = iter(range(1, 9))
    ends = "192.0.2.1", "192.0.2.2"
    ends6 = "2001:db8::1", "2001:db8::2"
    tagged = f.ethernet(f.ipv4(*ends, f.tcp(*ends, 9, next(port))), HERE, THERE, tags=[(f.ETH_8021Q, 5)] * 2)
    options = f.ethernet(f.ipv4(*ends, f.tcp(*ends, 9, next(port)), options=f.NOOP * 8), HERE, THERE)
    cut = syn(*ends, next(port), options=f.NOOP * 20, payload=bytes(900))
    behind = f.ipv6(*ends6, f.tcp(*ends6, 9, next(port)), [f.options_header(f.DESTINATION)])
    extended = f.ethernet(behind, HERE, THERE)
    long = syn(*ends, next(port), payload=bytes(5000))
    data = f.tcp(*ends, 9, 80, f.ACK, payload=bytes(4000))
    lying = (NOW, long, 60), (NOW, f.ethernet(f.ipv4(*ends, data, more=True), HERE, THERE), 60)
    done = replay(made([
        (NOW, tagged), (NOW, options), (NOW, cut[:68], len(cut)), (NOW, extended), (NOW, long),
        (NOW, cut[:44], len(cut)), *lying,
    ]))
    assert (done.status, done.errors) == (0, "")
    assert [line["dest_port"] for line in done.of("connection")] == [1, 2, 3, 4]
    assert done.of("scan")[0]["ports"] == [1, 2, 3]
    assert done.account["too_long"] == 2
    assert done.account["handed"] == 6 and done.account["malformed"]["truncated"] == 1


def test_a_capture_of_the_loopback_device(made):
    frames = [(ns, bytes(12) + frame[12:]) for ns, frame in scan("127.0.0.1", "127.0.0.1")]
    assert replay(made(frames)).account["scans"] == 1
    wire = replay(made(scan("127.0.0.1", "127.0.0.1"))).account
    assert (wire["scans"], wire["ignored"]) == (0, {"martian": 4})


# settings


def test_local_names_the_one_host(made):
    """Others' SYNs are not counted; the host's own addresses count together."""
    frames = scan(ports=(1, 2)) + scan(dst="192.0.2.3", ports=(3, 4), at=NOW + 9 * SECOND)
    frames += scan(dst="198.51.100.1", ports=(1, 2, 3, 4), at=NOW + 19 * SECOND)
    path = made(frames)
    assert replay(path).account["scans"] == 1  # at 198.51.100.1
    both = replay(path, "--local", "192.0.2.2,192.0.2.3")
    assert [each["ports"] for each in both.of("scan")] == [[1, 2, 3]]
    assert both.account["ignored"] == {"not_local": 4} and both.account["connections_dropped"] == 1
    assert replay(path, "--local", "192.0.2.2", "--local", "192.0.2.3").lines == both.lines
    assert replay(path, "--local", "192.0.2.2/31").lines == both.lines


def test_settings_come_from_files_environment_and_flags(made, tmp_path):
    conf = tmp_path / "packetwatch.conf"
    conf.write_text("[scan]\nports = 4\n[block]\nfirst = 2s\n")
    path = made(scan(ports=range(1, 9)))
    by_file = replay(path, "--config", conf)
    assert by_file.of("scan")[0]["ports"] == [1, 2, 3, 4]
    assert by_file.of("block")[0]["until"] == "2023-11-14T22:13:25.000000Z"
    assert "4 ports within 1m" in by_file.account["rule"] and "for 2s to 1h" in by_file.account["rule"]
    by_environment = replay(path, "--config", conf, env={"PACKETWATCH_SCAN_PORTS": "5"})
    assert by_environment.of("scan")[0]["ports"] == [1, 2, 3, 4, 5]
    by_flag = replay(path, "--config", conf, "--scan-ports", "2", env={"PACKETWATCH_SCAN_PORTS": "5"})
    assert by_flag.of("scan")[0]["ports"] == [1, 2]


def test_observe_lets_everything_through_and_says_what_it_would(made):
    done = replay(made(scan(ports=range(1, 9))), "--mode", "observe")
    assert (done.account["connections"], done.account["connections_dropped"]) == (8, 0)
    assert done.account["connections_would_drop"] == 5
    assert [line.get("mode") for line in done.of("connection")] == [None] * 3 + ["observe"] * 5
    assert [(line["count"], line["mode"]) for line in done.of("drop")] == [(5, "observe")]


def test_lists_of_the_settings_hold(made):
    frames = scan("192.0.2.1") + scan("192.0.2.7", at=NOW + 20 * SECOND) + scan("192.0.2.9", at=NOW + 40 * SECOND)
    done = replay(made(frames), "--allow", "192.0.2.7", "--block", "192.0.2.9")
    assert [each["src_ip"] for each in done.of("scan")] == ["192.0.2.1"]
    assert done.account["dropped"] == {"scan": 1, "list": 4}
    assert [each["src_ip"] for each in done.of("drop")] == ["192.0.2.1"]
    assert {line["src_ip"] for line in done.of("connection") if line.get("allowed")} == {"192.0.2.7"}


def test_scans_and_blocks_alone(made):
    done = replay(made(scan()), "--log-connections", "off")
    assert [line["event_type"] for line in done.lines] == ["scan", "block", "drop"]
    assert done.account["connections"] == 3


def test_sums_of_connections(made):
    done = replay(made(scan()), "--log-connections", "summary")
    assert sum(line["count"] for line in done.of("summary")) == 3 and done.of("connection") == []


def test_text(made):
    done = command(made(scan()), "--log-format", "text")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        *(f"2023-11-14 22:13:2{i}: New connection: 192.0.2.1:40000 -> 192.0.2.2:{21 + i}" for i in range(3)),
        "2023-11-14 22:13:22: Port scan detected: 192.0.2.1 -> 192.0.2.2 on ports 21,22,23",
        "2023-11-14 22:13:22: Blocked 192.0.2.1 for 1m (port scan)",
        "2023-11-14 22:13:23: Dropped 1 connection from 192.0.2.1 since 2023-11-14 22:13:23",
    ]
    assert "4 SYNs = 3 recorded + 1 dropped" in done.stderr and "Scans        1, blocks 1" in done.stderr


# several files


def test_rotated_files_are_one_capture(made):
    frames = scan()
    done = replay(made(frames[:2], "a"), made(frames[2:], "b"))
    assert [(each["in_iface"], each["ports"]) for each in done.of("scan")] == [("b", [21, 22, 23])]
    assert [each["scans"] for each in done.account["files"]] == [0, 1]
    assert done.account["syns"] == 4 and done.account["connections_dropped"] == 1


def test_a_file_of_an_earlier_time_begins_anew(made):
    done = replay(made(scan(at=NOW), "a"), made(scan(at=NOW - 1000 * SECOND), "b"))
    assert [each["in_iface"] for each in done.of("scan")] == ["a", "b"]
    assert done.status == 0 and done.account["syns"] == 8 and done.account["connections"] == 6


def test_frames_out_of_order_are_told(made):
    done = replay(made(scan(gap=-SECOND)))
    assert done.account["backwards"] == 3 and done.account["scans"] == 1
    assert done.account["begin"] == "2023-11-14T22:13:17.000000Z"
    assert done.account["end"] == "2023-11-14T22:13:20.000000Z"


def test_more_alerts_than_their_ring_holds(made):
    """And more sources than one batch of the lookahead."""
    sources = [f"10.{i >> 14}.{i >> 7 & 127}.{i & 127}" for i in range(9000)]
    frames = [(NOW + i, syn(source, "192.0.2.2", port)) for i, source in enumerate(sources) for port in (1, 2)]
    done = replay(made(frames), "--scan-ports", "2", "--log-connections", "off", "--table-trackers", "1048576")
    assert done.status == 0
    assert done.account["scans"] == done.account["blocks"] == 9000
    told = [(sum(each.get("count", 1) for each in done.of(kind)), named(done.of(kind))) for kind in ("scan", "block")]
    assert told == [(9000, sorted(sources))] * 2
    assert done.account["alerts_lost"] == 0


def named(records):
    return sorted(source for each in records for source in each.get("src_ips", [each.get("src_ip")]))


# hostile files


def test_a_file_that_was_cut_is_judged_up_to_there(made):
    path = made(scan())
    path.write_bytes(path.read_bytes()[:-3])
    done = replay(path)
    assert done.status == 1
    assert done.errors.count("\n") == 1 and f"{path}: behind frame 3: truncated" in done.errors
    assert done.account["syns"] == 3 and done.account["scans"] == 1


def test_the_other_files_are_judged_all_the_same(made, tmp_path):
    done = replay(tmp_path / "nothing", tmp_path, made([], "none", form=lambda frames: b"x" * 99), made(scan()))
    assert done.status == 1 and done.account["scans"] == 1
    assert len(done.errors.splitlines()) == 3 and "Traceback" not in done.errors
    assert f"{tmp_path}/nothing: cannot be read: No such file" in done.errors


def test_of_files_that_cannot_be_read_there_is_no_account(tmp_path):
    done = command(tmp_path / "nothing", tmp_path / "none")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines() == [
        f"packetwatch: {tmp_path}/{name}: cannot be read: No such file or directory (check the path)"
        for name in ("nothing", "none")
    ]


def test_random_frames_raise_nothing_and_add_up(made):
    chance = random.Random(7)
    frames = []
    for i in range(3000):
        frame = bytearray(syn("192.0.2.1", "192.0.2.2", 80, payload=bytes(chance.randrange(60))))
        for _ in range(chance.randrange(4)):
            frame[chance.randrange(12, 54)] = chance.randrange(256)
        frames.append((NOW + i, bytes(frame[: chance.randrange(len(frame) + 1)]), len(frame)))
    done = replay(made(frames), "--log-connections", "off")
    assert (done.status, done.errors) == (0, "")
    assert done.account["frames"] == 3000 and sum(done.account["malformed"].values()) > 100


@pytest.mark.parametrize("content", [b"", b"x" * 100])
def test_standard_input_that_is_no_capture(content):
    done = command("-", input=content, text=False)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(b"packetwatch: standard input: ")


def test_standard_input(made):
    done = command("-o", "json", "-", input=made(scan()).read_bytes(), text=False)
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["scans"] == 1


# records judged anew


def test_a_log_gives_the_same_scans(made, tmp_path):
    """Observe records every SYN; the times of the log are whole microseconds, as those of this capture."""
    frames = [(ns // 1000 * 1000, frame) for ns, frame in some_traffic(1)]
    first = replay(made(frames), "--mode", "observe")
    log = tmp_path / "log.json"
    log.write_text("".join(json.dumps(line) + "\n" for line in first.lines))
    again = replay("--from-log", log, "--mode", "observe")
    assert len(first.of("scan")) > 100 and again.status == 0

    def told(done):
        return [{k: v for k, v in line.items() if k != "in_iface"} for line in done.lines]

    assert told(again) == told(first)
    assert again.account["syns"] == len(frames)
    enforced = replay("--from-log", log)
    assert [line["ports"] for line in enforced.of("scan")] == [line["ports"] for line in first.of("scan")]


def test_probes_of_a_log_are_judged(tmp_path):
    log, record = tmp_path / "log.json", {"event_type": "probe", "src_ip": "192.0.2.1", "dest_ip": "192.0.2.2"}
    lines = [
        {**record, "timestamp": f"2026-11-24T14:28:0{n}Z", "src_port": 1, "dest_port": 80 + n, "tcp_flags": "FIN",
         "port_state": "closed"} for n in range(3)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = replay("--from-log", log)
    assert (done.status, done.account["probes"], done.account["scans"]) == (0, 3, 1)
    assert [block["rule"] for block in done.of("block")] == ["scan:closed"]


def test_lines_that_are_none_are_skipped_and_told(made, tmp_path):
    log = tmp_path / "log.json"
    good = [json.dumps(line) for line in replay(made(scan())).lines]
    bad = ["", "{", "x" * 200_000, '{"event_type": "connection"}', "\0", "null", '{"event_type": "stop"}']
    log.write_text("\n".join([*bad, *good, *bad]))
    done = replay("--from-log", log)
    assert (done.status, done.account["scans"], done.account["syns"]) == (0, 1, 3)
    skipped = done.account["lines_skipped"]
    assert skipped["it is not JSON"] == 6 and skipped["the line is too long"] == 2 and skipped["src_ip is missing"] == 2
    assert done.account["frames"] == len(good) + 2 * len(bad)
    text = command("--from-log", log, "--log-format", "text").stderr
    assert "Skipped" in text and "6 it is not JSON" in text


def test_a_log_without_a_connection_is_an_error(tmp_path):
    log = tmp_path / "log.json"
    log.write_text("nothing\n" * 3)
    done = replay("--from-log", log)
    assert done.status == 1 and "no line of it tells of a connection" in done.errors


# the command


def test_probes_that_nobody_has_answered_are_probes(made):
    """Open ports do not, nor does a host that drops them."""
    frames = [(NOW + i, syn("192.0.2.1", "192.0.2.2", 80 + i, flags=f.FIN | f.PSH | f.URG)) for i in range(5)]
    done = replay(made(frames))
    assert (done.account["probes"], done.account["scans"]) == (5, 1)
    assert [probe["tcp_flags"] for probe in done.of("probe")] == ["FIN,PSH,URG"] * 5


def test_it_reads_files_with_few_rights(tmp_path):
    """And what it holds is little use to whoever finds a hole in the reader."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "packetwatch", "replay", pipe]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment()}
    with subprocess.Popen(command, cwd=ROOT, **options) as process:
        with os.fdopen(writing_end(pipe, process), "wb") as writer:
            status = Path(f"/proc/{process.pid}/status").read_text()
            writer.write(c.pcap(scan()))
        process.communicate(timeout=60)
    held = int(re.search(r"CapEff:\s+(\w+)", status)[1], 16)
    assert held & ~sum(1 << number for number in privileges.READING) == 0
    assert re.search(r"NoNewPrivs:\s+1", status) and process.returncode == 0


def writing_end(pipe, reader):
    """A descriptor, as soon as the process has opened the pipe for reading."""
    for _ in range(1000):
        assert reader.poll() is None, reader.stderr.read()
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.03)
    raise AssertionError("nobody has opened the pipe")


def test_without_the_right_to_load_programs(made):
    path = made(scan())
    done = command(path, before=("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--no-new-privs"))
    assert done.returncode == 4 and done.stdout == ""
    assert done.stderr.startswith("packetwatch: not permitted: CAP_BPF") and "run as root" in done.stderr


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        ([], 2, "FILE"),
        (["--local", "host", "x"], 2, "not an IPv4 or IPv6 address"),
        (["--local", "192.0.2.1,", "x"], 2, "the address is empty"),
        (["--scan-ports", "1", "x"], 78, "2 to 64"),
        (["--nonsense", "x"], 2, "not understood"),
    ],
)
def test_mistakes(arguments, status, words):
    done = command(*arguments)
    assert done.returncode == status and words in done.stderr and "Traceback" not in done.stderr


def shell(script):
    command = ["bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment())


def test_a_reader_that_goes_away(made):
    path = made(scan(ports=range(1, 65)) * 500)
    script = f"{sys.executable} -m packetwatch replay --mode observe {path} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = shell(script)
    assert done.stdout.splitlines()[-1] == "141" and done.stderr == ""


def test_a_slow_reader_gets_everything(made):
    frames = [(NOW + i, syn("192.0.2.1", "192.0.2.2", 80)) for i in range(30_000)]
    ours = f"{sys.executable} -m packetwatch replay {made(frames)} -o json"
    script = f"{ours} | (sleep 4; wc -l); echo ${{PIPESTATUS[0]}}"
    done = shell(script)
    assert done.stdout.split() == ["30001", "0"] and done.stderr == ""


def test_a_full_disk_is_one_message(made):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "packetwatch", "replay", str(made(scan()))],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=ROOT, env=environment())
    assert done.returncode == 1 and done.stderr == "packetwatch: standard output: No space left on device\n"


def test_nothing_is_left_behind_and_no_state_is_touched(made, tmp_path):
    paths = tmp_path / "state", tmp_path / "socket", tmp_path / "log", Path("/sys/fs/bpf/packetwatch-replay")
    flags = [word for pair in zip(("--state", "--socket", "--log-file", "--pin"), paths) for word in pair]
    done = replay(made(scan()), *flags)
    assert done.status == 0 and done.account["scans"] == 1
    assert not any(each.exists() for each in paths)
    assert not any("xdp" in device for device in json.loads(subprocess.check_output(["ip", "-json", "link"])))


def test_defaults_are_those_of_the_settings(made):
    done = replay(made(scan()))
    texts = config.texts(config.Settings())
    assert f"{texts['scan.ports']} ports within {texts['scan.window']}" in done.account["rule"]


def test_the_header_has_the_layout_of_the_kernel_half():
    text = (program.SOURCES / "replay.h").read_text()
    fields = re.search(r"struct replay_header \{(.*?)\};", text, re.S)[1]
    sizes = {"__u64": "Q", "__u32": "I", "__u16": "H", "__u8": "B"}
    layout = "=" + "".join(sizes[kind] for kind in re.findall(r"^\t(__u\d+) \w+;", fields, re.M))
    assert struct.calcsize(layout) == program.REPLAY_HEADER.size and layout.rstrip("H") == "=QIBB"
