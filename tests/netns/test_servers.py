# SPDX-License-Identifier: Apache-2.0
"""Name servers, time servers and the Puppet server of the host: followed through files and a name server that fails."""

from __future__ import annotations

import time

import pytest

from .files import Files, listed
from .nameserver import NameServer
from .resident import wait_for
from .traffic import CLOSED, OPEN, SILENT

SETTINGS = """
interface = v0
log.format = json
metrics.listen = off
"""
STUB, REAL = "127.0.0.53", "/run/systemd/resolve/resolv.conf"
CHRONY, PUPPET = "/etc/chrony/sources.d/ours.sources", "/etc/puppetlabs/puppet/puppet.conf"
RESOLVER4, RESOLVER6, TIME4, TIME6 = "198.51.100.53", "2001:db8:5::53", "198.51.100.123", "2001:db8:5::123"
PUPPET4, OTHER4 = "198.51.100.140", "198.51.100.124"
LISTED = {
    (RESOLVER4, "resolver", REAL), (RESOLVER6, "resolver", REAL),
    (TIME4, "time server", f"ntp.example.org, {CHRONY}"), (TIME6, "time server", f"ntp.example.org, {CHRONY}"),
    (PUPPET4, "Puppet server", f"puppet.example.org, {PUPPET}"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = Files(tmp_path_factory.mktemp("files"))
    made.write("/etc/resolv.conf", f"nameserver {STUB}\noptions timeout:1 attempts:1\n")
    made.write(REAL, f"nameserver {RESOLVER4}\nnameserver {RESOLVER6}\n")
    made.write("/etc/chrony/chrony.conf", "sourcedir /etc/chrony/sources.d\n")
    made.write(CHRONY, "pool ntp.example.org iburst\n")
    made.write(PUPPET, "[main]\nserver = puppet.example.org\n")
    return made


@pytest.fixture(scope="module")
def server(wire):
    with NameServer(wire.host, STUB) as server:
        yield server


@pytest.fixture
def names(server):
    """The name server as it should be, for each test."""
    server.names = {"ntp.example.org": [TIME4, TIME6], "puppet.example.org": [PUPPET4]}
    server.silent, server.sends = False, None
    return server


@pytest.fixture(scope="module")
def shared_watch(shared, wire, files, server):
    return shared(wire.host, SETTINGS, prefix=files.prefix)


@pytest.fixture
def watch(shared_watch, names):
    shared_watch.done("reload")
    wait_for(lambda: listed(shared_watch) == LISTED and not errors(shared_watch), "the names")
    return shared_watch


def errors(watch):
    return {each["name"]: each["error"] for each in watch.status()["names"] if each["error"]}


def blocked(watch):
    return {entry["prefix"] for entry in watch.answer("block", "list")}


def test_all_are_listed_with_reason_and_name(watch):
    rows = [line.split(None, 1) for line in watch.done("allow", "list").splitlines()]
    assert [TIME4, f"time server (ntp.example.org, {CHRONY})"] in rows
    puppet, ntp = watch.status()["names"]
    assert puppet == {
        "name": "puppet.example.org", "reason": "Puppet server", "file": PUPPET, "addresses": [PUPPET4], "error": None
    }
    assert ntp == {
        "name": "ntp.example.org", "reason": "time server", "file": CHRONY, "addresses": [TIME4, TIME6], "error": None
    }


@pytest.mark.parametrize("source", [RESOLVER4, RESOLVER6, TIME4, TIME6, PUPPET4])
def test_a_scan_by_one_is_recorded_and_never_blocked(watch, wire, source):
    with wire.listen(80), wire.listen(80, ipv6=True):
        assert wire.knock(source, *range(1, 7), 80) == [CLOSED] * 6 + [OPEN]
    wait_for(lambda: len(watch.records("connection", src_ip=source)) == 7, "the records")
    assert watch.records("scan", src_ip=source) == [] and source not in blocked(watch)


def test_a_block_of_one_needs_force(watch):
    result = watch.command("block", "add", RESOLVER4)
    assert result.returncode == 4 and f"{RESOLVER4} (resolver)" in result.stderr


def test_another_answer_is_a_difference(watch, wire, names):
    """Who is new is unblocked, who is gone is judged, the others never notice."""
    assert wire.knock(OTHER4, 1, 2, 3, 4)[-1] == SILENT
    names.names["ntp.example.org"] = [OTHER4, TIME6]
    watch.done("reload")
    detail = f"ntp.example.org, {CHRONY}"
    wanted = LISTED - {(TIME4, "time server", detail)} | {(OTHER4, "time server", detail)}
    wait_for(lambda: listed(watch) == wanted, "the new one")
    assert watch.record("unblock", src_ip=OTHER4)["reason"] == "allowed"
    assert wire.knock(OTHER4, 1, 2, 3, 4, 5) == [CLOSED] * 5
    assert wire.knock(TIME4, 1, 2, 3, 4)[-1] == SILENT
    assert wire.knock(TIME6, 1, 2, 3, 4, 5) == [CLOSED] * 5
    watch.done("block", "remove", TIME4)


def test_the_last_good_answer_stays_while_the_name_server_is_silent(watch, wire, names):
    names.silent = True
    begun = time.monotonic()
    watch.done("reload")
    source = wire.somebody()
    wire.knock(source, 80)
    watch.record("connection", 1, src_ip=source)
    assert time.monotonic() - begun < 2  # nobody waits for it
    wanted = {"ntp.example.org", "puppet.example.org"}
    wait_for(lambda: set(errors(watch)) == wanted, "the failure of both", 15)
    assert set(errors(watch).values()) == {"Temporary failure in name resolution"}
    assert listed(watch) == LISTED
    printed = watch.done("status")
    assert f"puppet.example.org, a Puppet server: Temporary failure in name resolution; it was {PUPPET4}" in printed
    assert "Problems" not in printed
    assert wire.knock(PUPPET4, 1, 2, 3, 4, 5) == [CLOSED] * 5


LIES = {
    "no such name": ({}, None),
    "nobody's addresses": (["0.0.0.0", "224.0.0.9", "255.255.255.255", "::", "ff02::1", "::ffff:198.51.100.9"], None),
    "this host": (["127.0.0.1", "127.9.9.9", "::1"], None),
    "nothing but an id": (None, b""),
    "zeros": (None, bytes(100)),
    "a loop of names": (None, b"\x81\x80\0\1\0\1\0\0\0\0\xc0\x0c\0\1\0\1\xc0\x0c\0\5\0\1\0\0\0\1\0\2\xc0\x0c"),
    "more than there is": (None, b"\x81\x80\0\1\xff\xff\0\0\0\0" + b"\xff" * 500),
}


@pytest.mark.parametrize("answer, raw", LIES.values(), ids=list(LIES))
def test_the_last_good_answer_stays_when_the_name_server_lies(watch, names, answer, raw):
    names.names = {name: answer for name in names.names} if answer else {}
    names.sends = raw
    names.asked.clear()
    watch.done("reload")
    wait_for(lambda: {"ntp.example.org", "puppet.example.org"} <= set(names.asked), "both questions")
    if answer is None or "127.0.0.1" not in answer:
        wait_for(lambda: len(errors(watch)) == 2, "the failure of both", 15)
    assert listed(watch) == LISTED


def test_of_a_mixed_answer_the_good_ones_are_taken(watch, names):
    names.names["puppet.example.org"] = ["127.0.0.1", PUPPET4, "0.0.0.0", "::", "::ffff:198.51.100.9", "239.1.1.1"]
    names.asked.clear()
    watch.done("reload")
    wait_for(lambda: "ntp.example.org" in names.asked and not errors(watch), "the answers")
    assert listed(watch) == LISTED


def test_each_can_be_switched_off(watch, wire):
    for key, reason in (("resolvers", "resolver"), ("time_servers", "time server"), ("puppet_server", "Puppet server")):
        watch.write(f"{SETTINGS}\nallow.{key} = no")
        assert f"allow.{key}" in watch.done("reload")
        assert listed(watch) == {each for each in LISTED if each[1] != reason}
    assert wire.knock(PUPPET4, 1, 2, 3, 4)[-1] == SILENT
    watch.write(SETTINGS)
    watch.done("reload")
    wait_for(lambda: listed(watch) == LISTED, "all of them")
    assert wire.knock(PUPPET4, 1, 2, 3, 4) == [CLOSED] * 4


def test_a_file_that_changes_is_followed_without_a_word(watch, files, names):
    names.names["b.example.org"] = [OTHER4]
    files.write("/etc/chrony/sources.d/more.sources", "server b.example.org\nserver 198.51.100.125\n")
    more = "/etc/chrony/sources.d/more.sources"
    new = {(OTHER4, "time server", f"b.example.org, {more}"), ("198.51.100.125", "time server", more)}
    wait_for(lambda: listed(watch) == LISTED | new, "the new servers", 15)
    (files.folder / more.lstrip("/")).unlink()
    wait_for(lambda: listed(watch) == LISTED, "their end", 15)
