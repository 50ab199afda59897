# SPDX-License-Identifier: Apache-2.0
"""A parameter for every setting, which takes the values that the setting takes; what is written loads as those."""

from __future__ import annotations

import json
import random
import socket

import pytest

from packetwatch import config
from packetwatch.address import parse_prefix
from packetwatch.config import ConfigError
from tests.puppet.compiling import SETTINGS, compiled, literal

ROWS = {config.parameter(row.key): row for row in config.describe()}
#: Parameters that are not settings.
OTHERS = {
    "ensure", "package_ensure", "package_source", "package_provider", "service_ensure", "service_enable", "manage_repo",
    "repo_url", "repo_key", "manage_epel", "manage_headers", "running_headers", "headers_package",
    "running_headers_package", "scrape_target",
}

PREFIXES = [
    "192.0.2.1", "192.0.2.0/24", "0.0.0.0/0", "255.255.255.255/32", "::", "::/0", "::1", "1::", "2001:db8::/32",
    "2001:DB8::7/128", "1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8", "1::8",
]
NO_PREFIXES = [
    "", "256.0.0.1", "192.0.2", "192.0.2.1.", "192.0.2.01", "192.0.2.0/33", "192.0.2.0/-1", "::/129", "1:2:3:4:5:6:7",
    "1::2::3", "12345::", ":::", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "fe80::1%eth0", "name", "192.0.2.1\n", "/24",
]
DURATIONS, NO_DURATIONS = ["1s", "60s", "1h", "2h30m", "24h", "1d"], ["", "60", 60, "1", "s", "0s", "1x", "1.5h", "-1s"]
PORTS = [[], [1, 65535], ["80", "8000-8100"], [443, "1-65535"]]
NO_PORTS = [[0], [65536], ["0"], ["http"], ["80-"], ["-80"], ["80\nports = 2"]]
RULES = [[], ["off"], ["scan:closed"]]
RULES += [["3:closed:60s"], ["1:closed:1s", "16:closed:7d", "64:all:2h30m"], [f"{n}:all:1m" for n in range(1, 9)]]
NO_RULES = [
    ["0:closed:60s"], ["17:closed:60s"], ["65:all:60s"], ["3:open:60s"], ["3:closed"], ["3:closed:60"], ["3:all:0s"],
    ["3:all:8d"], ["3:all:60s", "3:all:7d1s"], ["3:all:60s\nfirst = 1s"],
    [f"{n}:all:1m" for n in range(1, 10)],
]
SWITCHES = [True, False], ["maybe", 2]
PATHS, NO_PATHS = ["/run/x.sock", "/srv/packet watch".replace(" ", "-"), "/a/"], ["x", "./x", "/a\nports = 2"]

