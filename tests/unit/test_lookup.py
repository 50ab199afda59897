# SPDX-License-Identifier: Apache-2.0
"""The files of a host, below a folder of the test's, and the thread that looks up what they name."""

from __future__ import annotations

import os
import select
import socket
import threading
import time

import pytest

from packetwatch import address, lookup, privileges, rules, serverfiles, servers
from packetwatch.address import parse
from packetwatch.servers import Named

RESOLVER, TIME, PUPPET = rules.RESOLVER, rules.TIME_SERVER, rules.PUPPET_SERVER
ALL = frozenset(servers.SWITCHES)
NO_HOST = "the answer holds no address of a host"


class Host:
    """A root folder, and what names stand for there: a list of addresses, an error, or an event to wait for."""

    def __init__(self, root):
        self.root, self.names, self.asked, self.capabilities = root, {}, [], set()

    def write(self, path, text):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def read(self, reasons=ALL):
        return serverfiles.read(frozenset(reasons), str(self.root))

    def named(self, *reasons):
        return [(each.host, each.file) for each in self.read(reasons or ALL).named]

    def addresses(self, name):
        self.asked.append(name)
        self.capabilities |= privileges.effective()
        found = self.names.get(name, socket.gaierror(-2, "Name or service not known"))
        if isinstance(found, threading.Event):
            found.wait(10)
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        if isinstance(found, OSError):
            raise found
        return found


@pytest.fixture
def host(tmp_path, monkeypatch):
    made = Host(tmp_path)
    monkeypatch.setattr(lookup, "addresses", made.addresses)
    return made


@pytest.fixture
def started(host):
    """Starts look-ups: ``started(answers)``."""
    made = []

    def start(answers=(), reasons=ALL):
        one = lookup.Lookup(dict(answers), str(host.root))
        one.want(reasons)
        one.start(5)
        made.append(one)
        return one

    yield start
    for one in made:
        one.close()
        one._thread.join(5)
        assert not one._thread.is_alive()


def wait_for(find, timeout_s=5):
    end = time.monotonic() + timeout_s
    while not find():
        assert time.monotonic() < end
        time.sleep(0.01)


def found(one):
    return {(address.text(each.address), each.reason, each.detail) for each in one.servers()}


# files


def test_no_files_at_all(host):
    reading = host.read()
    assert (reading.named, reading.unread) == ((), ())
    assert not serverfiles.changed(reading, str(host.root))


def test_resolvers(host):
    host.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
    host.write("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.54\n")
    assert host.named() == [("192.0.2.53", "/etc/resolv.conf")]


