# SPDX-License-Identifier: Apache-2.0
"""The loader: what it hands over, with which rights it can, what it says when it cannot; links by descriptor."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import pytest

from packetwatch import libbpf, loader, privileges, program
from packetwatch.kernel import Kernel
from tests.bpf import harness
from tests.netns.conftest import Namespace, connect
from tests.netns.resident import wait_for

SMALL = program.Parameters(trackers=4096, blocks=1024, ring_bytes=1 << 16, headers="auto")
RIGHTS = "+bpf,+net_admin,+perfmon"

#: Runs as the service's user: loads, judges one SYN, attaches.
SERVICE = """
import os, socket, sys
sys.path.insert(0, sys.argv[1])
from packetwatch import libbpf
from tests.bpf import harness, traffic

assert os.getuid() != 0
rights = [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd"))]
assert rights == [f"{1 << 12 | 1 << 38 | 1 << 39:016x}"] * 2, rights
rig = traffic.prepare(harness.Rig(harness.load_product()))
assert traffic.send(rig, traffic.A, 80, 81, 82, 83) == [2, 2, 2, 1]
assert traffic.ports(rig.records()) == [80, 81, 82] and len(rig.scans()) == 1
rig.check_ledger()
ifindex = socket.if_nametoindex("far")
for flags in (libbpf.XDP_FLAGS_DRV_MODE, libbpf.XDP_FLAGS_SKB_MODE):
    link = libbpf.link_xdp(rig.kernel.prog, ifindex, flags)
    libbpf.link_update(link, rig.kernel.prog)
    assert libbpf.link_info(link).ifindex == ifindex
    os.close(link)
print("done")
"""


@pytest.fixture
def veth():
    """(namespace, ifindex) of a veth's end `far`, whose other end is in a namespace of its own."""
    near, far = Namespace(), Namespace()
    try:
        near.add()
        far.add()
        connect(near, "near", far, "far")
        with far.enter():
            yield far, socket.if_nametoindex("far")
    finally:
        near.remove()
        far.remove()


@pytest.fixture(scope="module")
def readable():
    """A copy of the tree that any user can read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        ignore = shutil.ignore_patterns("__pycache__", "machine", "vm", "unit")
        for name in ("packetwatch", "bpf", "tests"):
            shutil.copytree(harness.ROOT / name, pathlib.Path(folder) / name, ignore=ignore)
        yield folder


def as_nobody(namespace, rights, *command, **options):
    drop = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs"]
    caps = [f"--{kind}=-all{',' + rights if rights else ''}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return namespace.run([*drop, *caps, *command], check=False, **options)


def test_it_works_with_exactly_the_services_rights(veth, readable):
    result = as_nobody(veth[0], RIGHTS, sys.executable, "-c", SERVICE, readable, cwd=readable)
    assert result.stdout == "done\n", result.stderr


def test_the_tier_passes_with_exactly_the_services_rights(veth, readable):
    """Frames and detection; the rest of the tier makes namespaces, which is root's."""
    tests = ["tests/bpf/test_frames.py", "tests/bpf/test_detection.py"]
    pytest_options = ["-q", "-p", "no:cacheprovider", "--rootdir", readable]
    run = as_nobody(veth[0], RIGHTS, sys.executable, "-B", "-m", "pytest", *pytest_options, *tests, cwd=readable)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^[1-9]\d{2,} passed", run.stdout, re.M), run.stdout


def test_without_rights_the_error_says_what_is_missing(veth, readable):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from tests.bpf import harness; harness.load_product()"
    result = as_nobody(veth[0], "", sys.executable, "-c", code, readable, cwd=readable)
    assert "LoadError: the kernel refuses bpf(2): not permitted" in result.stderr


def test_the_verifier_has_room_left(rig):
    """With this host's compiler; tests/package asks it of the others."""
    about = pathlib.Path(f"/proc/self/fdinfo/{rig.kernel.prog}").read_text()
    assert int(re.search(r"^verified_insns:\s(\d+)$", about, re.M)[1]) in harness.VERIFIED


def test_a_program_comes_with_every_map_and_nothing_is_inherited():
    loaded = loader.load(SMALL)
    try:
        assert list(loaded.maps) == list(program.MAPS) and loaded.headers in ("uapi", "kernel")
        assert not any(os.get_inheritable(fd) for fd in (loaded.prog, *loaded.maps.values()))
    finally:
        Kernel(loaded.prog, loaded.maps, SMALL).close()


def has_process(pid):
    return pathlib.Path(f"/proc/{pid}").exists()


def test_a_loader_that_nobody_needs_ends():
    child = loader.Loader()
    assert has_process(child._child.pid)
    child.close()
    assert not has_process(child._child.pid)


def test_a_loader_whose_parent_dies_ends():
    code = (
        "import os, sys; from packetwatch import loader; child = loader.Loader(); "
        "print(child._child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=harness.ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.SIGKILL
    wait_for(lambda: not has_process(int(done.stdout)), "its end")


def test_a_loader_that_dies_is_told_of():
    child = loader.Loader()
    os.kill(child._child.pid, signal.SIGSEGV)
    with pytest.raises(loader.LoadError, match="killed by signal 11"):
        child.load(SMALL)


def test_root_compiles_as_nobody():
    loaded = loader.load(SMALL)
    try:
        show = ["bpftool", "-j", "prog", "show", "id", str(libbpf.prog_id(loaded.prog))]
        assert os.getuid() == 0 and json.loads(subprocess.check_output(show))["uid"] == privileges.NOBODY
    finally:
        Kernel(loaded.prog, loaded.maps, SMALL).close()


def test_who_cannot_become_nobody_compiles_all_the_same():
    """In a user namespace, or with a bounding set that lacks CAP_SETUID."""
    code = "from tests.bpf import harness; print(harness.load_product().prog)"
    bounds = "--bounding-set=-all,+bpf,+net_admin,+perfmon,+sys_resource"
    command = ["setpriv", bounds, sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=harness.ROOT)
    assert result.stdout.strip().isdigit(), result.stderr


def test_what_does_not_compile_is_told_in_one_line(tmp_path):
    shutil.copytree(program.SOURCES, tmp_path / "bpf")
    with open(tmp_path / "bpf/packetwatch.c", "a") as text:
        text.write("int oops(void) { return nonsense; }\n")
    with pytest.raises(loader.LoadError) as fault:
        loader.load(SMALL, tmp_path / "bpf")
    assert "nonsense" in str(fault.value) and "\n" not in str(fault.value) and fault.value.hint


def test_the_digest_follows_sources_and_parameters(tmp_path):
    shutil.copytree(program.SOURCES, tmp_path / "bpf")
    before = SMALL.digest(tmp_path / "bpf")
    assert before == SMALL.digest() != SMALL._replace(blocks=2048).digest()
    with open(tmp_path / "bpf/packet.h", "a") as text:
        text.write("\n")
    assert SMALL.digest(tmp_path / "bpf") != before


def test_a_link_lasts_as_long_as_its_descriptor(veth, rig):
    namespace, ifindex = veth
    link = libbpf.link_xdp(rig.kernel.prog, ifindex, libbpf.XDP_FLAGS_DRV_MODE)
    before = libbpf.link_info(link)
    assert before == libbpf.LinkInfo(before.id, libbpf.prog_id(rig.kernel.prog), ifindex)
    assert "prog/xdp id" in namespace.ip("link show far")
    with pytest.raises(OSError):
        libbpf.link_xdp(rig.kernel.prog, ifindex, libbpf.XDP_FLAGS_DRV_MODE)
    os.close(link)
    assert "prog/xdp" not in namespace.ip("link show far")


def test_another_program_takes_over_a_link_that_stays_the_same(veth, rig, clocked):
    link = libbpf.link_xdp(rig.kernel.prog, veth[1], libbpf.XDP_FLAGS_DRV_MODE)
    try:
        before = libbpf.link_info(link)
        libbpf.link_update(link, clocked.kernel.prog)
        assert libbpf.link_info(link) == before._replace(prog_id=libbpf.prog_id(clocked.kernel.prog))
    finally:
        os.close(link)


def test_the_loader_is_not_started_by_hand():
    command = [sys.executable, "-m", "packetwatch.loader"]
    result = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and "not by hand" in result.stderr
