# SPDX-License-Identifier: Apache-2.0
"""Settings: every type, every way to give one, every fault at once with its place and a hint."""

import dataclasses
import pathlib
import random
import re

import pytest

from packetwatch import config
from packetwatch.address import parse_prefix
from packetwatch.config import ConfigError, Settings, duration_text, load, size_text
from packetwatch.detection import Rule
from packetwatch.kinds import spread

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECOND = 1_000_000_000
DEFAULT = Settings()


def from_flags(**flags):
    """Settings from single values by Puppet's names: scan_ports='3'."""
    keys = {config.parameter(row.key): row.key for row in config.describe()}
    return load([], {}, {keys[name]: [text] for name, text in flags.items()})


def from_file(text):
    return load([("p.conf", text)], {}, {})


def faults(files=(), environ=None, flags=None):
    with pytest.raises(ConfigError) as caught:
        load(files, environ or {}, flags or {})
    assert str(caught.value) == "\n".join(map(str, caught.value.faults))
    return caught.value.faults


def fault(files=(), environ=None, flags=None):
    (only,) = faults(files, environ, flags)
    return only


def file_fault(text):
    return fault([("p.conf", text)])


# the table

def test_the_defaults_are_those_of_the_documentation():
    assert dataclasses.asdict(DEFAULT) == {
        "interface": ("default-route",), "mode": "enforce", "allow": (), "block": (), "open_ports": (),
        "allow_own": True, "allow_gateways": True, "allow_sessions": True,
        "allow_resolvers": True, "allow_time_servers": True, "allow_puppet_server": True,
        "scan_ports": 3, "scan_window_ns": 60 * SECOND, "scan_count": "all", "xdp_mode": "auto",
        "block_rules": ((0, True, 0), (5, True, 600 * SECOND), (10, True, 86400 * SECOND)),
        "block_honeypot_ports": (), "block_first_ns": 60 * SECOND, "block_duration_ns": 3600 * SECOND,
        "block_forget_ns": 86400 * SECOND, "block_storm": 100, "block_proof": "challenge",
        "block_ipv6_prefix": 64,
        "log_format": "auto", "log_file": "", "log_connections": "each", "log_anonymize": False,
        "log_fold_rate": 100, "log_fold_burst": 10000, "log_daily_size": 1 << 30,
        "metrics_listen": (("127.0.0.1", 9773),), "table_trackers": 65536, "table_blocks": 65536,
        "ring_size": 4 << 20, "loader_headers": "auto", "pin": "",
        "socket": "/run/packetwatch/packetwatch.sock", "state": "/var/lib/packetwatch",
    }
    assert load([], {}, {}) == DEFAULT


def test_one_rule_names_a_setting_everywhere():
    assert config.flag("scan.ports") == "--scan-ports"
    assert config.flag("log.fold_rate") == "--log-fold-rate"
    assert config.variable("log.fold_rate") == "PACKETWATCH_LOG_FOLD_RATE"
    assert config.parameter("scan.ports") == "scan_ports"
    rows = config.describe()
    assert [row.field for row in rows] == [field.name for field in dataclasses.fields(Settings)]
    for row in rows:
        assert row.key == (row.name if row.section == "packetwatch" else f"{row.section}.{row.name}")
        assert (row.flag, row.variable) == (config.flag(row.key), config.variable(row.key))
        assert row.help.endswith(".") and row.type
    for name in (config.flag, config.variable, config.parameter):
        assert len({name(row.key) for row in rows}) == len(rows)


def test_what_a_reload_cannot_change():
    assert {row.key for row in config.describe() if not row.live} == {
        "table.trackers", "table.blocks", "ring.size", "loader.headers", "pin", "socket", "state"
    }
    new = from_flags(scan_ports="4", ring_size="8M", allow="10.0.0.0/8")
    assert config.changed(DEFAULT, new) == ["allow", "scan.ports", "ring.size"]
    assert config.needs_restart(DEFAULT, new) == ["ring.size"]
    assert config.changed(new, new) == []


def test_the_sample_in_the_tree_is_the_one_the_table_gives():
    assert (ROOT / "etc/packetwatch.conf").read_text() == config.sample(), (
        "write it anew: python3 -c 'from packetwatch import config; print(config.sample(), end=\"\")' "
        "> etc/packetwatch.conf"
    )