def test_the_real_resolvers_behind_a_stub(host):
    real = host.write("/run/systemd/resolve/resolv.conf", "nameserver 192.0.2.54\nnameserver 2001:db8::53\n")
    host.write("/run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
    (host.root / "etc").mkdir()
    (host.root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    path = "/run/systemd/resolve/resolv.conf"
    assert host.named()[:2] == [("192.0.2.54", path), ("2001:db8::53", path)]
    assert servers.servers(host.read().named, {}) == {
        servers.Server(parse(text), RESOLVER, path) for text in ("192.0.2.54", "2001:db8::53")
    }
    reading = host.read()
    real.write_text("nameserver 192.0.2.55\n")
    assert serverfiles.changed(reading, str(host.root))


def test_timesyncd_its_drop_ins_and_networkd(host):
    host.write("/usr/lib/systemd/timesyncd.conf", "[Time]\nNTP=never\n")
    host.write("/etc/systemd/timesyncd.conf", "[Time]\nNTP=main\nFallbackNTP=fallback\n")
    host.write("/usr/lib/systemd/timesyncd.conf.d/10-vendor.conf", "[Time]\nNTP=vendor\n")
    host.write("/etc/systemd/timesyncd.conf.d/10-vendor.conf", "[Time]\nNTP=ours\n")
    host.write("/run/systemd/timesyncd.conf.d/20-run.conf", "[Time]\nNTP=run\n")
    host.write("/etc/systemd/timesyncd.conf.d/.hidden.conf", "[Time]\nNTP=hidden\n")
    host.write("/etc/systemd/timesyncd.conf.d/30.conf~", "[Time]\nNTP=backup\n")
    host.write("/run/systemd/netif/state", "NTP=192.0.2.123\n")
    assert [name for name, _ in host.named(TIME)] == ["main", "ours", "run", "fallback", "192.0.2.123"]


@pytest.mark.parametrize("main", ["/etc/chrony/chrony.conf", "/etc/chrony.conf"])
def test_chrony_and_all_it_includes(host, main):
    text = "pool p\nconfdir /etc/chrony/conf.d\nsourcedir /run/chrony-dhcp /gone\ninclude /etc/chrony.d/*.cfg\n"
    host.write(main, text + "include x\n")
    host.write("/etc/chrony/conf.d/b.conf", f"server b\ninclude {main}\n")
    host.write("/etc/chrony/conf.d/a.conf", "server a\nserver 192.0.2.9\n")
    host.write("/etc/chrony/conf.d/c.sources", "server never\n")
    host.write("/run/chrony-dhcp/eth0.sources", "server dhcp iburst\n")
    host.write("/etc/chrony.d/more.cfg", "peer more\n")
    assert host.named(TIME) == [
        ("p", main), ("more", "/etc/chrony.d/more.cfg"), ("a", "/etc/chrony/conf.d/a.conf"),
        ("192.0.2.9", "/etc/chrony/conf.d/a.conf"), ("b", "/etc/chrony/conf.d/b.conf"),
        ("dhcp", "/run/chrony-dhcp/eth0.sources"),
    ]


def test_ntpd_and_ntpsec(host):
    host.write("/etc/ntp.conf", 'server a\nincludefile "/etc/ntp/more"\n')
    host.write("/etc/ntp/more", "pool more\nincludefile /etc/ntp.conf\n")
    host.write("/etc/ntpsec/ntp.conf", "pool b\n")
    host.write("/etc/ntpsec/ntp.d/1.conf", "server -4 c\n")
    host.write("/run/ntpsec/ntp.conf.dhcp", "server 192.0.2.9\n")
    assert {name for name, _ in host.named(TIME)} == {"a", "more", "b", "c", "192.0.2.9"}


@pytest.mark.parametrize("path", ["/etc/puppetlabs/puppet/puppet.conf", "/etc/puppet/puppet.conf"])
@pytest.mark.parametrize("agent", ["/opt/puppetlabs/bin/puppet", "/usr/bin/puppet", None])
def test_puppet(host, path, agent):
    if agent:
        host.write(agent, "")
    assert host.named(PUPPET) == []  # without its settings it is not used
    host.write(path, "[main]\nssldir = /x\n")
    assert host.named(PUPPET) == ([("puppet", path)] if agent else [])
    host.write(path, "[agent]\nserver = p.example.org\n")
    assert host.named(PUPPET) == [("p.example.org", path)]


def test_a_reason_that_is_off_reads_nothing(host):
    host.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
    host.write("/etc/ntp.conf", "server a\n")
    assert host.named(PUPPET) == []
    assert serverfiles.read(frozenset(), str(host.root)).named == ()


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "loop", "dangling"])
def test_what_is_no_file_gives_nothing_and_does_not_hang(host, kind):
    path = host.root / "etc/resolv.conf"
    path.parent.mkdir()
    {
        "pipe": lambda: os.mkfifo(path), "directory": path.mkdir, "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path), "dangling": lambda: path.symlink_to("/nowhere"),
    }[kind]()
    assert host.named() == []


def test_a_file_is_read_up_to_a_size_and_no_name_is_cut(host):
    host.write("/etc/ntp.conf", "server example.org # 4\n" * 100_000)
    names = {name for name, _ in host.named(TIME)}
    assert names == {"example.org"}


