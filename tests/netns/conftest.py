# SPDX-License-Identifier: Apache-2.0
"""Network namespaces that a test makes and that are gone after it, and pairs of interfaces between them."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import shlex
import subprocess

import pytest

NUMBER = itertools.count()
CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A network namespace named ``pw-<pid>-<n>``, with ``lo`` up."""

    def __init__(self):
        self.name = f"pw-{os.getpid()}-{next(NUMBER)}"

    def add(self):
        call("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        return self

    def run(self, command, **options):
        """Runs a command (a list) inside; returns the CompletedProcess, raises if it fails (check=False: not)."""
        return call("ip", "netns", "exec", self.name, *command, **options)

    def popen(self, command, **options):
        """Starts a command (a list) inside; whoever starts it ends it."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], **options)

    def ip(self, *words, **options):
        """``ip`` on this namespace; words may be one text: ``ns.ip("link set eth0 up")``. Returns what it prints."""
        parts = (part for word in words for part in str(word).split())
        return call("ip", "-n", self.name, *parts, **options).stdout

    def device(self, name, up=True):
        """An interface without a wire, to hold addresses: dummy, or ifb where the kernel has no dummy."""
        self.ip(f"link add name {name} type {'dummy' if kernel_makes('dummy') else 'ifb'}")
        if up:
            self.ip(f"link set {name} up")

    def mac(self, name):
        """The hardware address of an interface, as text."""
        return self.ip(f"-br link show {name}").split()[2]

    def sysctl(self, key, value):
        """Sets a net.* setting inside."""
        self.run(["sysctl", "-qw", f"{key}={value}"])

    @contextlib.contextmanager
    def enter(self):
        """The calling thread is inside for the time of the ``with``. Sockets opened there stay there."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as inside:
            setns(inside)
            try:
                yield self
            finally:
                setns(home)

    def remove(self):
        call("ip", "netns", "del", self.name, check=False)


def call(*command, check=True, **options):
    result = subprocess.run(command, **{"capture_output": True, "text": True, "timeout": 60, **options})
    if check and result.returncode:
        raise AssertionError(f"{shlex.join(command)}: status {result.returncode}: {result.stderr or result.stdout}")
    return result


def setns(file):
    if libc.setns(file.fileno(), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def connect(ns_a, name_a, ns_b, name_b, addresses_a=(), addresses_b=()):
    """A veth pair, both ends up. Addresses as ``192.0.2.1/24``; IPv6 ones work at once (nodad)."""
    ns_a.ip(f"link add name {name_a} type veth peer name {name_b} netns {ns_b.name}")
    for ns, name, addresses in ((ns_a, name_a, addresses_a), (ns_b, name_b, addresses_b)):
        for text in addresses:
            ns.ip(f"address add {text} dev {name} {'nodad' if ':' in text else ''}")
        ns.ip(f"link set {name} up")


#: How each kind of virtual device is made, where it takes more than its name; ``below`` exists.
OPTIONS = {
    "vlan": "link below type vlan id 5",
    "macvlan": "link below type macvlan",
    "macvtap": "link below type macvtap",
    "ipvlan": "link below type ipvlan",
    "vrf": "type vrf table 77",
}


@functools.lru_cache(maxsize=None)
def kernel_makes(kind):
    """Whether this kernel has a kind of virtual device: Debian's have all that are asked for here, small ones not."""
    ns = Namespace()
    try:
        ns.add()
        connect(ns, "below", ns, "other")
        options = OPTIONS.get(kind, f"type {kind}").split()
        result = call("ip", "-n", ns.name, "link", "add", "name", "probe", *options, check=False)
    finally:
        ns.remove()
    if result.returncode and "Unknown device type" not in result.stderr and "not supported" not in result.stderr:
        raise AssertionError(f"cannot make a {kind}: {result.stderr}")
    return not result.returncode


@pytest.fixture
def netns():
    """Makes namespaces: ``a, b = netns(), netns()``."""
    made = []

    def make():
        made.append(Namespace())
        return made[-1].add()

    yield make
    for ns in made:
        ns.remove()


@pytest.fixture
def veth():
    return connect


@pytest.fixture
def pins(tmp_path):
    """A folder below a bpf file system of the test's."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    call("mount", "-t", "bpf", "none", str(folder))
    yield folder / "pins"
    call("umount", str(folder))


@pytest.fixture(scope="module")
def wire():
    """One link with a watched side and an outside, for all tests of a module."""
    from . import traffic

    wire = traffic.Wire()
    try:
        yield wire.add()
    finally:
        wire.remove()


@pytest.fixture(scope="module")
def segment():
    """A watched host, a neighbour and an attacker on one bridge, for all tests of a module."""
    from .segment import Segment

    segment = Segment()
    try:
        yield segment.add()
    finally:
        segment.remove()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """As ``resident``, for all tests of a module."""
    yield from residents(tmp_path_factory.mktemp("run"))


@pytest.fixture
def resident(tmp_path):
    """Starts residents: ``resident(ns, "scan.ports = 2")``. At the end each must stop well, its ledger balanced."""
    yield from residents(tmp_path)


def residents(folder):
    from .resident import Resident

    with contextlib.ExitStack() as ends:
        number = itertools.count()

        def make(ns, settings="", *flags, start=True, **options):
            one = Resident(ns, folder / str(next(number)), settings, *flags, **options)
            ends.callback(finish, one)
            return one.start() if start else one

        yield make


def finish(resident):
    """Stops it; a traceback or a SYN without a fate is a fault of every test."""
    if not resident.started:
        return
    try:
        if resident.running:
            resident.ledger()
            assert resident.stop() == 0
    finally:
        resident.kill()
    assert "Traceback" not in resident.errors()