def test_the_sample_changes_nothing_as_it_is_and_nothing_uncommented():
    assert from_file(config.sample()) == DEFAULT
    settings = [line[1:] if line[:1] == "#" and line[:2] != "# " else line for line in config.sample().split("\n")]
    assert from_file("\n".join(settings)) == DEFAULT
    assert sum(" =" in line for line in settings if not line.startswith("#")) == len(config.describe())
    assert all(len(line) <= 100 for line in settings)


SOME_VALUES = {
    "interface": ["eth0 enp*", "lo", "default-route, wlan0"],
    "allow": ["", "10.0.0.0/8 2001:db8::/32 ::1", "0.0.0.0/0"],
    "block": ["", "192.0.2.7", "::/0"],
    "open_ports": ["", "80", "1-65535", "443, 8000-8100 8080"],
    "scan.window": ["1s", "90s", "2h30m", "24h"],
    "scan.count": ["all", "closed"],
    "block.rules": ["", "off", "scan:closed", "scan:closed 1:closed:1s",
                    "1:closed:1s", "16:closed:7d 64:all:90s", "3:closed:60s 3:all:60s"],
    "block.honeypot_ports": ["", "23 2323", "1-1"],
    "block.first": ["forever", "1s", "3650d"],
    "block.duration": ["forever", "1s", "1d1h1m1s", "3650d"],
    "block.forget": ["1s", "36h"],
    "block.ipv6_prefix": ["48", "128"],
    "block.storm": ["0", "1000000"],
    "block.proof": ["challenge", "none"],
    "log.daily_size": ["0", "64K", "1536M", "100000"],
    "ring.size": ["64K", "64M"],
    "metrics.listen": ["off", ":9773", "[::1]:1 127.0.0.1:65535", "10.0.0.1:1,10.0.0.2:1"],
    "table.trackers": ["4096", "1048576"],
    "log.file": ["", "/var/log/packetwatch.json", "/var/log/with blank"],
    "pin": ["", "/sys/fs/bpf/packetwatch"],
}


def test_what_is_dumped_loads_as_the_same():
    draw = random.Random(4)
    assert from_file(config.dump(DEFAULT)) == DEFAULT
    for _ in range(200):
        flags = {key: [draw.choice(values)] for key, values in SOME_VALUES.items() if draw.random() < 0.7}
        flags["mode"] = [draw.choice(["enforce", "observe"])]
        flags["log.anonymize"] = [draw.choice(["yes", "no"])]
        settings = load([], {}, flags)
        assert from_file(config.dump(settings)) == settings
        assert load([], {}, {key: [text] for key, text in config.texts(settings).items()}) == settings


# types

