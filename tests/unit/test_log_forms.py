# SPDX-License-Identifier: Apache-2.0
"""The three looks of a record, their one table, its documentation and the journal's catalogue."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import time

import pytest

from packetwatch import address
from packetwatch.event import ALLOWED, CLOSED, IPV6, OPEN, WOULD_DROP, Batch, Notice
from packetwatch.sinks import records
from packetwatch.sinks.journal import JournalForm, entry
from packetwatch.sinks.jsonlines import JsonForm
from packetwatch.sinks.text import TextForm, duration

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs/records.md").read_text()
CATALOG = (ROOT / "systemd/packetwatch.catalog").read_text()

SECOND = 1_000_000_000
BOOT = 5_000 * SECOND + 123_456_789
#: BOOT happens at 14:28:05.123456 UTC.
CLOCK = 1_795_530_485 * SECOND - 5_000 * SECOND
SOURCE, TARGET = address.parse("192.0.2.56"), address.parse("10.0.0.5")
EVIL = 'eth\x1b[2J\n"\x9b\x7f\udcff0'
NAMES = {1: "eth0", 2: EVIL}
BY = Notice(BOOT, "scan")  # the start of each notice below

NOTICES = {
    "probe": BY._replace(
        in_iface="eth0", source="192.0.2.56", src_port=5973, destination="10.0.0.5", dest_port=81, port_state="closed",
        tcp_flags="FIN,PSH,URG",
    ),
    "scan": BY._replace(
        in_iface="eth0", source="192.0.2.56", destination="10.0.0.5", ports=(80, 81, 82), closed_ports=(81, 82)
    ),
    "block": BY._replace(
        source="192.0.2.56", until_ns=BOOT + 60 * SECOND, reason="slow scan", rule="5:closed:10m",
        ports=(21, 23, 25, 81, 82), evidence="seen",
    ),
    "storm": BY._replace(
        count=1234, since_ns=BOOT - 60 * SECOND,
        message="more new blocks in a minute than block.storm allows, probably of forged sources",
    ),
    "unblock": BY._replace(boot_ns=BOOT + 60 * SECOND, source="192.0.2.56", reason="expired"),
    "drop": BY._replace(source="192.0.2.56", count=1234, since_ns=BOOT - 485 * SECOND, reason="blocked"),
    "summary": BY._replace(
        in_iface="eth0", level="source_port", source="192.0.2.56", dest_port=80, count=1234, since_ns=BOOT - SECOND
    ),
    "loss": BY._replace(where="ring", count=70),
    "start": BY._replace(mode="enforce", in_iface="eth0"),
    "stop": BY,
}
NOTICES = {name: notice._replace(event_type=name) for name, notice in NOTICES.items()}


@pytest.fixture(autouse=True)
def zone(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def connection(source=SOURCE, target=TARGET, sport=5973, dport=80, attachment=1, flags=0, boot_ns=BOOT):
    return boot_ns, source, target, sport.to_bytes(2, "big"), dport.to_bytes(2, "big"), attachment, flags


def batch(*connections, notices=()):
    return Batch(list(connections), list(notices), CLOCK, NAMES)


def lines(form, *connections, notices=()):
    return [line for lines, _ in form.chunks(batch(*connections, notices=notices)) for line in lines]


def text(*connections, notices=()):
    return "".join(lines(TextForm(), *connections, notices=notices))


def objects(*connections, notices=(), anonymize=False):
    data = JsonForm(anonymize).encode(batch(*connections, notices=notices))
    return [json.loads(line) for line in data.splitlines()]


def journal(datagram):
    """A datagram as a list of pairs, read as journald reads it."""
    pairs = []
    while datagram:
        head, _, datagram = datagram.partition(b"\n")
        name, equals, value = head.partition(b"=")
        if not equals:
            size = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + size], datagram[9 + size :]
        pairs.append((name.decode(), value.decode()))
    return pairs


def documented():
    """event type -> (its section, the fields of its table), and of the common section."""
    sections = re.split(r"^## ", DOC, flags=re.M)[1:]
    heads = {section.partition("\n")[0]: section for section in sections}
    return {head: (section, re.findall(r"^\| `(\w+)` \|", section, re.M)) for head, section in heads.items()}


def test_the_text_of_a_connection():
    assert text(connection()) == "2026-11-24 15:28:05: New connection: 192.0.2.56:5973 -> 10.0.0.5:80\n"


def test_ipv6_stands_in_brackets_before_a_port():
    v6 = connection(address.parse("2001:db8::1"), address.parse("2001:db8::2"), flags=IPV6)
    assert text(v6).endswith(": New connection: [2001:db8::1]:5973 -> [2001:db8::2]:80\n")
    assert text(notices=[NOTICES["scan"]._replace(source="2001:db8::1")]).split(": ", 1)[1].startswith(
        "Port scan detected: 2001:db8::1 -> 10.0.0.5"
    )


def test_observe_says_would():
    assert "Would block connection: 192.0.2.56:5973" in text(connection(flags=WOULD_DROP))
    would = [notice._replace(mode="observe") for notice in NOTICES.values()]
    read = text(notices=would)
    for phrase in (
        "Would block 192.0.2.56 for 1m (slow scan)", "Would unblock 192.0.2.56", "Would drop 1234 conn",
        "Would drop probe with FIN,PSH,URG from 192.0.2.56 to 10.0.0.5:81", "1234 sources would not be blocked",
    ):
        assert phrase in read
    assert "Blocked" not in read and "Dropped" not in read


@pytest.mark.parametrize("form", [TextForm, JournalForm])
@pytest.mark.parametrize("flags, template", [(0, "text"), (ALLOWED, "text"), (WOULD_DROP, "would")])
def test_the_fast_path_says_what_the_table_says(form, flags, template):
    expected = getattr(records.KINDS["connection"], template).format(source="192.0.2.56:5973", target="10.0.0.5:80")
    line = lines(form(), connection(flags=flags))[0]
    said = dict(journal(line))["MESSAGE"] if form is JournalForm else line.split(": ", 1)[1].rstrip("\n")
    assert said == expected


@pytest.mark.parametrize(
    "start, until, expected",
    [
        (0, 0, "forever"),
        (0, None, "forever"),
        (5, 5 + 3600 * SECOND, "for 1h"),
        (0, 5400 * SECOND, "for 1h 30m"),
        (0, 90 * SECOND, "for 1m 30s"),
        (0, 10 * 86400 * SECOND, "for 10d"),
        (0, 3_599_999_999_999, "for 1h"),
        (9, 5, "for 0s"),
    ],
)
def test_durations(start, until, expected):
    assert duration(start, until) == expected


def test_a_loss_carries_advice_also_in_json():
    loss = NOTICES["loss"]
    assert objects(notices=[loss])[0]["message"] == records.ADVICE["ring"]
    assert objects(notices=[loss._replace(message="own words")])[0]["message"] == "own words"
    assert text(notices=[loss._replace(where="file", count=1, reason="ENOSPC: No space left on device")]).endswith(
        f"Lost 1 record on the way to log.file (ENOSPC: No space left on device): {records.ADVICE['file']}\n"
    )


def test_a_probe_may_have_no_flags():
    assert text(notices=[NOTICES["probe"]._replace(tcp_flags="")]).endswith(
        ": Probe with no flags from 192.0.2.56 to 10.0.0.5:81\n"
    )


def test_a_scan_of_open_ports_has_no_closed_ones():
    (found,) = objects(notices=[NOTICES["scan"]._replace(closed_ports=())])
    assert found["ports"] == [80, 81, 82] and "closed_ports" not in found


def test_the_json_of_a_connection():
    assert objects(connection()) == [
        {
            "timestamp": "2026-11-24T14:28:05.123456Z",
            "event_type": "connection",
            "in_iface": "eth0",
            "src_ip": "192.0.2.56",
            "src_port": 5973,
            "dest_ip": "10.0.0.5",
            "dest_port": 80,
            "proto": "TCP",
        }
    ]


def test_the_flags_of_a_connection_in_json():
    allowed, would, gone = objects(connection(flags=ALLOWED), connection(flags=WOULD_DROP), connection(attachment=9))
    assert allowed["allowed"] is True and "mode" not in allowed
    assert would["mode"] == "observe" and "allowed" not in would
    assert gone["in_iface"] == "unknown"


@pytest.mark.parametrize("flags, state", [(0, None), (OPEN, "open"), (CLOSED, "closed"), (OPEN | ALLOWED, "open")])
def test_the_state_of_the_port(flags, state):
    assert objects(connection(flags=flags))[0].get("port_state") == state
    fields = dict(journal(lines(JournalForm(), connection(flags=flags))[0]))
    assert fields.get("PACKETWATCH_PORT_STATE") == state


def test_an_interface_renamed_between_batches_is_followed():
    form = JsonForm()
    before = form.encode(Batch([connection()], [], CLOCK, {1: "eth0"}))
    after = form.encode(Batch([connection()], [], CLOCK, {1: "lan0"}))
    assert b'"eth0"' in before and b'"lan0"' in after


def test_seconds_change_within_a_chunk_and_back():
    times = [BOOT, BOOT + SECOND, BOOT, BOOT - 123_456_789, BOOT - 123_456_790]
    stamps = [found["timestamp"] for found in objects(*(connection(boot_ns=ns) for ns in times))]
    assert stamps == [records.rfc3339(ns + CLOCK) for ns in times]
    assert stamps[3:] == ["2026-11-24T14:28:05.000000Z", "2026-11-24T14:28:04.999999Z"]


@pytest.mark.parametrize("ns", [0, -1, 2**63 - 1, 10**30])
def test_no_time_is_out_of_range(ns):
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", records.rfc3339(ns))
    assert re.match(r"\d{4}-\d\d-\d\d ", text(notices=[NOTICES["stop"]._replace(boot_ns=ns)]))


def test_until_is_a_time_or_forever():
    block = NOTICES["block"]
    timed, forever = objects(notices=[block, block._replace(until_ns=0)])
    assert timed["until"] == "2026-11-24T14:29:05.123456Z"
    assert forever["until"] == "forever"


@pytest.mark.parametrize("kind", sorted(records.KINDS))
@pytest.mark.parametrize("mode", [None, "observe"])
def test_journal_and_json_hold_the_same(kind, mode):
    made = {"notices": [NOTICES[kind]._replace(mode=mode)]} if kind != "connection" else {}
    singles = [] if made else [connection(flags=WOULD_DROP | ALLOWED | CLOSED if mode else OPEN)]
    (found,) = objects(*singles, **made)
    pairs = journal(lines(JournalForm(), *singles, **made)[0])
    fields = dict(pairs)
    assert len(fields) == len(pairs)
    own = {name[12:].lower(): value for name, value in fields.items() if name.startswith("PACKETWATCH_")}
    as_text = {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value).replace("True", "true")
        for name, value in found.items()
    }
    assert own == as_text
    assert fields["MESSAGE"] == text(*singles, **made).split(": ", 1)[1].rstrip("\n")
    assert fields["MESSAGE_ID"] == records.KINDS[kind].message_id
    assert fields["PRIORITY"] == str(records.KINDS[kind].priority)
    assert fields["SYSLOG_IDENTIFIER"] == "packetwatch"


def test_priorities():
    loud = {name for name, kind in records.KINDS.items() if kind.priority <= 4}
    assert loud == {"scan", "storm", "loss"}
    assert {name for name, kind in records.KINDS.items() if kind.priority == 5} == {"block", "unblock"}
    assert {kind.priority for kind in records.KINDS.values()} == {4, 5, 6}


@pytest.mark.parametrize("form", [TextForm(), JsonForm(), JournalForm()], ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("several", [False, True])
def test_no_field_reaches_a_terminal_raw(form, several):
    evil = BY._replace(in_iface=EVIL, reason=EVIL, message=EVIL, source=EVIL, where=EVIL, level=EVIL, count=1)
    if several:
        evil = evil._replace(source=None, sources=(EVIL, EVIL))
    evil = evil._replace(rule=EVIL, port_state=EVIL, tcp_flags=EVIL, evidence=EVIL)
    written = lines(form, connection(attachment=2), notices=[evil._replace(event_type=kind) for kind in NOTICES])
    assert len(written) == 1 + len(NOTICES)
    for line in written:
        if isinstance(line, bytes):
            assert all(value.isprintable() for _, value in journal(line))
        else:
            assert line[-1] == "\n" and line[:-1].isprintable()


def test_json_keeps_the_odd_name_readable():
    single, told = objects(connection(attachment=2), notices=[BY._replace(in_iface=EVIL)])
    assert single["in_iface"] == told["in_iface"] == EVIL


def test_a_newline_cannot_make_a_field():
    assert journal(entry([("MESSAGE", "a\nPRIORITY=0"), ("X", "y")])) == [("MESSAGE", "a\nPRIORITY=0"), ("X", "y")]


def test_anonymize_cuts_the_source_of_connection_records_only():
    v6 = connection(address.parse("2001:db8:1:2::3"), flags=IPV6)
    single, six, *told = objects(connection(), v6, notices=NOTICES.values(), anonymize=True)
    assert (single["src_ip"], single["dest_ip"]) == ("192.0.2.0", "10.0.0.5")
    assert six["src_ip"] == "2001:db8:1::"
    sources = {found["event_type"]: found.get("src_ip") for found in told}
    assert sources.pop("summary") == "192.0.2.0"
    assert {sources[kind] for kind in ("probe", "scan", "block", "unblock", "drop")} == {"192.0.2.56"}


@pytest.mark.parametrize("form", [TextForm, JsonForm, JournalForm])
def test_anonymize_leaves_no_trace_of_the_source(form):
    written = lines(form(anonymize=True), connection(), notices=[NOTICES["summary"]])
    assert "192.0.2.56" not in "".join(map(str, written))


def test_a_summary_whose_source_is_no_address_is_not_told_uncut():
    (found,) = objects(notices=[NOTICES["summary"]._replace(source="192.0.2.56%x")], anonymize=True)
    assert "src_ip" not in found and found["count"] == 1234


@pytest.mark.parametrize("name", ["0.0.0.0", "255.255.255.255", "192.0.2.56", "::", "::1", "2001:db8::1"])
def test_addresses_read_as_everywhere_else(name):
    assert records.written(address.parse(name)) == address.text(address.parse(name)) == name


def test_the_caches_are_bounded():
    form = JsonForm()
    for start in range(0, 20_000, 5_000):
        forged = [
            connection(number.to_bytes(16, "big"), number.to_bytes(16, "little"), dport=number)
            for number in range(start, start + 5_000)
        ]
        assert len(objects(*forged)) == len(lines(form, *forged)) == 5_000
    assert max(map(len, (form.sources, form.destinations, form.ports))) <= records.CACHED


def test_connections_and_notices_come_in_time_order():
    singles = [connection(boot_ns=BOOT + n, sport=n) for n in (0, 1, 1, 2, 5)]
    told = [BY._replace(boot_ns=BOOT + n, event_type="stop") for n in (-1, 1, 2, 3, 9)]
    found = [(o["event_type"][0], o.get("src_port")) for o in objects(*singles, notices=told)]
    assert found == [
        ("s", None), ("c", 0), ("c", 1), ("c", 1), ("s", None), ("c", 2), ("s", None), ("s", None), ("c", 5),
        ("s", None),
    ]  # fmt: skip


def test_notices_out_of_order_lose_nothing():
    singles = [connection(boot_ns=BOOT + n) for n in range(3)]
    told = [BY._replace(boot_ns=BOOT + n, event_type="stop") for n in (2, 0, 1)]
    assert len(objects(*singles, notices=told)) == 6


@pytest.mark.parametrize("count", [0, 1, 2047, 2048, 2049, 5000])
def test_chunks_hold_every_record_once(count):
    singles = [connection(sport=number % 65536, boot_ns=BOOT + number) for number in range(count)]
    told = [BY._replace(boot_ns=BOOT + number) for number in range(0, count, 1000)]
    given = batch(*singles, notices=told)
    chunks = list(JsonForm().chunks(given))
    assert all(len(lines) == len(found) < 2 * 2048 for lines, found in chunks)
    kept = [record for _, found in chunks for record in found]
    assert [r for r in kept if type(r) is tuple] == singles and [r for r in kept if type(r) is not tuple] == told


def test_every_event_type_and_field_is_documented():
    sections = documented()
    assert tuple(sections["Fields of every record"][1]) == records.COMMON
    for name, kind in records.KINDS.items():
        section, fields = sections[name]
        assert tuple(fields) == kind.fields
        assert f"Priority {kind.priority}, `MESSAGE_ID={kind.message_id}`." in section


def test_the_example_of_several_sources_is_what_is_written():
    sources = "192.0.2.7", "192.0.2.56", "198.51.100.9", "203.0.113.4"
    several = NOTICES["scan"]._replace(boot_ns=BOOT + SECOND, source=None, sources=sources, count=1)
    assert f"`{text(notices=[several])[:-1]}`\n" in documented()["scan"][0]
    (found,) = objects(notices=[several])
    assert found["src_ips"] == list(sources) and found["sources"] == 4 and "src_ip" not in found


@pytest.mark.parametrize(
    "kind, words",
    [
        ("block", "Blocked 2 sources for 1m (slow scan): 192.0.2.7, ::1"),
        ("unblock", "Unblocked 2 sources (expired): 192.0.2.7, ::1"),
        ("drop", "Dropped 1234 connections from 2 sources since 2026-11-24 15:20:00: 192.0.2.7, ::1"),
    ],
)
def test_several_sources_are_named_in_every_form(kind, words):
    several = NOTICES[kind]._replace(source=None, sources=("192.0.2.7", "::1"))
    assert text(notices=[several]).partition(": ")[2] == words + "\n"
    fields = dict(journal(lines(JournalForm(), notices=[several])[0]))
    assert fields["MESSAGE"] == words
    assert (fields["PACKETWATCH_SOURCES"], fields["PACKETWATCH_SRC_IPS"]) == ("2", "192.0.2.7,::1")


def test_no_event_type_is_documented_that_is_none():
    assert {head for head, (_, fields) in documented().items() if fields} - set(records.KINDS) == {
        "Fields of every record"
    }


@pytest.mark.parametrize("kind", sorted(records.KINDS))
def test_the_examples_of_the_documentation_are_what_is_written(kind):
    example = re.search(r"^`(\d{4}-.*)`$", documented()[kind][0], re.M)
    written = text(connection()) if kind == "connection" else text(notices=[NOTICES[kind]])
    assert example and example[1] + "\n" == written


@pytest.mark.parametrize("kind", sorted(NOTICES))
def test_no_notice_brings_a_field_that_is_not_listed(kind):
    full = Notice(
        BOOT, kind, "eth0", "a", "b", 1, (2,), 3, 4, 5, "r", "l", "w", "observe", "m", (2,), "u", 6, "open", True,
        "FIN", "seen", ("c", "d"),
    )
    (found,) = objects(notices=[full])
    assert set(found) == set(records.COMMON + records.KINDS[kind].fields)


def test_message_ids_are_those_of_the_catalogue():
    ids = [kind.message_id for kind in records.KINDS.values()]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert re.findall(r"^-- (\w+)$", CATALOG, re.M) == ids


def test_the_catalogue_names_only_fields_its_record_has():
    for kind, body in zip(records.KINDS.values(), re.split(r"^-- \w+$", CATALOG, flags=re.M)[1:]):
        named = {name.lower() for name in re.findall(r"@PACKETWATCH_(\w+)@", body)}
        assert body.count("@") == 2 * len(re.findall(r"@PACKETWATCH_\w+@", body))
        assert named <= set(records.COMMON + kind.fields)


def test_the_catalogue_compiles(tmp_path):
    assert shutil.which("journalctl"), "journalctl is missing: install systemd"
    sources = tmp_path / "usr/lib/systemd/catalog"
    sources.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    (sources / "packetwatch.catalog").write_text(CATALOG)
    command = ["journalctl", f"--root={tmp_path}"]
    subprocess.run([*command, "--update-catalog"], check=True, capture_output=True)
    listed = subprocess.run([*command, "--list-catalog"], check=True, capture_output=True, text=True).stdout
    assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(
        kind.message_id for kind in records.KINDS.values()
    )
