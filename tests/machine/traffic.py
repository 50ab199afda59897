# SPDX-License-Identifier: Apache-2.0
"""Run as the peer: traffic.py ADDRESS PORT SOURCE… connects from every source, again and again, until its input ends.

Then it prints JSON: by source how many SYNs were sent, and how many connections were answered or stayed silent.
"""

import collections
import errno
import json
import select
import socket
import struct
import sys
import time

PAUSE_S = 0.004
PATIENCE_S = 0.5  # below the second after which the kernel sends a SYN again
RESET = struct.pack("ii", 1, 0)


def sent_again():
    with open("/proc/net/netstat") as file:
        names, values = [line.split() for line in file if line.startswith("TcpExt:")]
    return int(dict(zip(names, values))["TCPSynRetrans"])


def begin(source, to, port):
    link = socket.socket()
    link.setblocking(False)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)  # no TIME_WAIT that uses up the ports
    link.bind((source, 0))
    error = link.connect_ex((to, port))
    assert error == errno.EINPROGRESS, errno.errorcode[error]
    return link


def is_answered(link):
    return bool(select.select([], [link], [], 0)[1])


def main(to, port, *sources):
    rows = {source: {"sent": 0, "answered": 0, "silent": 0} for source in sources}
    waiting = collections.deque()
    before = sent_again()

    def judge(until):
        while waiting and waiting[0][0] <= until:
            _, source, link = waiting.popleft()
            rows[source]["answered" if is_answered(link) else "silent"] += 1
            link.close()

    print("running", flush=True)
    while not select.select([sys.stdin], [], [], PAUSE_S)[0]:
        for source in sources:
            waiting.append((time.monotonic() + PATIENCE_S, source, begin(source, to, int(port))))
            rows[source]["sent"] += 1
        judge(time.monotonic())
    time.sleep(PATIENCE_S)
    judge(float("inf"))
    rows["again"] = {"sent": sent_again() - before, "answered": 0, "silent": 0}
    print(json.dumps(rows))


main(*sys.argv[1:])
