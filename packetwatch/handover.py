# SPDX-License-Identifier: Apache-2.0
"""From one resident to the next: take over a running kernel half, or replace it with no packet unjudged.

Descriptors in the store: `<digest>_prog`, `<digest>_handshakes`, `<digest>_map_<name>`, `link_<id>`, `handshakes`
(the link on the root cgroup), `memory`. The digest (program.Parameters.digest) says what was compiled: the same one
is adopted, another is replaced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple, Optional

from packetwatch import libbpf, program
from packetwatch.kernel import Kernel
from packetwatch.memory import Memory
from packetwatch.store import Store

_PROG, _HANDSHAKES, _MAP = "_prog", "_handshakes", "_map_"


class Opened(NamedTuple):
    """The kernel half to work with, and what is left of the one before."""

    kernel: Kernel
    digest: str
    adopted: bool
    previous: Optional[tuple[str, Kernel]]  #: digest and maps of a program that is to be replaced
    links: dict[str, int]  #: name in the store -> descriptor
    handshakes: Optional[int]  #: the link on the root cgroup
    refused: str  #: why the kernel half has no program for it, where that is known
    memory: Memory


class Fresh(NamedTuple):
    """What the loader made."""

    prog: int
    maps: Mapping[str, int]
    handshakes: Optional[int] = None
    refused: str = ""


def open_kernel(parameters: program.Parameters, store: Store, load: Callable[[], Fresh]) -> Opened:
    """Adopts what the store holds for this digest, else loads and stores anew.

    Whether it is new does not tell which program judges: a start may be killed before replace().
    """
    inherited = store.inherited()
    links = {name: fd for name, fd in inherited.items() if name.startswith("link_")}
    memory = _memory(inherited.get("memory"), store)
    digest = parameters.digest()
    kernel, refused = _take(inherited, digest, parameters), ""
    adopted = kernel is not None
    previous = _previous(inherited, digest, {libbpf.link_info(fd).prog_id for fd in links.values()})
    _drop_rest(inherited, {digest if adopted else "", previous[0] if previous else ""}, store)
    if kernel is None:
        fresh = load()
        kernel, refused = Kernel(fresh.prog, fresh.maps, parameters, fresh.handshakes), fresh.refused
        for name, fd in _names(digest, kernel).items():
            store.put(name, fd)
    return Opened(kernel, digest, adopted, previous, links, inherited.get("handshakes"), refused, memory)


def replace(kernel: Kernel, previous: Optional[Kernel], links: Mapping[int, int]) -> None:
    """Blocks first, then the program of every link that has another than here, then the blocks that came meanwhile.

    So it goes with clients: a handshake that both programs miss there is none.
    """
    if previous is not None:
        _copy_sources(previous, kernel)
    for link, prog in links.items():
        if libbpf.link_info(link).prog_id != libbpf.prog_id(prog):
            libbpf.link_update(link, prog)
    if previous is not None:
        _copy_sources(previous, kernel)


def forget(digest: str, previous: Kernel, store: Store) -> None:
    """Lets go of a replaced kernel half, here and in the store."""
    for name in _names(digest, previous):
        store.remove(name)
    previous.close()


def _names(digest: str, kernel: Kernel) -> dict[str, int]:
    """The program that may be missing comes before the maps, without which nothing is adopted."""
    handshakes = {digest + _HANDSHAKES: kernel.handshakes} if kernel.handshakes is not None else {}
    maps = {f"{digest}{_MAP}{name}": fd for name, fd in kernel.maps.items()}
    return {digest + _PROG: kernel.prog, **handshakes, **maps}


def _take(inherited: Mapping[str, int], digest: str, parameters: program.Parameters) -> Optional[Kernel]:
    """None where a descriptor is missing: a start that was killed before it had stored them all."""
    prog = inherited.get(digest + _PROG)
    maps = {name: inherited[f"{digest}{_MAP}{name}"] for name in program.MAPS if f"{digest}{_MAP}{name}" in inherited}
    if prog is None or len(maps) != len(program.MAPS):
        return None
    return Kernel(prog, maps, parameters, inherited.get(digest + _HANDSHAKES))


def _previous(inherited: Mapping[str, int], own: str, judging: set[int]) -> Optional[tuple[str, Kernel]]:
    """A whole kernel half of another digest whose layouts are ours, one that judges before one that never did.

    Its sizes are read off its maps.
    """
    digests = [name[: -len(_PROG)] for name in inherited if name.endswith(_PROG)]
    for digest in sorted(digests, key=lambda each: libbpf.prog_id(inherited[each + _PROG]) not in judging):
        ring = inherited.get(f"{digest}{_MAP}connections")
        sets = inherited.get(f"{digest}{_MAP}trackers")
        blocks = inherited.get(f"{digest}{_MAP}blocks")
        if digest == own or ring is None or sets is None or blocks is None:
            continue
        if not digest.endswith(f"v{program.LAYOUT}"):
            continue
        sizes = [libbpf.max_entries(fd) for fd in (sets, blocks, ring)]
        kernel = _take(inherited, digest, program.Parameters(sizes[0] * 4, sizes[1], sizes[2], "auto"))
        if kernel is not None:
            return digest, kernel
    return None


def _drop_rest(inherited: Mapping[str, int], kept: set[str], store: Store) -> None:
    """Parts of kernel halves that nobody can use; a program that judges lives on through its link."""
    for name, fd in inherited.items():
        digest, separator, _ = name.partition("_")
        if separator and digest != "link" and digest not in kept:
            store.remove(name)
            os.close(fd)


def _copy_sources(old: Kernel, new: Kernel) -> None:
    """Those that are blocked, have been, or are clients."""
    for block in old.blocks.read():
        try:
            new.blocks.put(block)
        except OSError:
            break  # the new table is smaller and full: it refuses, as it would any block
    for key, value in libbpf.items(old.maps["offenders"], 16, program.OFFENDER.size):
        libbpf.update(new.maps["offenders"], key, value)
    for key, value in libbpf.items(old.maps["clients"], 16, program.CLIENT.size):
        with contextlib.suppress(FileExistsError):  # a newer one
            libbpf.update(new.maps["clients"], key, value, libbpf.NOEXIST)


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
