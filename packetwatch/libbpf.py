# SPDX-License-Identifier: Apache-2.0
"""bpf(2) through libbpf: maps, links and pins by file descriptor. No names, no policy.

Works with libbpf 0.x and 1.x; errors are OSError with the kernel's errno. Source: libbpf's bpf.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Optional

ANY, NOEXIST, EXIST = range(3)
CGROUP_SOCK_OPS, XDP = 3, 37  #: enum bpf_attach_type
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2

TEST_RUN_BYTES = 3000  #: that fit every kernel: a page without headroom and struct skb_shared_info

_BATCH = 4096
_RING_BUFFER = 27  # enum bpf_map_type


class LinkInfo(NamedTuple):
    """struct bpf_link_info of an XDP link; ifindex is 0 once the device is gone."""

    id: int
    prog_id: int
    ifindex: int


class _LinkCreateOpts(ctypes.Structure):
    _fields_ = [("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("pad", ctypes.c_uint32 * 13)]


class _TestRunOpts(ctypes.Structure):
    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


def _load() -> ctypes.CDLL:
    for name in ("libbpf.so.1", "libbpf.so.0"):
        try:
            return ctypes.CDLL(name, use_errno=True)
        except OSError:
            continue
    raise OSError("libbpf.so.1 not found; install libbpf1 (Debian) or libbpf (EL)")


_library: Optional[ctypes.CDLL] = None


def _call(function: str, *arguments: Any) -> int:
    global _library
    if _library is None:
        _library = _load()
    result: int = getattr(_library, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno() or -result
        raise OSError(number, os.strerror(number), function)
    return result


def has_ring_buffer() -> bool:
    """Probed, since distributions backport; needs the right to create maps."""
    try:
        os.close(_create_map(_RING_BUFFER, 0, 0, mmap.PAGESIZE))
    except OSError as fault:
        return fault.errno != errno.EINVAL
    return True


def _create_map(kind: int, key_bytes: int, value_bytes: int, entries: int) -> int:
    if hasattr(_load(), "bpf_map_create"):
        return _call("bpf_map_create", kind, b"probe", key_bytes, value_bytes, entries, None)
    return _call("bpf_create_map", kind, key_bytes, value_bytes, entries, 0)


def possible_cpus() -> int:
    """Per-CPU maps hold one value for each of them."""
    return _call("libbpf_num_possible_cpus")


def raise_memlock() -> None:
    """Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; lift it as far as we may."""
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    for limit in ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
            return
        except (ValueError, OSError):
            continue


def lookup(fd: int, key: bytes, value_size: int) -> Optional[bytes]:
    """The value of `key` (all CPUs' values, 8-byte aligned each, in a per-CPU map), or None."""
    value = ctypes.create_string_buffer(value_size)
    try:
        _call("bpf_map_lookup_elem", fd, key, value)
    except FileNotFoundError:
        return None
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    _call("bpf_map_update_elem", fd, key, value, ctypes.c_uint64(flags))


def delete(fd: int, key: bytes) -> bool:
    """False where there was no such key."""
    try:
        _call("bpf_map_delete_elem", fd, key)
    except FileNotFoundError:
        return False
    return True


def keys(fd: int, key_size: int) -> Iterator[bytes]:
    """Every key; a key deleted by others on the way may restart the walk."""
    current: Optional[bytes] = None
    following = ctypes.create_string_buffer(key_size)
    while True:
        try:
            _call("bpf_map_get_next_key", fd, current, following)
        except FileNotFoundError:
            return
        current = following.raw
        yield current


def items(fd: int, key_size: int, value_size: int) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a hash map, in batches of one syscall per 4,096 entries."""
    token = ctypes.create_string_buffer(max(key_size, 8))
    key_buffer = ctypes.create_string_buffer(key_size * _BATCH)
    value_buffer = ctypes.create_string_buffer(value_size * _BATCH)
    started: Optional[Any] = None
    while True:
        count = ctypes.c_uint32(_BATCH)
        try:
            _call("bpf_map_lookup_batch", fd, started, token, key_buffer, value_buffer, ctypes.byref(count), None)
            last = False
        except FileNotFoundError:
            last = True
        keys_read, values_read = key_buffer.raw, value_buffer.raw
        for i in range(count.value):
            yield keys_read[i * key_size : (i + 1) * key_size], values_read[i * value_size : (i + 1) * value_size]
        if last:
            return
        started = token


def items_array(fd: int, indexes: range, value_size: int) -> Iterator[tuple[int, bytes]]:
    """Entries of an array map, one by one."""
    for index in indexes:
        value = lookup(fd, index.to_bytes(4, sys.byteorder), value_size)
        if value is not None:
            yield index, value


def link_xdp(prog: int, ifindex: int, flags: int) -> int:
    """Attaches; the program stays for as long as the returned descriptor is held by somebody."""
    options = _LinkCreateOpts(sz=16, flags=flags)
    return _call("bpf_link_create", prog, ifindex, XDP, ctypes.byref(options))


def link_sock_ops(prog: int, cgroup: int) -> int:
    """Attaches to all sockets below a folder of cgroup v2, beside the programs of others; lasts as link_xdp()."""
    return _call("bpf_link_create", prog, cgroup, CGROUP_SOCK_OPS, None)


def link_update(link: int, prog: int) -> None:
    """Replaces the program of a link, with no packet between the two."""
    _call("bpf_link_update", link, prog, None)


def link_detach(link: int) -> None:
    """Takes the program off its interface or cgroup at once, whoever else holds the link."""
    _call("bpf_link_detach", link)


def _info(fd: int, size: int) -> bytes:
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_uint32(size)
    _call("bpf_obj_get_info_by_fd", fd, buffer, ctypes.byref(length))
    return buffer.raw


def link_info(link: int) -> LinkInfo:
    words = memoryview(_info(link, 64)).cast("I")
    return LinkInfo(words[1], words[2], words[4])


def cgroup_id(link: int) -> int:
    """Of the cgroup that a link of link_sock_ops() is on; 0 once it has been taken off."""
    return memoryview(_info(link, 64)).cast("Q")[2]


def prog_id(prog: int) -> int:
    return memoryview(_info(prog, 64)).cast("I")[1]


@functools.lru_cache(maxsize=64)
def prog_name(number: int) -> str:
    """The name of any program by its id; empty where we may not know (needs CAP_SYS_ADMIN) or it has gone."""
    try:
        fd = _call("bpf_prog_get_fd_by_id", ctypes.c_uint32(number))
    except OSError:
        return ""
    try:
        return _info(fd, 80)[64:].rstrip(b"\0").decode(errors="replace")
    finally:
        os.close(fd)


def max_entries(map_fd: int) -> int:
    return memoryview(_info(map_fd, 64)).cast("I")[4]


def test_runner(prog: int) -> Callable[[bytes], int]:
    """A function that runs the program once on the bytes of a frame and returns its verdict (BPF_PROG_TEST_RUN).

    Made once, called per frame: one struct serves all calls. At most TEST_RUN_BYTES each.
    """
    options = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts))
    where, size = ctypes.byref(options), len
    call = getattr(_library or _load(), "bpf_prog_test_run_opts")

    def run(data: bytes) -> int:
        options.data_in = data
        options.data_size_in = size(data)
        options.data_size_out = 0  # the call before has left its own there, and would bound this one
        if call(prog, where):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "bpf_prog_test_run_opts")
        verdict: int = options.retval
        return verdict

    return run


def pin(fd: int, path: str) -> None:
    _call("bpf_obj_pin", fd, os.fsencode(path))


def pinned(path: str) -> int:
    return _call("bpf_obj_get", os.fsencode(path))
