# SPDX-License-Identifier: Apache-2.0
"""From one resident to the next: take over a running kernel half, or replace it with no packet unjudged.

Descriptors in the store: `<digest>_prog`, `<digest>_map_<name>`, `link_<id>`, `memory`. The digest
(program.Parameters.digest) says what was compiled: the same one is adopted, another is replaced.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional

from packetwatch import libbpf, program
from packetwatch.kernel import Kernel
from packetwatch.memory import Memory
from packetwatch.store import Store

_PROG, _MAP = "_prog", "_map_"


class Opened(NamedTuple):
    """The kernel half to work with, and what is left of the one before."""

    kernel: Kernel
    adopted: bool
    previous: Optional[tuple[str, Kernel]]  #: digest and maps of the program that still judges
    links: dict[str, int]  #: name in the store -> descriptor
    memory: Memory


class Fresh(NamedTuple):
    """What the loader made."""

    prog: int
    maps: Mapping[str, int]


def open_kernel(parameters: program.Parameters, store: Store, load: Callable[[], Fresh]) -> Opened:
    """Adopts what the store holds for this digest, else loads and stores anew."""
    inherited = store.inherited()
    links = {name: fd for name, fd in inherited.items() if name.startswith("link_")}
    memory = _memory(inherited.get("memory"), store)
    digest = parameters.digest()
    kernel = _take(inherited, digest, parameters)
    if kernel is not None:
        return Opened(kernel, True, None, links, memory)
    previous = _previous(inherited)
    fresh = load()
    kernel = Kernel(fresh.prog, fresh.maps, parameters)
    for name, fd in _names(digest, kernel).items():
        store.put(name, fd)
    return Opened(kernel, False, previous, links, memory)


def replace(kernel: Kernel, previous: Kernel, links: Mapping[str, int]) -> None:
    """Blocks first, then the program of every link, then the blocks that came meanwhile."""
    _copy_blocks(previous, kernel)
    for fd in links.values():
        libbpf.link_update(fd, kernel.prog)
    _copy_blocks(previous, kernel)


def forget(digest: str, previous: Kernel, store: Store) -> None:
    """Lets go of a replaced kernel half, here and in the store."""
    for name in _names(digest, previous):
        store.remove(name)
    previous.close()


def _names(digest: str, kernel: Kernel) -> dict[str, int]:
    return {digest + _PROG: kernel.prog, **{f"{digest}{_MAP}{name}": fd for name, fd in kernel.maps.items()}}


def _take(inherited: Mapping[str, int], digest: str, parameters: program.Parameters) -> Optional[Kernel]:
    """None where a descriptor is missing: a start that was killed before it had stored them all."""
    prog = inherited.get(digest + _PROG)
    maps = {name: inherited[f"{digest}{_MAP}{name}"] for name in program.MAPS if f"{digest}{_MAP}{name}" in inherited}
    if prog is None or len(maps) != len(program.MAPS):
        return None
    return Kernel(prog, maps, parameters)


def _previous(inherited: Mapping[str, int]) -> Optional[tuple[str, Kernel]]:
    """A whole kernel half of another digest whose layouts are ours; its sizes are read off its maps."""
    for name in inherited:
        if not name.endswith(_PROG):
            continue
        digest = name[: -len(_PROG)]
        ring = inherited.get(f"{digest}{_MAP}connections")
        sets = inherited.get(f"{digest}{_MAP}trackers")
        blocks = inherited.get(f"{digest}{_MAP}blocks")
        if ring is None or sets is None or blocks is None or not digest.endswith(f"v{program.LAYOUT}"):
            continue
        sizes = [libbpf.max_entries(fd) for fd in (sets, blocks, ring)]
        kernel = _take(inherited, digest, program.Parameters(sizes[0] * 4, sizes[1], sizes[2], "auto"))
        if kernel is not None:
            return digest, kernel
    return None


def _copy_blocks(old: Kernel, new: Kernel) -> None:
    for block in old.blocks.read():
        try:
            new.blocks.put(block)
        except OSError:
            return  # the new table is smaller and full: it refuses, as it would any block


def _memory(fd: Optional[int], store: Store) -> Memory:
    if fd is not None:
        try:
            return Memory(fd)
        except (OSError, ValueError):
            os.close(fd)
            store.remove("memory")
    memory = Memory()
    store.put("memory", memory.fd)
    return memory