#: Parameter -> values that are taken and values that are not, by Puppet as by the settings.
VALUES = {
    "interface": (
        ["eth0", "default-route", "enp*", "veth[0-9]", ["eth0", "br-lan", "eth0.100"], "a" * 15, "*" * 64],
        [".", "..", "a/b", "a:b", "a" * 16, "*" * 65]),
    "mode": (["enforce", "observe"], ["Enforce", "off", True]),
    "allow": ([[], PREFIXES, *([each] for each in PREFIXES)], [[each] for each in NO_PREFIXES]),
    "block": ([[], PREFIXES, *([each] for each in PREFIXES)], [[each] for each in NO_PREFIXES]),
    "open_ports": (PORTS, NO_PORTS),
    "socket": (PATHS, NO_PATHS),
    "state": (PATHS, NO_PATHS),
    "pin": ([*PATHS, ""], NO_PATHS),
    "allow_own": SWITCHES,
    "allow_gateways": SWITCHES,
    "allow_sessions": SWITCHES,
    "allow_resolvers": SWITCHES,
    "allow_time_servers": SWITCHES,
    "allow_puppet_server": SWITCHES,
    "scan_ports": ([2, 3, 64], [1, 65, 0, -1, "x"]),
    "scan_window": (DURATIONS, [*NO_DURATIONS, "24h1s", "25h", "2d", "forever"]),
    "scan_count": (["all", "closed"], ["open", "3", True]),
    "block_rules": (RULES, NO_RULES),
    "block_honeypot_ports": (PORTS, NO_PORTS),
    "block_first": ([*DURATIONS, "forever", "3650d"], [*NO_DURATIONS, "3650d1s", "3651d", "ever"]),
    "block_forget": ([*DURATIONS, "3650d"], [*NO_DURATIONS, "3650d1s", "3651d", "forever"]),
    "block_proof": (["challenge", "none"], ["established", True]),
    "block_ipv6_prefix": ([48, 64, 128], [47, 129, "x"]),
    "block_storm": ([0, 100, 1_000_000], [-1, 1_000_001, "x"]),
    "block_duration": ([*DURATIONS, "forever", "3650d"], [*NO_DURATIONS, "3650d1s", "3651d", "ever"]),
    "xdp_mode": (["auto", "native", "generic"], ["offload"]),
    "log_format": (["auto", "text", "json", "journal"], ["xml"]),
    "log_file": ([*PATHS, ""], NO_PATHS),
    "log_connections": (["each", "summary", "off"], ["on", False]),
    "log_anonymize": SWITCHES,
    "log_fold_rate": ([0, 100, 10_000_000], [-1, 10_000_001]),
    "log_fold_burst": ([1, 10_000_000], [0, 10_000_001]),
    "log_daily_size": (["0", "65536", "64K", "4M", "1G", "1024T"], ["65535", "63K", "1025T", "1k", "1.5G", "G", ""]),
    "metrics_listen": (
        ["off", ":9773", "127.0.0.1:1", "[::1]:65535", "localhost:9773", ["127.0.0.1:9773", "[2001:db8::1]:9773"]],
        ["9773", "::1:9773", "127.0.0.1:0", "127.0.0.1:65536", "host:9773", ":", "127.0.0.1", "[::1]"]),
    "table_trackers": ([4096, 65536, 1_048_576], [2048, 4097, 2_097_152]),
    "table_blocks": ([1024, 1025, 1_048_576], [1023, 1_048_577]),
    "ring_size": (["64K", "4M", "64M"], ["32K", "65K", "128M", "4"]),
    "loader_headers": (["auto", "uapi", "kernel"], ["none"]),
}
#: Valid each by its form: what is wrong is left to packetwatch check, which is the file's validate_cmd.
LEFT_TO_CHECK = {
    "allow": [["192.0.2.7/24"], ["2001:db8::1/32"]],
    "open_ports": [["65536"], ["80-65536"], ["81-80"]],
    "block_honeypot_ports": [["99999-1"]],
    "metrics_listen": [["off", ":9773"], ["127.0.0.1:9773", ":9773"], "999.0.0.1:9773", "[1::2::3]:9773"],
}
CASES = [
    *((name, value, "taken") for name, (values, _) in VALUES.items() for value in values),
    *((name, value, "refused") for name, (_, values) in VALUES.items() for value in values),
    *((name, value, "left to check") for name, values in LEFT_TO_CHECK.items() for value in values),
]