@pytest.mark.parametrize(
    "name, text, value",
    [
        ("scan_ports", "2", 2),
        ("scan_ports", "64", 64),
        ("scan_ports", "007", 7),
        ("scan_window", "1s", SECOND),
        ("scan_window", "24h", 86400 * SECOND),
        ("scan_window", "1h 30m", 5400 * SECOND),
        ("block_duration", "forever", 0),
        ("block_duration", "3650d", 3650 * 86400 * SECOND),
        ("open_ports", "1 65535", ((1, 1), (65535, 65535))),
        ("open_ports", "8000-8100, 80 80-80", ((8000, 8100), (80, 80))),
        ("block_honeypot_ports", "1-65535", ((1, 65535),)),
        ("block_rules", "1:closed:1s", (Rule(1, True, SECOND),)),
        ("block_rules", "16:closed:7d,64:all:1m30s", (Rule(16, True, 604800 * SECOND), Rule(64, False, 90 * SECOND))),
        ("block_rules", "3:closed:1s 3:closed:01s 3:all:1s", (Rule(3, True, SECOND), Rule(3, False, SECOND))),
        ("block_rules", " ".join(["3:all:60s"] * 9), (Rule(3, False, 60 * SECOND),)),
        ("block_first", "3650d", 3650 * 86400 * SECOND),
        ("block_storm", "0", 0),
        ("block_proof", "none", "none"),
        ("block_ipv6_prefix", "56", 56),
        ("mode", "observe", "observe"),
        ("log_anonymize", "Yes", True),
        ("log_anonymize", "on", True),
        ("log_anonymize", "0", False),
        ("log_anonymize", "FALSE", False),
        ("log_daily_size", "0", 0),
        ("log_daily_size", "64K", 65536),
        ("log_daily_size", "70000", 70000),
        ("log_daily_size", "2T", 2 << 40),
        ("ring_size", "65536", 65536),
        ("log_fold_rate", "0", 0),
        ("log_file", "/var//log/x.json/", "/var/log/x.json"),
        ("interface", "eth0, eth1 eth0", ("eth0", "eth1")),
        ("interface", "a" * 15, ("a" * 15,)),
        ("interface", "eth[0-9]* veth?.100", ("eth[0-9]*", "veth?.100")),
        ("allow", "10.0.0.0/8,::ffff:192.0.2.1", (parse_prefix("10.0.0.0/8"), parse_prefix("192.0.2.1"))),
        ("metrics_listen", "off", ()),
        ("metrics_listen", ":80", (("", 80),)),
        ("metrics_listen", "localhost:80", (("127.0.0.1", 80),)),
        ("metrics_listen", "[::1]:80 [2001:DB8:0::1]:80", (("::1", 80), ("2001:db8::1", 80))),
        ("metrics_listen", "0.0.0.0:80 [::]:80", (("0.0.0.0", 80), ("::", 80))),
        ("metrics_listen", ":80 127.0.0.1:81", (("", 80), ("127.0.0.1", 81))),
    ],
)
def test_a_value_is_read(name, text, value):
    settings = from_flags(**{name: text})
    assert getattr(settings, name if hasattr(settings, name) else f"{name}_ns") == value


