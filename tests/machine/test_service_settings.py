# SPDX-License-Identifier: Apache-2.0
"""Settings under the unit: reloads good and bad, and each setting that a line of hardening could defeat."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess

import pytest

from tests.machine.machine import ADDRESS, ADDRESS6, PEER, wait_for
from tests.machine.service import CONFIG, SCANNER

FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"


# reload


def test_a_good_reload_is_in_force_when_it_returns(service):
    service.start()
    pid, link, loaded = service.pid, service.link(), service.metrics()[SUCCESS_TIME]
    service.configure("[scan]\nports = 5\n[packetwatch]\nmode = observe\n[metrics]\nlisten = 127.0.0.1:9774\n")
    assert service.systemctl("reload") == 0
    assert (service.pid, service.link()) == (pid, link)
    assert service.text == "observe, watching host0 (native)"
    assert service.status()["config"]["ok"]
    metrics = service.metrics("http://127.0.0.1:9774/metrics")
    assert metrics["packetwatch_config_last_reload_successful"] == 1
    assert metrics[SUCCESS_TIME] > loaded
    assert metrics['packetwatch_mode{mode="observe"}'] == 1
    service.configure("[scan]\nports = 5\n")
    service.systemctl("reload")
    with service.machine.peer_address(SCANNER):
        assert service.machine.connect_all(range(81, 86), SCANNER) == ["refused"] * 5
        assert service.machine.connect(86, SCANNER, timeout_s=0.4) == "dropped"


SUCCESS_TIME = "packetwatch_config_last_reload_success_timestamp_seconds"


@pytest.mark.parametrize(
    ("text", "fault"),
    (
        ("[scan]\nports = many\nwindow = 9\n", f"{CONFIG}:3: scan.window: "),
        ("[metrics]\nlisten = 127.0.0.1:80\n[scan]\nports = 5\n", "metrics address 127.0.0.1:80: "),
        ("[log]\nfile = /etc/packetwatch.log\n[scan]\nports = 5\n", "log.file /etc/packetwatch.log: "),
    ),
)
def test_a_bad_reload_fails_and_changes_nothing(service, text, fault):
    service.start().scan()
    pid, before = service.pid, service.metrics()
    service.configure(text)
    assert service.systemctl("reload", check=False) != 0
    assert service.is_active() and service.pid == pid
    assert fault in service.told()
    assert service.text == "enforce, watching host0 (native); the last reload failed"
    config = service.status()["config"]
    assert not config["ok"] and config["error"].startswith("the last reload failed: ")
    after = service.metrics()
    assert (before[SUCCESSFUL], after[SUCCESSFUL]) == (1, 0)
    assert after[SUCCESS_TIME] == before[SUCCESS_TIME]
    service.scan("192.0.2.78")  # three ports are a scan as before
    assert service.blocked() == [SCANNER, "192.0.2.78"] or service.blocked() == ["192.0.2.78", SCANNER]


SUCCESSFUL = "packetwatch_config_last_reload_successful"


def test_a_hangup_reloads_as_well(service):
    service.start()
    service.configure("[packetwatch]\nmode = observe\n")
    service.kill("HUP")
    wait_for(lambda: service.text == "observe, watching host0 (native)", "the reload")
    service.configure("[packetwatch]\nmode = maybe\n")
    service.kill("HUP")
    wait_for(lambda: service.text.endswith("; the last reload failed"), "the bad reload")
    assert f"{CONFIG}:2: mode: " in service.told()
    assert service.is_active()


def test_what_needs_a_restart_is_said_and_then_done(service):
    service.start().scan()
    link_id, _ = service.link()
    service.configure("[table]\nblocks = 1024\n[ring]\nsize = 64M\n")
    service.systemctl("reload")
    assert service.status()["config"]["restart_needed"] == ["table.blocks", "ring.size"]
    assert service.status()["tables"]["blocks"]["capacity"] == 65536
    service.systemctl("restart")
    assert service.status()["config"]["restart_needed"] == []
    assert service.status()["tables"]["blocks"]["capacity"] == 1024
    assert service.link()[0] == link_id
    assert service.blocked() == [SCANNER]


# what hardening could defeat


def test_metrics_on_other_addresses(service):
    service.start(f"[metrics]\nlisten = 127.0.0.1:9773\nlisten = {ADDRESS}:9774\nlisten = [::]:9775\n")
    for url in (f"http://{ADDRESS}:9774/metrics", f"http://[{ADDRESS6}]:9775/metrics"):
        assert service.machine.peer(["/usr/bin/python3", "-c", FETCH, url]).stdout == "200\n"
    metrics = service.metrics()
    assert metrics["process_resident_memory_bytes"] > 1 << 20  # /proc is readable
    assert metrics["process_open_fds"] > 10


def test_log_file(service):
    path = "/var/log/packetwatch/records.json"
    service.start(f"[log]\nfile = {path}\n").scan()
    machine = service.machine
    assert machine.run(["stat", "-c", "%a %U %G", path]).stdout == "640 packetwatch adm\n"
    types = wait_for(lambda: [t for t in event_types(machine, path) if t != "start"], "the records")
    assert types == ["connection"] * 3 + ["scan", "block"]
    machine.run(["mv", path, f"{path}.1"])
    service.systemctl("reload")
    assert machine.run(["stat", "-c", "%a %U %G", path]).stdout == "640 packetwatch adm\n"
    machine.connect(81)
    wait_for(lambda: event_types(machine, path) == ["connection"], "a record in the new file")
    assert service.count("connection") == 4


def event_types(machine, path):
    return [json.loads(line)["event_type"] for line in machine.read(path).splitlines()]


def test_a_log_file_beyond_its_directories_needs_a_drop_in(service):
    """It says so at the start, and the way that the unit names works."""
    service.configure("[log]\nfile = /srv/packetwatch/records.json\n")
    machine = service.machine
    machine.run(["install", "-d", "-o", "packetwatch", "/srv/packetwatch"])
    assert service.systemctl("start", check=False) != 0
    assert "log.file /srv/packetwatch/records.json: Read-only file system" in service.told()
    service.systemctl("stop")
    service.drop_in("ReadWritePaths=/srv/packetwatch")
    service.start()
    wait_for(lambda: "start" in event_types(machine, "/srv/packetwatch/records.json"), "the first record")


def test_xdp_mode(service):
    service.start("[xdp]\nmode = generic\n[block]\nproof = none\n").scan()  # a challenge would be answered
    assert service.text == "enforce, watching host0 (generic)"
    assert not service.reaches(SCANNER)
    service.configure("[xdp]\nmode = native\n[block]\nproof = none\n")
    service.systemctl("reload")
    assert service.text == "enforce, watching host0 (native)"
    assert not service.reaches(SCANNER)


def test_headers_of_user_space(service):
    service.start("[loader]\nheaders = uapi\n").scan()
    assert not service.reaches(SCANNER)


@pytest.mark.parametrize("place", ("/usr/src/linux-headers-{}", "/lib/modules/{}/build"))
def test_headers_of_the_kernel(service, place):
    """No tree of this kernel is packaged for a machine; the stub tree in its place shows that the place is seen."""
    place = place.format(platform.release())
    machine = service.machine
    machine.run(["mkdir", "-p", place.rpartition("/")[0]])
    machine.run(["cp", "-r", "/usr/lib/packetwatch/bpf/headers", place])
    try:
        service.start("[loader]\nheaders = kernel\n").scan()
        assert not service.reaches(SCANNER)
    finally:
        machine.run(["rm", "-r", place])


def test_no_headers_of_the_kernel(service):
    service.configure("[loader]\nheaders = kernel\n")
    assert service.systemctl("start", check=False) != 0
    assert f"no headers: neither /usr/include/linux nor a header tree of the running kernel {platform.release()}" in (
        service.told()
    )


def test_socket_and_state_elsewhere(service):
    machine = service.machine
    machine.run(["install", "-d", "-o", "packetwatch", "/srv/state", "/srv/socket"])
    service.drop_in("ReadWritePaths=/srv/state /srv/socket")
    service.start("[packetwatch]\nsocket = /srv/socket/control\nstate = /srv/state\n").scan()
    assert service.status()["protecting"]  # the command has found the socket
    service.systemctl("stop")
    assert machine.run(["ls", "/srv/socket"]).stdout == ""
    assert sorted(machine.run(["ls", "/srv/state"]).stdout.split()) == ["last-good.json", "state.json"]
    service.configure("[packetwatch]\nsocket = /srv/socket/control\nstate = /srv/state\n[scan]\nports = many\n")
    service.start()  # the last good settings are found where the faulty ones say
    assert service.blocked() == [SCANNER]


def test_pin(service):
    """In a directory of a bpf file system that the user may enter: a kill is survived without systemd's store."""
    machine = service.machine
    pins = "/srv/bpf/packetwatch"
    machine.run(["mkdir", "-p", "/srv/bpf"])
    machine.run(["mount", "-t", "bpf", "-o", "mode=0755", "bpf", "/srv/bpf"])
    try:
        machine.run(["install", "-d", "-o", "packetwatch", "-m", "700", pins])
        service.drop_in(f"ReadWritePaths={pins}")
        service.start(f"[packetwatch]\npin = {pins}\n").scan()
        link, pid = service.link(), service.pid
        assert service.show("NFileDescriptorStore") == ["0"]
        service.kill()
        service.is_back(pid)
        assert service.link() == link
        assert not service.reaches(SCANNER)
        service.systemctl("stop")
        assert machine.run(["find", pins, "-type", "f"]).stdout == ""
    finally:
        service.systemctl("stop")
        machine.run(["umount", "/srv/bpf"])


