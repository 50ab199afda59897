# SPDX-License-Identifier: Apache-2.0
"""Packet captures (pcap, pcapng) as Ethernet frames with their times, read by libpcap. Judges nothing.

Source: pcap(3PCAP), and https://www.tcpdump.org/linktypes.html for what stands before the network header.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple, Optional

SECOND = 1_000_000_000
STDIN = "-"
#: Times that the kernel half can hold, with room for the end of a block: to the year 2262.
LEAST_NS, MOST_NS = 1 << 17, (1 << 63) - 1

_NANOSECONDS = 1  # PCAP_TSTAMP_PRECISION_NANO
_PAST_2038_NS = (1 << 32) * SECOND  # libpcap takes the seconds of pcap for signed
_MESSAGE_BYTES = 256  # PCAP_ERRBUF_SIZE
_HERE, _THERE, _EVERYBODY = bytes.fromhex("020000000001"), bytes.fromhex("020000000002"), b"\xff" * 6
_LOOPBACK = bytes(12)  # both MACs of a frame on a loopback device
_FROM_ELSEWHERE = _HERE + _THERE
_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_ARPHRD_LOOPBACK = b"\x03\x04"
_GROUP_PACKETS = (1, 2)  # broadcast, multicast

Unwrap = Callable[[bytes], bytes]


class CaptureError(Exception):
    """A capture that cannot be read, or not further; `hint` is the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


#: (ns since 1970, bytes on the wire, data from the Ethernet header on, which may be cut). A plain tuple, for speed.
Frame = tuple[int, int, bytes]


def is_loopback(data: bytes) -> bool:
    """Whether an Ethernet frame was seen on a loopback device: those have no MACs."""
    return data[:12] == _LOOPBACK


def _raw(data: bytes) -> bytes:
    return _FROM_ELSEWHERE + _ETHERTYPES.get(data[0] >> 4 if data else 0, b"\0\0") + data


def _null(data: bytes) -> bytes:
    """BSD loopback: four bytes of address family, in the order of whoever captured."""
    return _LOOPBACK + _ETHERTYPES.get(data[4] >> 4 if len(data) > 4 else 0, b"\0\0") + data[4:]


def _cooked(data: bytes) -> bytes:
    return _from_cooked(data[0:2], data[2:4], data[14:])


def _cooked2(data: bytes) -> bytes:
    return _from_cooked(b"\0" + data[10:11], data[8:10], data[0:2] + data[20:])


def _from_cooked(kind: bytes, hardware: bytes, rest: bytes) -> bytes:
    if hardware == _ARPHRD_LOOPBACK:
        return _LOOPBACK + rest
    group = int.from_bytes(kind, "big") in _GROUP_PACKETS
    return (_EVERYBODY if group else _HERE) + _THERE + rest


class _Link(NamedTuple):
    """What stands before the network header: its bytes, and how a frame with an Ethernet header comes of it."""

    size: int
    unwrap: Optional[Unwrap]


#: By libpcap's DLT number.
_LINKS = {
    0: _Link(4, _null),
    1: _Link(14, None),
    12: _Link(0, _raw),
    14: _Link(0, _raw),
    101: _Link(0, _raw),
    108: _Link(4, _null),
    113: _Link(16, _cooked),
    228: _Link(0, _raw),
    229: _Link(0, _raw),
    276: _Link(20, _cooked2),
}
_ETHERNET_BYTES = 14


class _Header(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long), ("size", ctypes.c_uint32), ("wire", ctypes.c_uint32)]


def _load() -> ctypes.CDLL:
    for name in ("libpcap.so.1", "libpcap.so.0.8"):
        try:
            library = ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
        library.pcap_fopen_offline_with_tstamp_precision.restype = ctypes.c_void_p
        library.pcap_geterr.restype = library.pcap_datalink_val_to_name.restype = ctypes.c_char_p
        return library
    raise CaptureError("libpcap.so not found", "install libpcap0.8 (Debian, Ubuntu) or libpcap (EL, Fedora)")


def check() -> None:
    """Raises CaptureError where libpcap is missing."""
    _load()


class Capture:
    """One file, opened; to be closed. `frames` reads it once."""

    def __init__(self, path: str) -> None:
        """path: of a file or pipe, or - for standard input. Raises CaptureError, OSError."""
        self.name = "standard input" if path == STDIN else path
        self.read = 0  #: frames so far
        self._pcap: Optional[ctypes.c_void_p] = None
        self._library = _load()
        self._open(path)

    def _open(self, path: str) -> None:
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.fdopen.restype = ctypes.c_void_p
        stream = ctypes.c_void_p(libc.fdopen(_descriptor(path), b"rb"))
        opened = self._library.pcap_fopen_offline_with_tstamp_precision(stream, _NANOSECONDS, message)
        if not opened:
            libc.fclose(stream)
            raise CaptureError(f"{self.name}: {_words(message.value)}", "it is to be a pcap or pcapng file")
        self._pcap = ctypes.c_void_p(opened)
        kind = self._library.pcap_datalink(self._pcap)
        link = _LINKS.get(kind)
        if link is None:
            name = self._library.pcap_datalink_val_to_name(kind)
            self.close()
            raise CaptureError(
                f"{self.name}: frames of the kind {name.decode() if name else kind} cannot be judged",
                "Ethernet, Linux cooked and raw IP can: capture on one interface, or on any",
            )
        self._link = link

    def frames(self) -> Iterator[Frame]:
        """In the order of the file. Raises CaptureError where it cannot be read further; all before it is good."""
        following, copy, unwrap = self._library.pcap_next_ex, ctypes.string_at, self._link.unwrap
        grown = _ETHERNET_BYTES - self._link.size if unwrap is not None else 0
        header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
        to_header, to_data = ctypes.byref(header), ctypes.byref(data)
        while True:
            found = following(self._pcap, to_header, to_data)
            if found != 1:
                break
            self.read += 1
            h = header.contents
            frame = copy(data, h.size)
            ns = h.s * SECOND + h.ns
            if not LEAST_NS <= ns <= MOST_NS:
                ns += _PAST_2038_NS if h.s < 0 else 0
                ns = min(max(ns, LEAST_NS), MOST_NS)
            yield ns, h.wire + grown, frame if unwrap is None else unwrap(frame)
        if found == -1:
            reason = _words(self._library.pcap_geterr(self._pcap))
            raise CaptureError(f"{self.name}: behind frame {self.read}: {reason}", _advice(reason))

    def close(self) -> None:
        if self._pcap is not None:
            self._library.pcap_close(self._pcap)
            self._pcap = None


def _descriptor(path: str) -> int:
    """Opened here, so that what is wrong with a path is told as everywhere else."""
    if path == STDIN:
        return os.dup(0)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CaptureError(f"{path}: a directory", "name files in it")
    return descriptor


def _words(message: bytes) -> str:
    return message.decode(errors="replace").strip() or "it cannot be read"


def _advice(reason: str) -> str:
    """libpcap takes a pcapng file of several interfaces only where those are of one kind."""
    if "different from" not in reason:
        return "what was before it is judged"
    return "tshark -r FILE -Y 'frame.interface_id == 0' -w FILE0 writes those of one interface to a file of their own"
