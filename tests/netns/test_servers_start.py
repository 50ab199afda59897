# SPDX-License-Identifier: Apache-2.0
"""A start that depends on nobody's answer: with a name server, with a silent one, with what was known before."""

from __future__ import annotations

import time

import pytest

from .files import Files, listed
from .nameserver import NameServer
from .resident import wait_for
from .traffic import CLOSED, HOST4, SILENT

SETTINGS = """
interface = v0
log.format = json
metrics.listen = off
"""
STUB, RESOLVER4, TIME4, PUPPET4 = "127.0.0.9", "198.51.100.53", "198.51.100.123", "198.51.100.140"


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path / "files")


def started(resident, wire, files):
    """A resident of its own, and the seconds that it took to answer."""
    begun = time.monotonic()
    one = resident(wire.host, SETTINGS, prefix=files.prefix)
    return one, time.monotonic() - begun


def test_a_silent_name_server_delays_no_start_and_no_stop_and_what_was_known_holds(resident, wire, files):
    files.write("/etc/resolv.conf", f"nameserver {STUB}\nnameserver {RESOLVER4}\n")  # 10 s a name, as glibc has it
    files.write("/etc/ntp.conf", "server ntp.example.org\n")
    files.write("/etc/puppet/puppet.conf", "[agent]\nserver_list = puppet.example.org:8140\n")
    wanted = {
        (RESOLVER4, "resolver", "/etc/resolv.conf"), (TIME4, "time server", "ntp.example.org, /etc/ntp.conf"),
        (PUPPET4, "Puppet server", "puppet.example.org, /etc/puppet/puppet.conf"),
    }
    with NameServer(wire.host, STUB) as names:
        names.names = {"ntp.example.org": [TIME4], "puppet.example.org": [PUPPET4]}
        one, usual_s = started(resident, wire, files)
        wait_for(lambda: listed(one) == wanted, "the names")
        assert one.stop() == 0
        names.silent = True
        names.asked.clear()
        begun = time.monotonic()
        one.start()
        assert time.monotonic() - begun < usual_s + 2
        assert listed(one) == wanted
        wait_for(lambda: names.asked, "a question")
        assert wire.knock(TIME4, 1, 2, 3, 4, 5) == [CLOSED] * 5
        assert wire.knock("198.51.100.9", 1, 2, 3, 4)[-1] == SILENT  # anybody else
        begun = time.monotonic()
        assert one.stop() == 0
        assert time.monotonic() - begun < 3


def test_at_a_first_start_the_addresses_in_files_are_there_before_the_interface(resident, wire, files):
    files.write("/etc/resolv.conf", f"nameserver {RESOLVER4}\n")
    one, _ = started(resident, wire, files)
    assert wire.knock(RESOLVER4, 1, 2, 3, 4, 5) == [CLOSED] * 5
    assert one.answer("block", "list") == []
    assert [each for each in one.records("start") if "never blocked: own address, resolver" in each.get("message", "")]
    assert HOST4 in {each["prefix"] for each in one.answer("allow", "list")}


def test_a_broken_file_of_answers_is_no_fault(resident, wire, files):
    for text in ("\0" * 100, '{"answers": {"a": [7], "b": "x"}}'):
        one = resident(wire.host, SETTINGS, prefix=files.prefix, start=False)
        one.state.mkdir(parents=True)
        (one.state / "servers.json").write_text(text)
        one.start()
        assert listed(one) == set() and one.status()["problems"] == []
        assert one.stop() == 0
