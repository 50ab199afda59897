# SPDX-License-Identifier: Apache-2.0
"""Capabilities of this process, by capget(2) and capset(2): look, and give up for good."""

from __future__ import annotations

import contextlib
import ctypes
import os

NET_ADMIN, PERFMON, BPF = 12, 38, 39  # linux/capability.h
CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, SYS_ADMIN = 0, 1, 2, 21
#: For work after the start. The service has neither of the last two; run by hand as root, log.file is for the group adm
#: and the state directory may be the service's.
NEEDED = frozenset({BPF, NET_ADMIN, CHOWN, DAC_OVERRIDE})

#: For files that strangers have made: to load and run the kernel half, and to read what root may read.
READING = frozenset({BPF, NET_ADMIN, PERFMON, DAC_READ_SEARCH})

_VERSION_3 = 0x20080522
NOBODY = 65534  #: user and group; not by name, which needs a database of users

_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def effective() -> set[int]:
    """Numbers of the capabilities in force."""
    _, sets = _get()
    return {32 * i + bit for i, word in enumerate(sets) for bit in range(32) if word.effective >> bit & 1}


def missing() -> list[str]:
    """Names of the capabilities that loading needs and this process lacks (CAP_SYS_ADMIN stands for two of them)."""
    have = effective()
    names = {BPF: "CAP_BPF", NET_ADMIN: "CAP_NET_ADMIN", PERFMON: "CAP_PERFMON"}
    implied = {BPF, PERFMON} if SYS_ADMIN in have else set()
    return [name for number, name in names.items() if number not in have | implied]


def keep(wanted: frozenset[int]) -> None:
    """Gives up every other capability, for this process and all it starts. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(64):
        if number not in wanted:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # needs CAP_SETPCAP; the sets below do not
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header, sets = _get()
    for i, word in enumerate(sets):
        mask = sum(1 << (number - 32 * i) for number in wanted if number // 32 == i)
        word.permitted &= mask
        word.effective = word.permitted
        word.inheritable = 0
    if libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capset")


def stop_being_root(wanted: frozenset[int]) -> None:
    """Root becomes nobody who keeps these capabilities; where root may not, and of others, only the rest is given up.

    CAP_SYS_ADMIN stays where it stands for another, see missing(). Raises OSError.
    """
    have = effective()
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        with contextlib.suppress(OSError):  # no CAP_SETUID, or a namespace that knows root alone
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
    keep(wanted if {BPF, PERFMON} <= have else wanted | {SYS_ADMIN})


def _get() -> tuple[_Header, ctypes.Array[_Sets]]:
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capget")
    return header, sets
