# SPDX-License-Identifier: Apache-2.0
"""`packetwatch why ADDRESS`: ports, rules, blocks, offences, lists and history of a source."""

from __future__ import annotations

import pytest

from .traffic import CLOSED, SILENT

SETTINGS = """
interface = v0
log.format = json
metrics.listen = off
block.first = 5s
block.proof = none
allow = 198.51.100.0/28
block = 203.0.113.0/24
"""


@pytest.fixture(scope="module")
def watch(shared, wire):
    return shared(wire.host, SETTINGS)


@pytest.fixture(params=["IPv4", "IPv6"])
def source(request, wire):
    for _ in range(16):  # beyond those that are allowed
        found = wire.somebody(ipv6=request.param == "IPv6")
    return found


def rules_of(answer):
    return {row["rule"]: (row["reached"], row["of"]) for row in answer["rules"]}


def test_of_a_stranger_nothing_is_known(watch):
    answer = watch.answer("why", "203.0.112.9")
    assert (answer["verdict"], answer["evidence"]) == ("not blocked", "none")
    assert answer["ports"] == answer["history"] == answer["blocked_by"] == []
    assert "no port that it has reached is remembered" in watch.done("why", "203.0.112.9")


def test_before_a_scan_its_ports_and_how_far_each_rule_is(watch, wire, source):
    with wire.listen(22, ipv6=":" in source):
        wire.knock(source, 22, 5)
    answer = watch.answer("why", source)
    assert (answer["verdict"], answer["evidence"]) == ("not blocked", "seen")
    assert [(each["port"], each["state"]) for each in answer["ports"]] == [(5, "closed"), (22, "open")]
    assert rules_of(answer) == {
        "scan": (2, 3), "scan:closed": (1, 3), "5:closed:10m": (1, 5), "10:closed:1d": (1, 10)
    }
    assert "rule 5:closed:10m: 1 of 5 ports within 10m" in watch.done("why", source)


def test_after_a_scan_the_block_its_rule_and_the_history(watch, wire, source):
    assert wire.knock(source, 5, 6, 7, 8) == [CLOSED] * 3 + [SILENT]
    watch.record("block", src_ip=source)
    answer = watch.answer("why", source)
    assert answer["verdict"] == "blocked"
    (block,) = answer["blocked_by"]
    assert (block["rule"], block["reason"], block["dropped"]) == ("scan:closed", "port scan", 1)
    assert [each["event_type"] for each in answer["history"]] == ["scan", "block"]
    assert rules_of(answer)["scan"] == (0, 3)
    assert (answer["offences"]["count"], answer["offences"]["next_block"]) == (1, "10s")
    printed = watch.done("why", source)
    assert printed.startswith(f"{source}: blocked\n") and f"Port scan detected: {source}" in printed
    watch.record("unblock", src_ip=source)
    answer = watch.answer("why", source)
    assert answer["verdict"] == "not blocked" and answer["history"][-1]["event_type"] == "unblock"


def test_the_lists_tell(watch):
    answer = watch.answer("why", "198.51.100.1")
    assert (answer["verdict"], answer["allowed_by"]) == ("allowed", [{"prefix": "198.51.100.0/28", "reason": "config"}])
    answer = watch.answer("why", "203.0.113.7")
    assert answer["verdict"] == "blocked" and answer["blocked_by"][0]["prefix"] == "203.0.113.0/24"
    watch.done("block", "add", "--force", "192.0.2.1", "--duration", "1m")
    answer = watch.answer("why", "192.0.2.1")
    assert answer["verdict"] == "blocked" and answer["allowed_by"][0]["reason"] == "own address"


@pytest.mark.parametrize("word", ["", "nonsense", "192.0.2.0/24"])
def test_what_is_no_address_is_refused_in_a_line(watch, word):
    result = watch.command("why", word)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


def test_in_observe_it_says_would(watch, wire, source):
    watch.done("mode", "observe")
    try:
        wire.knock(source, 5, 6, 7)
        watch.record("block", src_ip=source)
        assert watch.answer("why", source)["verdict"] == "would be blocked"
    finally:
        watch.done("mode", "enforce")