def written(value):
    """As a settings file has it."""
    if isinstance(value, list):
        return " ".join(map(written, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def settings(*texts):
    """What these files give, or nothing where they have a fault."""
    try:
        return config.load([(f"{number}.conf", text) for number, text in enumerate(texts)], {}, {})
    except ConfigError:
        return None


@pytest.fixture(scope="module")
def catalogs(puppet8, tmp_path_factory):
    """By case: (parameter, value as JSON)."""
    manifests = [f"class {{ 'packetwatch': {name} => {literal(value)} }}" for name, value, _ in CASES]
    found = compiled(puppet8, tmp_path_factory.mktemp("catalogs"), manifests)
    return {(name, json.dumps(value)): catalog for (name, value, _), catalog in zip(CASES, found)}


def test_every_setting_is_a_parameter(interface):
    (found,) = [each for each in interface["puppet_classes"] if each["name"] == "packetwatch"]
    tags = {tag["name"]: tag for tag in found["docstring"]["tags"] if tag["tag_name"] == "param"}
    assert set(tags) == set(ROWS) | OTHERS
    assert set(VALUES) == set(ROWS)
    for name, row in ROWS.items():
        assert found["defaults"][name] == "undef"
        assert all(text.startswith("Optional[") for text in tags[name]["types"])
        assert ("restarts the service" in " ".join(tags[name]["text"].split())) == (not row.live), name


@pytest.mark.parametrize("name, value, verdict", CASES, ids=lambda each: ascii(each)[:40])
def test_values(catalogs, name, value, verdict):
    row, catalog = ROWS[name], catalogs[name, json.dumps(value)]
    expected = settings(f"[{row.section}]\n{row.name} = {written(value)}")
    if verdict == "refused":
        assert name in catalog["error"]
        return
    content = catalog[f"File[{SETTINGS}]"]["content"]
    assert (settings(content) is None) == (verdict == "left to check")
    assert settings(content) == expected


def test_values_that_are_refused_are_refused_by_the_settings_too():
    """But for what a file could not even hold."""
    taken = []
    for name, (_, values) in VALUES.items():
        row = ROWS[name]
        for value in values:
            text = written(value)
            if text and "\n" not in text and settings(f"[{row.section}]\n{row.name} = {text}") is not None:
                taken.append((name, value))
    assert taken == []


def test_lists_stand_instead_of_others_or_add_to_them(catalogs):
    earlier = (
        "[packetwatch]\ninterface = lo\nallow = 198.51.100.1\nopen_ports = 7\n[metrics]\nlisten = 127.0.0.1:1\n"
        "[block]\nrules = 9:all:9s\nhoneypot_ports = 7\n"
    )
    for name, value, count in (
        ("interface", "eth0", 1), ("metrics_listen", ":9773", 1), ("block_rules", ["3:closed:60s"], 1),
        ("allow", ["192.0.2.1"], 2), ("open_ports", [1, 65535], 3), ("block_honeypot_ports", [1, 65535], 3),
    ):
        both = settings(earlier, catalogs[name, json.dumps(value)][f"File[{SETTINGS}]"]["content"])
        assert len(getattr(both, ROWS[name].field)) == count


NUMBERS = (0, 1, 9, 10, 99, 100, 199, 200, 255, 256, 300)


def addresses(count):
    """Texts that look like prefixes, right ones and wrong ones, the same in each run."""
    chance = random.Random(20261124)
    for _ in range(count):
        four = chance.random() < 0.3
        text = _ipv4(chance) if four else _ipv6(chance)
        yield text + chance.choice(["", "", "/0", "/9", "/32", "/33", "/128", "/129", "/"])


def _ipv4(chance):
    return ".".join(str(chance.choice(NUMBERS)) for _ in range(chance.choice([3, 4, 4, 4, 5])))


def _ipv6(chance):
    count = chance.choice([1, 3, 6, 7, 8, 9])
    groups = [f"{chance.getrandbits(chance.choice([4, 8, 15, 16, 17])):x}" for _ in range(count)]
    for _ in range(chance.choice([0, 1, 1, 1, 2])):
        groups.insert(chance.randrange(len(groups) + 1), "")
    text = ":".join(groups)
    return ":" * text.startswith(":") + text + ":" * text.endswith(":")


def is_prefix(text):
    """By form alone."""
    host, slash, bits = text.partition("/")
    family, longest = (socket.AF_INET6, 128) if ":" in host else (socket.AF_INET, 32)
    try:
        socket.inet_pton(family, host)
    except OSError:
        return False
    return not slash or (bits.isdigit() and int(bits) <= longest)


def test_prefixes_of_all_kinds(puppet8, tmp_path):
    """Puppet's regular expressions against the C library's parser."""
    texts = list(dict.fromkeys(addresses(3000)))
    code = f"notify {{ 'x': message => {literal(texts)}.filter |$text| {{ $text =~ Packetwatch::Prefix }} }}"
    (catalog,) = compiled(puppet8, tmp_path, [code])
    taken = catalog["Notify[x]"]["message"]
    assert taken == [text for text in texts if is_prefix(text)]
    assert 300 < len(taken) < len(texts) - 300
    assert parse_prefix(taken[0].partition("/")[0])