@pytest.mark.parametrize(
    "key, text, message, hint",
    [
        ("scan.ports", "1", "out of range", "2 to 64"),
        ("scan.ports", "65", "out of range", "2 to 64"),
        ("scan.ports", "-3", "not a whole number", "2 to 64"),
        ("scan.ports", "3.0", "not a whole number", "2 to 64"),
        ("scan.ports", "٣", "not a whole number", "2 to 64"),
        ("scan.ports", "9" * 4000, "out of range", "2 to 64"),
        ("scan.window", "60", "'60' has no unit", "60s?"),
        ("scan.window", "0", "'0' has no unit", "1s to 24h"),
        ("scan.window", "9" * 4000, "has no unit", "1s to 24h"),
        ("scan.window", "0s", "out of range", "1s to 24h"),
        ("scan.window", "25h", "out of range", "1s to 24h"),
        ("scan.window", "1 hour", "not a duration", "2h30m"),
        ("scan.window", "1.5h", "not a duration", "2h30m"),
        ("scan.window", "30m1h", "not a duration", "2h30m"),
        ("scan.window", "forever", "not a duration", "2h30m"),
        ("block.duration", "0", "'0' has no unit", "or forever"),
        ("block.duration", "3651d", "out of range", "or forever"),
        ("block.duration", "99999999999999d", "not a duration", "2h30m"),
        ("block.first", "0s", "out of range", "1s to 3650d"),
        ("block.forget", "3651d", "out of range", "1s to 3650d"),
        ("block.ipv6_prefix", "47", "out of range", "48 to 128"),
        ("block.ipv6_prefix", "129", "out of range", "48 to 128"),
        ("block.storm", "-1", "not a whole number", "0 to 1000000"),
        ("block.storm", "1000001", "out of range", "0 to 1000000"),
        ("scan.count", "open", "'open' is not known", "all, closed"),
        ("open_ports", "0", "'0' is not a port", "1 to 65535"),
        ("open_ports", "65536", "not a port", "8000-8100"),
        ("open_ports", "http", "'http' is not a port", "8000-8100"),
        ("open_ports", "81-80", "'81-80' is not a port", "8000-8100"),
        ("open_ports", "80-", "not a port", "8000-8100"),
        ("open_ports", "-80", "not a port", "8000-8100"),
        ("open_ports", "1-2-3", "not a port", "8000-8100"),
        ("open_ports", "80-65536", "not a port", "8000-8100"),
        ("open_ports", "80/tcp", "not a port", "8000-8100"),
        ("open_ports", "9" * 4000, "not a port", "8000-8100"),
        ("block.honeypot_ports", "٢٣", "not a port", "8000-8100"),
        ("block.rules", "3", "'3' is not a rule", "5:closed:10m"),
        ("block.rules", "3:closed", "not a rule", "20:all:60s"),
        ("block.rules", "off 3:closed:60s", "off stands beside a rule", "either off or rules"),
        ("block.rules", "scan:all", "not a rule", "scan:closed"),
        ("block.rules", "3:closed:60s:", "not a rule", "20:all:60s"),
        ("block.rules", "3:open:60s", "not a rule", "20:all:60s"),
        ("block.rules", "0:all:60s", "too few or too many ports", "1 to 64 all ports"),
        ("block.rules", "65:all:60s", "too few or too many ports", "1 to 64 all ports"),
        ("block.rules", "17:closed:60s", "too few or too many ports", "1 to 16 closed ports"),
        ("block.rules", ":closed:60s", "too few or too many ports", "1 to 16 closed ports"),
        ("block.rules", "three:closed:60s", "too few or too many ports", "1 to 16 closed ports"),
        ("block.rules", "3:closed:", "not a duration", "2h30m"),
        ("block.rules", "3:closed:60", "'60' has no unit", "60s?"),
        ("block.rules", "3:closed:0s", "out of range", "1s to 7d"),
        ("block.rules", "3:closed:8d", "out of range", "1s to 7d"),
        ("block.rules", " ".join(f"{n}:all:60s" for n in range(1, 10)), "9 rules are too many", "at most 8"),
        ("mode", "Enforce", "'Enforce' is not known", "enforce, observe"),
        ("xdp.mode", "skb", "not known", "auto, native, generic"),
        ("allow.own", "maybe", "neither yes nor no", "yes or no"),
        ("log.daily_size", "1GB", "not a size", "64K, 4M or 1G"),
        ("log.daily_size", "K", "not a size", "64K, 4M or 1G"),
        ("log.daily_size", "1", "out of range", "or 0 for no limit"),
        ("log.daily_size", "9" * 30 + "T", "out of range", "or 0 for no limit"),
        ("ring.size", "5M", "not a power of two", "4M or 8M?"),
        ("ring.size", "32K", "out of range", "64K to 64M"),
        ("ring.size", "0", "out of range", "64K to 64M"),
        ("table.trackers", "5000", "not a power of two", "4096 or 8192?"),
        ("table.blocks", "1023", "out of range", "1024 to 1048576"),
        ("log.file", "packetwatch.json", "not an absolute path", "begins with /"),
        ("socket", "/" + "s" * 107, "too long", "107 bytes"),
        ("state", "/" + "s" * 4095, "too long|characters are too many", "4095|4096"),
        ("interface", "a" * 16, "too long", "15 bytes"),
        ("interface", "é" * 8, "too long", "15 bytes"),
        ("interface", "eth0:1", "not the name of an interface", "default-route"),
        ("interface", "../x", "not the name of an interface", "default-route"),
        ("interface", "*" * 65, "too long", "15 bytes"),
        ("interface", ",", "names nothing", ""),
        ("interface", " ".join(f"eth{n}" for n in range(65)), "65 are too many", "64"),
        ("allow", "10.0.0.1/8", "the prefix is 10.0.0.0/8", ""),
        ("allow", "fe80::1%eth0", "has a scope", ""),
        ("block", "example.com", "not an IPv4 or IPv6 address", "192.0.2.0/24"),
        ("metrics.listen", "9773", "lacks an address", "127.0.0.1:9773?"),
        ("metrics.listen", "127.0.0.1", "lacks an address", "1 to 65535"),
        ("metrics.listen", "127.0.0.1:", "lacks a port", "1 to 65535"),
        ("metrics.listen", "127.0.0.1:0", "lacks a port", "1 to 65535"),
        ("metrics.listen", "127.0.0.1:65536", "lacks a port", "1 to 65535"),
        ("metrics.listen", "::1:9773", "ambiguous", "in brackets"),
        ("metrics.listen", "host:9773", "not an IPv4 or IPv6 address", "not a name"),
        ("metrics.listen", "[127.0.0.1]:9773", "not an IPv4 or IPv6 address", "not a name"),
        ("metrics.listen", "127.0.0.1:1 127.0.0.1:1", "no room", "once"),
        ("metrics.listen", ":1 127.0.0.1:1", "no room", "once"),
        ("metrics.listen", "127.0.0.1:1 0.0.0.0:1", "no room", "once"),
        ("metrics.listen", "off 127.0.0.1:1", "off stands beside", "either"),
        ("metrics.listen", " ".join(f":{n}" for n in range(1, 18)), "too many", "16"),
        ("mode", "obs\x00erve", r"cannot be printed, U\+0000", "remove"),
        ("log.file", "/var/log/\x1b[31m", r"cannot be printed, U\+001B", "remove"),
        ("log.file", "/var/log/\u202e", r"cannot be printed, U\+202E", "remove"),
        ("socket", "/run/\udcff", r"cannot be printed, U\+DCFF", "remove"),
        ("allow", "10.0.0.1\n10.0.0.2", r"cannot be printed, U\+000A", "remove"),
        ("log.file", "/" + "x" * 5000, "5001 characters are too many", "4096"),
        ("allow", "1" * 200000, "200000 characters are too many", "131072"),
        ("log.file", "'/var/log/x'", "stands in quotes", "without quotes"),
        ("log.file", "/var/log/x # old", "comment behind it", "line of its own"),
        ("log.file", "/var/log/x\\", "ends in a backslash", ""),
    ],
)
def test_a_bad_value_is_one_fault_with_a_hint(key, text, message, hint):
    found = fault(flags={key: [text]})
    assert (found.path, found.line) == (config.flag(key), 0)
    assert re.search(message, found.message)
    assert re.search(hint, found.hint)
    assert len(str(found)) < 300 and str(found).isprintable()


