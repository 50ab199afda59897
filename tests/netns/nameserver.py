# SPDX-License-Identifier: Apache-2.0
"""A name server of the test's own: it answers, keeps silent, or sends something else."""

from __future__ import annotations

import socket
import struct
import threading

A, AAAA = 1, 28
_HEADER = struct.Struct("!6H")
_RESPONSE, _NXDOMAIN = 0x8180, 0x8183


class NameServer:
    """Listens on port 53 of an address in a namespace, for as long as the ``with`` lasts."""

    def __init__(self, ns, address):
        self.names = {}  #: name -> addresses, of both families
        self.silent = False
        self.sends = None  #: these bytes after the id, instead of an answer
        self.asked = []
        with ns.enter():
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._socket.bind((address, 53))
        self._socket.settimeout(0.1)
        self._ending = threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _serve(self):
        while not self._ending.is_set():
            try:
                query, client = self._socket.recvfrom(4096)
            except socket.timeout:
                continue
            name, kind, question = parsed(query)
            self.asked.append(name)
            if not self.silent:
                body = self.sends if self.sends is not None else self._answer(name, kind, question)
                self._socket.sendto(query[:2] + body, client)

    def _answer(self, name, kind, question):
        if name not in self.names:
            return _HEADER.pack(0, _NXDOMAIN, 1, 0, 0, 0)[2:] + question
        family = {A: socket.AF_INET, AAAA: socket.AF_INET6}.get(kind)
        found = [each for each in self.names[name] if (":" in each) == (kind == AAAA)] if family else []
        data = [socket.inet_pton(family, each) for each in found]
        records = b"".join(struct.pack("!3HLH", 0xC00C, kind, 1, 1, len(each)) + each for each in data)
        return _HEADER.pack(0, _RESPONSE, 1, len(data), 0, 0)[2:] + question + records


def parsed(query):
    """Name, type and the bytes of the question."""
    labels, at = [], _HEADER.size
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return ".".join(labels), kind, query[_HEADER.size : at + 5]
