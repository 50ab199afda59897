# SPDX-License-Identifier: Apache-2.0
"""The host's files as a resident is to see them: folders of the test's in the place of /etc and /run."""

from __future__ import annotations

import shutil

WITH_FILES = 'mount --bind "$0/etc" /etc && mount --bind "$0/run" /run && exec "$@"'
NEEDED = ("ld.so.cache", "passwd", "group")


class Files:
    """Folders for /etc and /run: what a process needs, and what the test writes."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("etc", "run"):
            (folder / name).mkdir(parents=True)
        for name in NEEDED:
            shutil.copy(f"/etc/{name}", folder / "etc")
        self.write("/etc/nsswitch.conf", "hosts: files dns\n")
        self.write("/etc/hosts", "127.0.0.1 localhost\n")

    def write(self, path, text):
        file = self.folder / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    @property
    def prefix(self):
        """What runs a command with them."""
        return ["unshare", "-m", "sh", "-c", WITH_FILES, str(self.folder)]


def listed(watch):
    """Those with a detail."""
    entries = watch.answer("allow", "list")
    return {(each["prefix"], each["reason"], each["detail"]) for each in entries if "detail" in each}
