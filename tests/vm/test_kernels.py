# SPDX-License-Identifier: Apache-2.0
"""The floor: Debian 11 and 12 with their own kernel, Python and bcc, emulated. Images are built once and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = pathlib.Path(os.environ.get("PACKETWATCH_TEST_CACHE", ROOT / "build")) / "vm"
VMRUN = HERE / "vmrun.sh"
PACKAGES = [line for line in (ROOT / "deps/debian.run").read_text().splitlines() if not line.startswith("#")]
PACKAGES += ["procps", "python3-pytest", "python3-pytest-timeout"]

#: Debian's release, what its kernel and its Python start with.
RELEASES = [("bullseye", "5.10.", "3.9."), ("bookworm", "6.1.", "3.11.")]

pytestmark = pytest.mark.timeout(1500)


def image(release):
    """Built when the recipe is new, by one at a time; what another recipe or a killed build left is removed."""
    recipe = hashlib.sha256(VMRUN.read_bytes() + " ".join(PACKAGES).encode()).hexdigest()[:12]
    image = CACHE / f"{release}-{recipe}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.with_suffix(".img").exists():
            for old in CACHE.glob(f"{release}-*"):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            subprocess.run([VMRUN, "make", image, release, *PACKAGES], check=True, stdin=subprocess.DEVNULL)
    return image


@pytest.fixture(scope="module", params=RELEASES, ids=[row[0] for row in RELEASES])
def guest(request, tmp_path_factory):
    """(release row, all that the payload printed in one boot)."""
    payload = tmp_path_factory.mktemp("payload")
    for name in ("packetwatch", "bpf", "tests"):
        shutil.copytree(ROOT / name, payload / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", payload)
    command = [VMRUN, "run", image(request.param[0]), payload, "python3 -u tests/vm/payload.py"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"no guest: {done.stdout}{done.stderr}"
    print(done.stdout)
    return request.param, done.stdout


def test_the_guest_is_what_it_should_be(guest):
    (_, kernel, python), output = guest
    found = re.search(r"^kernel (\S+) python (\S+)", output, re.M)
    assert found and found[1].startswith(kernel) and found[2].startswith(python), output


def test_the_kernel_half_loads(guest):
    assert "\nload: ok\n" in guest[1], guest[1]


def test_the_monitor_stops_a_scan(guest):
    assert "\nrun: ok\n" in guest[1], guest[1]


def test_every_row_of_the_netlink_tests_runs(guest):
    """Also those that a host with a smaller kernel tells as xfailed: here nothing may be told but that it passed."""
    output = guest[1]
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/netns/test_netlink.py"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"^tests/netns/test_netlink\.py::.*", collected, re.M)
    assert re.findall(r"^PASSED (.*)", output, re.M) == rows, output
    assert re.search(rf"^{len(rows)} passed in .*\nnetlink: ok$", output, re.M), output
