# SPDX-License-Identifier: Apache-2.0
"""The kernel half as each release's clang makes it, which decides whether it loads. Not for what it does."""

from __future__ import annotations

import re

import pytest

from tests.bpf.harness import VERIFIED


@pytest.mark.parametrize("booted", ["debian-12", "debian-13"], indirect=True)
def test_the_verifier_has_room_left(host, new):
    host.install(new)
    found = host.sh('cat "/proc/$(systemctl show -P MainPID packetwatch)"/fdinfo/* | grep verified_insns').stdout
    assert max(map(int, re.findall(r"\d+", found))) in VERIFIED, found  # that of the root cgroup has few
    print(found.strip(), "with", host.sh("dpkg-query -W -f '${Depends}' libbpfcc").stdout)
