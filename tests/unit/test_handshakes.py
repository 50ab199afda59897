# SPDX-License-Identifier: Apache-2.0
"""Where the root cgroup is, as lines of mountinfo (proc(5)) tell."""

from __future__ import annotations

import pytest

from packetwatch.handshakes import find_root

OTHERS = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n24 22 0:22 / /proc rw - proc proc rw\n"
HYBRID = (
    "30 22 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "40 30 0:37 / /sys/fs/cgroup/unified rw shared:9 master:3 - cgroup2 cgroup2 rw\n"
)


@pytest.mark.parametrize(
    "mounts, path",
    [
        ("", None),
        (OTHERS, None),
        ("40 30 0:37 / /cgroup2 rw - tmpfs cgroup2 rw\n", None),
        ("35 22 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n", "/sys/fs/cgroup"),
        (HYBRID, "/sys/fs/cgroup/unified"),
        ("35 22 0:30 / /my\\040groups\\134x rw - cgroup2 none rw\n", "/my groups\\x"),
        ("35 22 0:30 /a.slice /a rw - cgroup2 none rw\n35 22 0:30 / /z rw - cgroup2 none rw\n", "/z"),
        ("35 22 0:30 / /z rw - cgroup2 none rw\n35 22 0:30 / /b rw - cgroup2 none rw\n", "/z"),
        ("35 22 0:30 /../.. /z rw - cgroup2 none rw\n", "/z"),
    ],
)
def test_the_root_cgroup_is_found(mounts, path):
    assert find_root(mounts) == path
    assert find_root(OTHERS + mounts) == path
