# SPDX-License-Identifier: Apache-2.0
"""The control socket met by real users and groups; needs root to become them, and no namespace."""

from __future__ import annotations

import os
import selectors
import subprocess
import tempfile
import threading

import pytest

from packetwatch.control import Server

SOMEBODY, THEIR_GROUP, CHANGERS, READERS = 64001, 64002, 64003, 64004  # no such names need to exist
ASK = """
import json, socket, sys
with socket.socket(socket.AF_UNIX) as link:
    link.connect(sys.argv[1])
    try:
        link.sendall(sys.argv[2].encode() + b"\\n")
    except BrokenPipeError:
        pass
    print(json.loads(link.makefile().readline()).get("exit", 0))
"""


@pytest.fixture
def path():
    directory = tempfile.TemporaryDirectory()
    os.chmod(directory.name, 0o755)  # others may enter it
    selector = selectors.DefaultSelector()
    server = Server(f"{directory.name}/s", lambda request: None)
    server._groups = {CHANGERS}, {READERS}
    server.register(selector)
    stop = threading.Event()

    def turn():
        while not stop.is_set():
            for key, events in selector.select(0.05):
                key.data(events)

    thread = threading.Thread(target=turn)
    thread.start()
    yield server.path
    stop.set()
    thread.join()
    server.close()
    directory.cleanup()


def status(path, request, user, group, groups):
    command = ["/usr/bin/python3", "-I", "-c", ASK, path, request]
    done = subprocess.run(
        command, user=user, group=group, extra_groups=groups, check=True, capture_output=True, text=True, timeout=30
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    "user, group, groups, reads, changes",
    [
        (0, 0, [], 0, 0),
        (SOMEBODY, THEIR_GROUP, [], 4, 4),
        (SOMEBODY, THEIR_GROUP, [THEIR_GROUP + 7, 0], 4, 4),
        (SOMEBODY, READERS, [], 0, 4),
        (SOMEBODY, THEIR_GROUP, [THEIR_GROUP + 7, READERS], 0, 4),
        (SOMEBODY, CHANGERS, [], 0, 0),
        (SOMEBODY, THEIR_GROUP, [READERS, CHANGERS], 0, 0),
    ],
)
def test_the_kernel_says_who_asks(path, user, group, groups, reads, changes):
    assert status(path, '{"do": "status"}', user, group, groups) == reads
    assert status(path, '{"do": "reload"}', user, group, groups) == changes