def test_remote_hosts_of_sessions_are_allowed(service):
    machine, path = service.machine, "/run/systemd/sessions/9999"
    service.start()
    machine.write(path, "UID=0\nUSER=root\nACTIVE=1\nSTATE=active\nREMOTE=1\nREMOTE_HOST=192.0.2.90\n")
    try:
        entry = {"prefix": "192.0.2.90", "reason": "session"}
        wait_for(lambda: entry in service.ask("allow", "list"), "the session is seen")
        with machine.peer_address("192.0.2.90") as source:
            assert machine.connect_all(range(81, 86), source) == ["refused"] * 5
    finally:
        machine.run(["rm", path])
    wait_for(lambda: entry not in service.ask("allow", "list"), "its end is seen")


def test_servers_that_files_name_are_allowed(service):
    """In the unit's sandbox and as its user: files are read, names are looked up over the network, none delays it."""
    machine = service.machine
    machine.write("/etc/resolv.conf", f"nameserver {PEER}\n")
    machine.write("/etc/ntp.conf", "server ntp.example.org\nserver 192.0.2.92\n")
    machine.write("/etc/puppet/puppet.conf", "[main]\nserver = puppet.example.org\n", 0o600)
    with beside(machine, NAME_SERVER, "192.0.2.91"):
        try:
            service.start()
            wanted = {("192.0.2.91", "time server"), ("192.0.2.92", "time server"), (PEER, "resolver")}
            wait_for(lambda: wanted <= allowed(service), "the name is looked up")
            with machine.peer_address("192.0.2.91") as source:
                assert machine.connect_all(range(81, 86), source) == ["refused"] * 5
            assert service.told().count("/etc/puppet/puppet.conf cannot be read: Permission denied") == 1
            assert service.status()["problems"] == []
            machine.run(["chmod", "644", "/etc/puppet/puppet.conf"])
            service.systemctl("reload")
            wait_for(lambda: ("192.0.2.91", "Puppet server") in allowed(service), "puppet.conf is read")
            service.systemctl("restart")
            assert ("192.0.2.91", "Puppet server") in allowed(service)
        finally:
            machine.run(["rm", "-r", "/etc/ntp.conf", "/etc/puppet"])