def test_only_so_many_files_are_read(host):
    host.write("/etc/chrony.conf", "".join(f"confdir /d{number}\n" for number in range(1000)))
    for number in range(200):
        host.write(f"/d{number}/x.conf", f"server s{number}\nconfdir /d{number}\n")
    host.write("/etc/puppet/puppet.conf", "server = puppet\n")
    reading = host.read()
    assert len(reading.named) < 64 and len(reading.stamps) < 200
    assert Named("puppet", PUPPET, "/etc/puppet/puppet.conf") in reading.named


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\0server a", b"include /\0\nconfdir /\0\nsourcedir \0", b"include /" + b"a/" * 500, b"\0" * 70_000,
        "include /bücher/*.conf\nconfdir /ä".encode(), b"include /etc/*\nconfdir /etc /proc /dev /sys",
    ],
)
def test_hostile_files(host, text):
    for path in ("/etc/chrony.conf", "/etc/ntp.conf", "/etc/resolv.conf", "/etc/puppet/puppet.conf"):
        host.write(path, text)
    host.write("/etc/systemd/timesyncd.conf", text)
    assert servers.servers(host.read().named, {}) == frozenset()


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.write("/etc/chrony.conf", "server b\n"),
        lambda host: host.write("/etc/chrony/conf.d/new.conf", ""),
        lambda host: host.write("/etc/puppet/puppet.conf", ""),
        lambda host: host.write("/etc/hosts", "192.0.2.1 a\n"),
        lambda host: host.write("/usr/bin/puppet", ""),
        lambda host: (host.root / "etc/chrony.conf").unlink(),
        lambda host: os.replace(host.write("/etc/x", "server a\n"), host.root / "etc/chrony.conf"),
    ],
)
def test_a_change_is_seen(host, change):
    host.write("/etc/chrony.conf", "server a\nconfdir /etc/chrony/conf.d\n")
    (host.root / "etc/chrony/conf.d").mkdir(parents=True)
    reading = host.read()
    assert not serverfiles.changed(reading, str(host.root))
    change(host)
    assert serverfiles.changed(reading, str(host.root))


# look-ups


def test_what_stands_in_files_is_there_at_once_and_names_follow(host, started):
    host.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
    host.write("/etc/ntp.conf", "server ntp.example.org\n")
    host.names["ntp.example.org"] = ["192.0.2.9", "2001:db8::9"]
    one = started()
    assert ("192.0.2.53", RESOLVER, "/etc/resolv.conf") in found(one)
    wait_for(lambda: len(one.servers()) == 3)
    detail = "ntp.example.org, /etc/ntp.conf"
    assert {("192.0.2.9", TIME, detail), ("2001:db8::9", TIME, detail)} <= found(one)
    assert select.select([one.fileno()], [], [], 5)[0]
    one.drain()
    assert not select.select([one.fileno()], [], [], 0)[0]
    assert one.answers() == {"ntp.example.org": (parse("192.0.2.9"), parse("2001:db8::9"))}
    assert one.names() == [
        {"name": "ntp.example.org", "reason": TIME, "file": "/etc/ntp.conf", "addresses": ["192.0.2.9", "2001:db8::9"],
         "error": None}
    ]


def test_a_start_does_not_wait_for_a_name(host, started):
    host.write("/etc/ntp.conf", "server a\nserver b\n")
    host.names["a"] = released = threading.Event()
    begun = time.monotonic()
    one = started({"a": (parse("192.0.2.1"),), "b": (parse("192.0.2.2"),)})
    assert time.monotonic() - begun < 1
    assert len(one.servers()) == 2  # as they were known
    wait_for(lambda: host.asked == ["a"])
    begun = time.monotonic()
    one.close()
    assert time.monotonic() - begun < 0.1
    released.set()


def test_the_thread_holds_no_capability(host, started):
    before = privileges.effective()
    host.write("/etc/ntp.conf", "server a\n")
    started()
    wait_for(lambda: host.asked)
    assert privileges.effective() == before  # here they are as before
    assert host.capabilities == set()


