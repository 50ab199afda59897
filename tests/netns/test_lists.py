# SPDX-License-Identifier: Apache-2.0
"""Who is blocked and who never: lists by hand and by settings, the always allowed, and what is this host."""

from __future__ import annotations

import re
import time

import pytest

from .resident import wait_for
from .traffic import CLOSED, HOST4, HOST6, OPEN, OUT4, OUT6, SILENT

SETTINGS = """
interface = v0
log.format = json
metrics.listen = off
allow = 198.51.100.224/28 2001:db8:5:0:a::/80
"""
SESSION = "198.51.100.250"
#: Runs what follows with a folder of the test's in the place of logind's.
WITH_SESSIONS = """
mount -t tmpfs none /run && mkdir -p /run/systemd/sessions && mount --bind "$0" /run/systemd/sessions && exec "$@"
"""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory):
    """logind's folder, with one session from elsewhere."""
    folder = tmp_path_factory.mktemp("sessions")
    (folder / "7").write_text(f"UID=0\nSTATE=active\nREMOTE=1\nREMOTE_HOST={SESSION}\n")
    return folder


@pytest.fixture(scope="module")
def watch(shared, wire, sessions):
    wire.host.ip(f"route add default via {OUT4}")
    wire.host.ip(f"-6 route add default via {OUT6}")
    return shared(wire.host, SETTINGS, prefix=["unshare", "-m", "sh", "-c", WITH_SESSIONS, str(sessions)])


@pytest.fixture(scope="module", autouse=True)
def web(wire):
    with wire.listen(80), wire.listen(80, ipv6=True):
        yield


@pytest.fixture(params=["IPv4", "IPv6"])
def ipv6(request):
    return request.param == "IPv6"


def allowed(watch):
    return {(entry["prefix"], entry["reason"]) for entry in watch.answer("allow", "list")}


def blocked(watch):
    return {entry["prefix"]: entry for entry in watch.answer("block", "list")}


def refused(watch, status, *words):
    """The command's one line."""
    result = watch.command(*words)
    assert result.returncode == status and not result.stdout
    assert result.stderr.count("\n") == 1
    return result.stderr


# never blocked


def test_the_always_allowed_are_listed_with_their_reasons(watch):
    wanted = {(HOST4, "own address"), (HOST6, "own address"), (OUT4, "default gateway"), (OUT6, "default gateway")}
    wanted |= {(SESSION, "session"), ("198.51.100.224/28", "config"), ("2001:db8:5:0:a::/80", "config")}
    assert wanted <= allowed(watch)


@pytest.mark.parametrize("source", [OUT4, OUT6, SESSION, "198.51.100.230", "2001:db8:5:0:a::7"])
def test_whoever_is_always_allowed_may_scan(watch, wire, source):
    assert wire.knock(source, *range(1, 7), 80) == [CLOSED] * 6 + [OPEN]
    assert source not in blocked(watch)


def test_a_session_that_ends_allows_no_longer(watch, wire, sessions):
    path, source = sessions / "8", wire.somebody()
    path.write_text(f"STATE=active\nREMOTE=1\nREMOTE_HOST={source}\n")
    wait_for(lambda: (source, "session") in allowed(watch), "the session")
    assert wire.knock(source, 1, 2, 3, 4) == [CLOSED] * 4
    path.unlink()
    wait_for(lambda: (source, "session") not in allowed(watch), "the end of the session")
    assert wire.knock(source, 1, 2, 3, 4)[-1] == SILENT


def test_a_gateway_that_moves_is_followed(watch, wire):
    wire.host.ip("route change default via 192.0.2.3")
    wait_for(lambda: ("192.0.2.3", "default gateway") in allowed(watch), "the new gateway")
    assert (OUT4, "default gateway") not in allowed(watch)
    wire.host.ip(f"route change default via {OUT4}")
    wait_for(lambda: (OUT4, "default gateway") in allowed(watch), "the old gateway")


# by hand


def test_a_prefix_blocked_by_hand(watch, wire, ipv6):
    prefix, inside = ("2001:db8:5:0:b::/80", "2001:db8:5:0:b::9") if ipv6 else ("198.51.100.192/27", "198.51.100.200")
    outside = wire.somebody(ipv6)
    watch.done("block", "add", prefix, "--reason", "a test", "--duration", "2h")
    entry = blocked(watch)[prefix]
    assert entry["reason"] == "a test" and entry["until"].endswith("Z")
    assert watch.record("block", src_ip=prefix)["reason"] == "a test"
    assert wire.knock(inside, 80, 80) == [SILENT, SILENT] and wire.knock(outside, 80) == [OPEN]
    assert blocked(watch)[prefix]["dropped"] == 2
    assert "Removed 1 block." in watch.done("block", "remove", prefix)
    watch.record("unblock", src_ip=prefix)
    assert wire.knock(inside, 80) == [OPEN]


def test_a_block_by_hand_ends_by_itself_or_never(watch, wire):
    short, ever = wire.somebody(), wire.somebody()
    watch.done("block", "add", short, "--duration", "1s")
    assert "forever" in watch.done("block", "add", ever, "--duration", "forever")
    assert wire.knock(short, 80) == [SILENT]
    time.sleep(1)
    assert wire.knock(short, 80) == [OPEN]
    assert watch.record("unblock", src_ip=short)["reason"] == "expired"
    assert watch.record("block", src_ip=ever)["until"] == blocked(watch)[ever]["until"] == "forever"
    assert wire.knock(ever, 80) == [SILENT]
    watch.done("block", "remove", ever)