def test_each_bad_item_of_a_list_is_a_fault():
    found = faults(flags={"allow": ["10.0.0.1 10.0.0.999 fe80::1%x ::1"]})
    assert [each.path for each in found] == ["--allow", "--allow"]


@pytest.mark.parametrize(
    "ns, text",
    [
        (0, "forever"), (3600 * SECOND, "1h"), (60 * SECOND, "1m"), (90 * SECOND, "1m30s"), (SECOND, "1s"),
        (9000 * SECOND, "2h30m"), (86400 * SECOND, "1d"), (90061 * SECOND, "1d1h1m1s"), (SECOND // 2, "500ms"),
        (SECOND * 3 // 2, "1s"),
    ],
)
def test_durations_as_text(ns, text):
    assert duration_text(ns) == text


def test_ports_and_rules_as_text():
    written = config.texts(from_flags(open_ports="443,8000-8100 80-80", block_rules="3:closed:60s 20:all:90s"))
    assert written["open_ports"] == "443 8000-8100 80"
    assert written["block.rules"] == "3:closed:1m 20:all:1m30s"


def test_the_ports_of_ranges():
    assert list(spread(((443, 443), (8000, 8002)))) == [443, 8000, 8001, 8002]


def test_sizes_as_text():
    assert [size_text(n) for n in (0, 1023, 1024, 4 << 20, 1 << 30, 1536 << 20)] == [
        "0", "1023", "1K", "4M", "1G", "1536M"
    ]


def test_a_command_reads_what_a_setting_takes():
    assert config.read("block.duration", "2h") == 7200 * SECOND
    with pytest.raises(ValueError) as caught:
        config.read("block.duration", "2")
    assert caught.value.hint == "2s?"


# files

def test_a_file_in_the_manner_of_systemd():
    settings = from_file(
        "\ufeff# comment\r\n; comment\r\n\r\n[packetwatch]\r\nmode=observe\r\n  interface =  eth0  \r\n"
        "interface = eth1,eth2\r\n[scan]\r\nports=4\r\nports = 5\r\n[packetwatch]\r\nallow = 10.0.0.0/8 \\\r\n"
        "# among the continued\r\n   ::1\r\n[log]\nfile = /var/log/a b.json"
    )
    assert settings.mode == "observe" and settings.scan_ports == 5
    assert settings.interface == ("eth0", "eth1", "eth2")
    assert settings.allow == (parse_prefix("10.0.0.0/8"), parse_prefix("::1"))
    assert settings.log_file == "/var/log/a b.json"


def test_lists_add_up_and_an_empty_value_takes_back():
    first = ("a.conf", "[packetwatch]\ninterface = eth0\nallow = 10.0.0.1\nmode = observe\n[scan]\nports = 5\n")
    second = ("b.conf", "[packetwatch]\ninterface = eth1\nallow =\nallow = 10.0.0.2\nmode =\n[scan]\nports = 6\n")
    settings = load([first, second], {}, {})
    assert settings.interface == ("eth0", "eth1")
    assert settings.allow == (parse_prefix("10.0.0.2"),)
    assert settings.mode == "enforce" and settings.scan_ports == 6
    assert from_file("[packetwatch]\ninterface = eth0\ninterface =\n").interface == ("default-route",)
    assert from_file("[metrics]\nlisten = off\nlisten =\n").metrics_listen == DEFAULT.metrics_listen


def test_files_then_environment_then_command_line():
    files = [("p.conf", "[scan]\nports = 4\nwindow = 10s\n[xdp]\nmode = generic\n")]
    environ = {"PACKETWATCH_SCAN_PORTS": "5", "PACKETWATCH_SCAN_WINDOW": "20s"}
    settings = load(files, environ, {"scan.ports": ["6", "7"]})
    assert (settings.scan_ports, settings.scan_window_ns, settings.xdp_mode) == (7, 20 * SECOND, "generic")


def test_allow_and_block_add_up_over_all_places_and_the_other_lists_are_replaced():
    files = [("p.conf", "[packetwatch]\ninterface = eth0\nallow = 10.0.0.1\n[metrics]\nlisten = :1\n")]
    environ = {"PACKETWATCH_INTERFACE": "eth1 eth2", "PACKETWATCH_ALLOW": "10.0.0.2"}
    settings = load(files, environ, {"interface": ["lo", "eth9"], "allow": ["10.0.0.3"], "metrics.listen": [":2"]})
    assert settings.interface == ("lo", "eth9") and settings.metrics_listen == (("", 2),)
    assert settings.allow == tuple(map(parse_prefix, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]))
    assert load(files, environ, {}).interface == ("eth1", "eth2")
    assert load(files, {}, {"allow": ["", "10.0.0.3"]}).allow == (parse_prefix("10.0.0.3"),)


def test_ports_add_up_over_all_places_and_rules_are_replaced():
    said = "[packetwatch]\nopen_ports = 80\n[block]\nhoneypot_ports = 23\nrules = 2:all:1s\nrules = 3:all:1s"
    files = [("p.conf", said)]
    settings = load(files, {"PACKETWATCH_OPEN_PORTS": "81"}, {"open_ports": ["82-83"], "block.honeypot_ports": ["24"]})
    assert settings.open_ports == ((80, 80), (81, 81), (82, 83))
    assert settings.block_honeypot_ports == ((23, 23), (24, 24))
    assert settings.block_rules == (Rule(2, False, SECOND), Rule(3, False, SECOND))
    assert load(files, {}, {"block.rules": ["5:closed:1m"]}).block_rules == (Rule(5, True, 60 * SECOND),)
    assert from_file("[block]\nrules = 2:all:1s\nrules =\n").block_rules == DEFAULT.block_rules


@pytest.mark.parametrize(
    "text, line, message, hint",
    [
        ("[scan]\nprts = 3", 2, "'prts' is not a setting of [scan]", "did you mean ports in [scan]?"),
        ("[packetwatch]\nwindow = 3", 2, "'window' is not a setting", "did you mean window in [scan]?"),
        ("[packetwatch]\nscan.ports = 3", 2, "'scan.ports' is not a setting", "did you mean ports in [scan]?"),
        ("[packetwatch]\nscan_ports = 3", 2, "'scan_ports' is not a setting", "did you mean ports in [scan]?"),
        ("[log]\nFold-Rate = 3", 2, "'Fold-Rate' is not a setting", "did you mean fold_rate in [log]?"),
        ("[scan]\nzzzzzz = 3", 2, "'zzzzzz' is not a setting of [scan]", ""),
        ("[scna]\nports = 3", 1, "'scna' is not a section", "did you mean scan?"),
        ("[zzz]\na\nb=", 1, "'zzz' is not a section", "packetwatch, allow, scan"),
        ("[]", 1, "'' is not a section", "one of"),
        ("[scan", 1, "'[scan' is not a section", "scan"),
        ("mode = observe", 1, "'mode' stands before any section", "[packetwatch]"),
        ("[packetwatch]\nmode", 2, "'mode' is no setting", "name = value"),
        ("[packetwatch]\n= observe", 2, "'' is not a setting", ""),
        ("[packetwatch]\n\n\nmode = x", 4, "mode: 'x' is not known", "enforce"),
        ("[scan]\nports = 3 # three", 2, "comment behind it", "line of its own"),
        ("[scan]\nports = \"3\"", 2, "stands in quotes", "without quotes"),
        ("[packetwatch]\n#\nallow = 10.0.0.1 \\\n\\\n x\n", 3, "allow: 'x' is not an IPv4", "as in"),
        ("[scan]\nports\x00 = 3", 2, r"'ports\x00' is not a setting", "ports"),
        ("[packetwatch]\nmode = ob\x1bserve", 2, "U+001B", "remove"),
        ("[packetwatch]\nmode = observe\u00a0", 2, "U+00A0", "remove"),
        ("x" * (9 << 20), 0, "too many for a settings file", "at most"),
    ],
)
def test_a_fault_in_a_file_has_its_line_and_a_hint(text, line, message, hint):
    found = file_fault(text)
    assert (found.path, found.line) == ("p.conf", line)
    assert message in found.message and hint in found.hint
    assert str(found).startswith("p.conf:" if line == 0 else f"p.conf:{line}: ")
    assert len(str(found)) < 300 and str(found).isprintable()


def test_bytes_are_utf_8():
    assert from_file("[log]\nfile = /var/log/é".encode()).log_file == "/var/log/é"
    assert from_file("\ufeff[scan]\nports = 5".encode()).scan_ports == 5
    found = file_fault(b"[log]\n#\nfile = /var/log/\xe9")
    assert (found.line, found.message) == (3, "byte 0xe9 is not UTF-8")


def test_all_faults_come_at_once_in_the_order_of_reading():
    found = faults(
        [
            ("a.conf", "[scan]\nports = 1\nwindow = 60\n[nothing]\nx = y\n[log]\nfile = here\nformat = xml\n"),
            ("b.conf", "[scan]\nprots = 1\n[packetwatch]\nallow = 1.2.3\n"),
        ],
        {"PACKETWATCH_SCAN_PORTS": "x", "PW_PROMETHEUS_PORT": "y", "PACKETWATCH_SACN": "1"},
        {"scan.ports": ["3"], "mode": ["off"]},
    )
    assert [(each.path, each.line) for each in found[:7]] == [
        ("a.conf", 2), ("a.conf", 3), ("a.conf", 4), ("a.conf", 7), ("a.conf", 8), ("b.conf", 2), ("b.conf", 4)
    ]
    assert {each.path for each in found[7:]} == {
        "PACKETWATCH_SCAN_PORTS", "PW_PROMETHEUS_PORT", "PACKETWATCH_SACN", "--mode"
    }
    assert len(found) == 11


def test_a_fault_is_not_hidden_by_a_later_value():
    assert file_fault("[scan]\nports = x\nports =\nports = 5\n").line == 2


# environment

@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_variable_says_nothing(text):
    names = ["PW_IFDEV", "PW_PORTSCAN_TIME_THRESHOLD", "PW_PORTSCAN_PORT_THRESHOLD", "PW_PROMETHEUS_PORT",
             "PW_WHITELIST_SELF", "PACKETWATCH_SCAN_PORTS", "PACKETWATCH_ALLOW"]
    files = [("p.conf", "[packetwatch]\nallow = ::1\n[scan]\nports = 9\n")]
    assert load(files, dict.fromkeys(names, text), {}) == load(files, {}, {})


def test_the_variables_of_the_origin_keep_their_meaning():
    environ = {"PW_IFDEV": "eth7", "PW_PORTSCAN_TIME_THRESHOLD": "30", "PW_PORTSCAN_PORT_THRESHOLD": "5",
               "PW_PROMETHEUS_PORT": "9999", "PW_WHITELIST_SELF": "False"}
    settings = load([("p.conf", "[packetwatch]\ninterface = eth0\n[scan]\nports = 9\n")], environ, {})
    assert config.changed(DEFAULT, settings) == [
        "interface", "allow.own", "scan.ports", "scan.window", "metrics.listen"
    ]
    assert settings.interface == ("eth7",) and settings.allow_own is False
    assert (settings.scan_ports, settings.scan_window_ns) == (5, 30 * SECOND)
    assert settings.metrics_listen == (("127.0.0.1", 9999),)
    assert load([], {"PW_WHITELIST_SELF": "1"}, {}).allow_own is True


def test_our_variables_win_over_those_of_the_origin():
    environ = {"PACKETWATCH_INTERFACE": "eth1", "PW_IFDEV": "eth7", "PACKETWATCH_METRICS_LISTEN": "off",
               "PW_PROMETHEUS_PORT": "9999", "PW_PORTSCAN_TIME_THRESHOLD": "30", "PACKETWATCH_SCAN_WINDOW": "40s"}
    settings = load([], environ, {})
    assert settings.interface == ("eth1",) and settings.metrics_listen == ()
    assert settings.scan_window_ns == 40 * SECOND


@pytest.mark.parametrize(
    "name, text, message, hint",
    [
        ("PW_PORTSCAN_TIME_THRESHOLD", "60s", "not a plain number", "seconds"),
        ("PW_PORTSCAN_TIME_THRESHOLD", "0", "out of range", "1s to 24h"),
        ("PW_PORTSCAN_PORT_THRESHOLD", "1", "out of range", "2 to 64"),
        ("PW_PROMETHEUS_PORT", "0.0.0.0:1", "not a plain number", "9773"),
        ("PW_PROMETHEUS_PORT", "70000", "lacks a port", "65535"),
        ("PW_WHITELIST_SELF", "maybe", "neither", "yes or no"),
        ("PW_IFDEV", "a/b", "not the name", "eth0"),
        ("PACKETWATCH_SCAN_PORT", "3", "no setting has this variable", "did you mean PACKETWATCH_SCAN_PORTS?"),
        ("PACKETWATCH_\x1b", "3", "no setting has this variable", ""),
        ("PACKETWATCH_MODE", "x", "'x' is not known", "enforce"),
    ],
)
def test_a_fault_in_the_environment_names_the_variable(name, text, message, hint):
    found = fault(environ={name: text})
    assert found.path == name.replace("\x1b", "\\x1b") and found.line == 0
    assert message in found.message and hint in found.hint
    assert str(found).isprintable()


def test_variables_of_others_are_left_alone():
    assert load([], {"PW_OTHER": "x", "PATH": "\x00", "packetwatch_mode": "x", "PACKETWATCHER": "1"}, {}) == DEFAULT


def test_an_unknown_flag_is_a_fault():
    assert fault(flags={"scan.prts": ["3"]}) == config.Fault(
        "--scan-prts", 0, "no setting has this flag", "did you mean --scan-ports?"
    )


# what makes no sense together

@pytest.mark.parametrize(
    "text, line, keys",
    [
        ("[packetwatch]\nsocket = /a\nstate = /a/\n", 3, ["socket", "state"]),
        ("[log]\nfile = /run/packetwatch/packetwatch.sock\n", 2, ["log.file", "socket"]),
        ("[packetwatch]\npin = /var/lib/packetwatch", 2, ["pin", "state"]),
    ],
)
def test_two_settings_with_one_path(text, line, keys):
    found = file_fault(text)
    assert found.line == line and all(key in found.message for key in keys)


def test_more_prefixes_than_the_kernel_holds():
    prefixes = [f"10.{n >> 8 & 255}.{n & 255}.{n >> 16}" for n in range(60001)]
    lines = "\n".join(f"allow = {' '.join(prefixes[at:at + 1000])}" for at in range(0, 60001, 1000))
    found = file_fault(f"[packetwatch]\n{lines}\n")
    assert "60001 prefixes" in found.message


def test_noise_gives_faults_and_nothing_else():
    draw = random.Random(5)
    pieces = ["[", "]", "=", "\\", "\n", "#", "scan", "ports", "3", " ", ",", "\x00", "é", "[scan]\n", "allow", "::1/0"]
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 20)))
        key = draw.choice(config.describe()).key
        try:
            load([("p.conf", text)], {config.variable(key): text}, {key: [text]})
        except ConfigError as error:
            assert error.faults and str(error)