@pytest.mark.parametrize(
    "answer, error",
    [
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (socket.gaierror(-3, "Temporary failure in name resolution"), "Temporary failure in name resolution"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (["0.0.0.0"], NO_HOST),
        (["::", "224.0.0.1", "ff02::1", "::ffff:198.51.100.1", "255.255.255.255"], NO_HOST),
        (["127.0.0.1", "::1"], None),  # that is this host
        ([], None),
    ],
)
def test_the_last_good_answer_stays(host, started, answer, error):
    host.write("/etc/ntp.conf", "server a\n")
    host.names["a"] = ["192.0.2.1"]
    one = started()
    wait_for(lambda: one.answers())
    host.names["a"] = answer
    one.want(ALL, again=True)
    wait_for(lambda: len(host.asked) == 2 and one.names()[0]["error"] == error)
    assert found(one) == {("192.0.2.1", TIME, "a, /etc/ntp.conf")}


def test_another_answer_takes_its_place(host, started):
    host.write("/etc/ntp.conf", "server a\n")
    host.names["a"] = ["192.0.2.1", "127.0.0.1", "::ffff:192.0.2.3"]
    one = started()
    wait_for(lambda: {each for each, _, _ in found(one)} == {"192.0.2.1"})
    host.names["a"] = ["192.0.2.2"]
    one.want(ALL, again=True)
    wait_for(lambda: {each for each, _, _ in found(one)} == {"192.0.2.2"})


def test_a_file_that_changes_is_read_and_names_are_looked_up_again(host, started, monkeypatch):
    monkeypatch.setattr(lookup, "LOOK_EVERY_S", 0.05)
    host.write("/etc/puppet/puppet.conf", "server = a\n")
    host.names.update(a=["192.0.2.1"], b=["192.0.2.2"])
    one = started()
    wait_for(lambda: {each for each, _, _ in found(one)} == {"192.0.2.1"})
    time.sleep(0.3)
    assert host.asked == ["a"]  # a look at the files asks nobody
    host.write("/etc/puppet/puppet.conf", "server_list = a, b\n")
    wait_for(lambda: {each for each, _, _ in found(one)} == {"192.0.2.1", "192.0.2.2"})
    host.write("/etc/puppet/puppet.conf", "")
    wait_for(lambda: not one.servers())
    host.names.clear()
    host.write("/etc/puppet/puppet.conf", "server = a # is back\n")  # as an editor may have emptied it for a moment
    wait_for(lambda: {each for each, _, _ in found(one)} == {"192.0.2.1"})


def test_good_names_are_looked_up_in_time_and_bad_ones_sooner_and_ever_less(host, monkeypatch):
    host.write("/etc/ntp.conf", "server good\nserver bad\n")
    host.names["good"] = ["192.0.2.1"]
    one = lookup.Lookup({}, str(host.root))
    one.want(ALL)
    asked_at = {"good": [], "bad": []}
    for now in range(0, 1210, 10):
        host.asked.clear()
        monkeypatch.setattr(lookup.time, "monotonic", lambda: 1000 + now)
        one._turn()
        for name in host.asked:
            asked_at[name].append(now)
    assert asked_at == {"good": [0, 300, 600, 900, 1200], "bad": [0, 30, 90, 210, 450, 750, 1050]}


def test_reasons_are_switched_on_and_off(host, started):
    host.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
    host.write("/etc/ntp.conf", "server a\n")
    host.names["a"] = ["192.0.2.1"]
    one = started(reasons=frozenset())
    assert one.servers() == frozenset() and host.asked == []
    one.want(frozenset({RESOLVER}))
    wait_for(lambda: {reason for _, reason, _ in found(one)} == {RESOLVER})
    assert host.asked == []
    one.want(ALL)
    wait_for(lambda: {reason for _, reason, _ in found(one)} == {RESOLVER, TIME})
    one.want(frozenset())
    wait_for(lambda: not one.servers())


def test_a_file_that_may_not_be_read_is_told_once(host, started, monkeypatch):
    host.write("/etc/puppet/puppet.conf", "server = a\n")
    real = os.open

    def refuse(path, *rest, **options):
        if str(path).endswith("/etc/puppet/puppet.conf"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest, **options)

    monkeypatch.setattr(serverfiles.os, "open", refuse)
    one = started()
    assert one.news() == [
        "allow.puppet_server: /etc/puppet/puppet.conf cannot be read: Permission denied; make it readable, or allow"
        " by hand whom it names"
    ]
    one.want(frozenset({PUPPET}), again=True)
    one.want(ALL, again=True)
    wait_for(lambda: not one._again)
    assert one.news() == [] and one.servers() == frozenset()


def test_many_names_are_bounded(host, started):
    names = [f"n{number}" for number in range(100)]
    host.write("/etc/ntp.conf", "".join(f"server {name}\n" for name in names))
    host.names.update({name: [f"198.51.{number}.{n}" for n in range(1, 100)] for number, name in enumerate(names)})
    one = started()
    wait_for(lambda: len(set(host.asked)) == servers.NAMES_MAX)
    wait_for(lambda: len(one.servers()) == servers.ADDRESSES_MAX)
    assert len(one.answers()) == servers.NAMES_MAX


def test_localhost_is_looked_up_for_real():
    assert set(lookup.addresses("localhost")) <= {"127.0.0.1", "::1"}
    with pytest.raises(OSError):
        lookup.addresses("name.invalid")