def test_allow_by_hand_beats_blocks_of_both_kinds(watch, wire, ipv6):
    source = wire.somebody(ipv6)
    assert wire.knock(source, 1, 2, 3, 80)[-1] == SILENT
    watch.done("block", "add", source)
    watch.done("allow", "add", source)
    assert wire.knock(source, 80, 81, 82, 83) == [OPEN, CLOSED, CLOSED, CLOSED]
    assert (source, "manual") in allowed(watch)
    watch.done("allow", "remove", source)
    assert wire.knock(source, 80) == [SILENT]
    watch.done("block", "remove", source)
    assert wire.knock(source, 80) == [OPEN]


def test_what_the_settings_allow_stays_allowed(watch, wire):
    printed = watch.done("block", "add", "198.51.100.231")
    assert "198.51.100.231 stays allowed" in printed
    assert wire.knock("198.51.100.231", 80) == [OPEN]
    watch.done("block", "remove", "198.51.100.231")


@pytest.mark.parametrize("prefix, covered", [("192.0.2.0/28", OUT4), ("::/0", "own address"), (SESSION, SESSION)])
def test_a_block_of_the_always_allowed_needs_force(watch, prefix, covered):
    line = refused(watch, 4, "block", "add", prefix)
    assert f"{prefix} covers what is always allowed" in line and covered in line and "--force" in line
    assert prefix not in blocked(watch)


def test_force_blocks_them(watch, wire):
    watch.done("block", "add", SESSION, "--force")
    assert wire.knock(SESSION, 80) == [SILENT]
    watch.done("block", "remove", SESSION)
    assert wire.knock(SESSION, 80) == [OPEN]


def test_everything_unblocked_at_once(watch, wire):
    scanner, by_hand = wire.somebody(), wire.somebody()
    wire.knock(scanner, 1, 2, 3)
    watch.done("block", "add", by_hand)
    assert {scanner, by_hand} <= set(blocked(watch))
    assert watch.answer("block", "remove", "--all")["removed"] >= 2
    assert blocked(watch) == {}
    assert wire.knock(scanner, 80) + wire.knock(by_hand, 80) == [OPEN, OPEN]


@pytest.mark.parametrize(
    "status, words, told",
    [
        (2, ("block", "add", "192.0.2.77/24"), "192.0.2.0/24"),
        (2, ("block", "add", "fe80::1%v0"), "scope"),
        (2, ("block", "add", "example.org"), "is not an IPv4 or IPv6 address"),
        (2, ("block", "add", "203.0.113.9", "--duration", "5"), "5"),
        (2, ("block", "remove"), "--all"),
        (1, ("block", "remove", "203.0.113.9"), "203.0.113.9 is not blocked"),
        (1, ("allow", "remove", "203.0.113.9"), "203.0.113.9 is not on the allow list"),
        (4, ("allow", "remove", "198.51.100.224/28"), "change it and reload"),
        (4, ("allow", "remove", OUT4), "default gateway"),
        (1, ("block", "list", "--would"), "enforce"),
    ],
)
def test_what_cannot_be_done_is_one_line(watch, status, words, told):
    assert told in refused(watch, status, *words)


# what is this host


def is_recorded(watch, wire, to):
    """Whether a connection to an address is one to this host."""
    source = wire.somebody()
    before = watch.status()["ignored"]["not_local"]
    wire.knock(source, 80, to=to, wait_s=0.05)
    wait_for(lambda: watch.records("connection", src_ip=source) or watch.status()["ignored"]["not_local"] > before, to)
    return bool(watch.records("connection", src_ip=source, dest_ip=to))


def test_an_address_on_another_device_is_local(watch, wire):
    wire.outside.ip(f"route add 10.7.0.0/24 via {HOST4}")
    wire.host.device("d0")
    assert not is_recorded(watch, wire, "10.7.0.1")
    wire.host.ip("address add 10.7.0.1/32 dev d0")
    wait_for(lambda: is_recorded(watch, wire, "10.7.0.1"), "10.7.0.1 as an own address")
    assert not is_recorded(watch, wire, "10.7.0.2")
    assert ("10.7.0.1", "own address") in allowed(watch)


def test_a_local_route_is_local(watch, wire):
    wire.outside.ip(f"route add 10.8.0.0/24 via {HOST4}")
    wire.host.ip("route add local 10.8.0.0/25 dev lo")
    wait_for(lambda: is_recorded(watch, wire, "10.8.0.99"), "10.8.0.0/25 as local")
    assert not is_recorded(watch, wire, "10.8.0.200")
    wire.host.ip("route del local 10.8.0.0/25 dev lo")
    wait_for(lambda: not is_recorded(watch, wire, "10.8.0.99"), "10.8.0.0/25 as not local")


def test_an_address_that_moves_as_with_keepalived(watch, wire):
    """192.0.2.77 comes to this host, goes, and comes back, without a break for the others."""
    wire.outside.ip(f"neigh replace 192.0.2.77 lladdr {wire.host.mac('v0')} dev v1")
    for _ in range(2):
        wire.host.ip("address add 192.0.2.77/32 dev v0")
        wait_for(lambda: is_recorded(watch, wire, "192.0.2.77"), "192.0.2.77 here")
        wire.host.ip("address del 192.0.2.77/32 dev v0")
        wait_for(lambda: not is_recorded(watch, wire, "192.0.2.77"), "192.0.2.77 elsewhere")
        assert is_recorded(watch, wire, HOST4)
    assert not re.search("could not be followed", watch.errors())