def allowed(service):
    return {(each["prefix"], each["reason"]) for each in service.ask("allow", "list")}


@contextlib.contextmanager
def beside(machine, code, *arguments):
    """A program on the other side of the link, which says when it is there."""
    command = machine.beside(["/usr/bin/python3", "-c", code, *arguments])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"there\n"
            yield
        finally:
            process.kill()


#: Every name has this one address, over IPv4 and IPv6 asked for.
NAME_SERVER = """
import socket, sys
address = socket.inet_aton(sys.argv[1])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.bind(("", 53))
    print("there", flush=True)
    while True:
        query, client = link.recvfrom(512)
        end = query.index(b"\\0", 12) + 5
        found = query[end - 4 : end] == b"\\0\\1\\0\\1"
        record = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\1\\0\\4" + address if found else b""
        counts = b"\\0\\1\\0" + bytes([found]) + bytes(4)
        link.sendto(query[:2] + b"\\x81\\x80" + counts + query[12:end] + record, client)
"""


def test_environment_from_a_drop_in(service):
    """As the packages of the origin had it, and as ours has it."""
    service.drop_in("Environment=PW_PORTSCAN_PORT_THRESHOLD=4 PACKETWATCH_MODE=observe")
    service.start()
    assert service.status()["mode"] == "observe"
    with service.machine.peer_address(SCANNER):
        assert service.machine.connect_all(range(81, 85), SCANNER) == ["refused"] * 4
    assert service.records("scan", 1)[0]["PACKETWATCH_PORTS"] == "81,82,83,84"
    assert service.reaches(SCANNER)
