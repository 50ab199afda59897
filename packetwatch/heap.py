# SPDX-License-Identifier: Apache-2.0
"""The C library's heap keeps what a batch of records needs, instead of asking the kernel for it again with each one."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 8 << 20  #: several times the text of the largest batch


def keep() -> None:
    """Of glibc; others ignore it, or have no such call.

    Otherwise the text of a batch, up to 2 MB, may be given back as soon as it is written: then each page of the next
    one is a fault, and giving it back interrupts the other CPUs. That doubles or trebles what a record costs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
