# SPDX-License-Identifier: Apache-2.0
"""The interfaces the program sits on: attached, followed and let go as netlink tells.

Which are wanted is interfaces.py's; whether one missing is a fault is the daemon's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

from packetwatch import interfaces, libbpf, program
from packetwatch.interfaces import Wanted
from packetwatch.kernel import Attachment, Kernel
from packetwatch.netlink import Link
from packetwatch.sinks.ledger import Ledger
from packetwatch.store import Store

_LOOPBACK = 772  # linux/if_arp.h
_MODES = {"native": libbpf.XDP_FLAGS_DRV_MODE, "generic": libbpf.XDP_FLAGS_SKB_MODE}
_NAME = "link_"
_TAKEN = (errno.EBUSY, errno.EEXIST)


@dataclass
class Attached:
    """One interface with the program on it."""

    at: Attachment
    name: str
    link: int  #: descriptor of the bpf_link
    mode: str  #: native or generic
    seat: str


class Change(NamedTuple):
    """An interface that began or ceased to be watched."""

    event_type: str  #: start or stop
    interface: str
    text: str


class Attachments:
    """What is attached, by ifindex; `faults` says of every wanted interface that is not, why."""

    def __init__(self, kernel: Kernel, store: Store, ledger: Ledger) -> None:
        self.kernel = kernel
        self.by_index: dict[int, Attached] = {}
        self.faults: dict[str, str] = {}
        self.wanted: list[str] = []
        self.taken = False  #: another's program sits on a wanted interface; netlink does not tell when a link's goes
        self.mends = False  #: whether a program that was taken off is put on again; else the watchdog sees to it
        self._store = store
        self._ledger = ledger
        self.last_id = -1  #: carried over to the next resident, as records in the ring are
        self._news: list[str] = []

    def adopt(self, inherited: Mapping[str, int], links: Sequence[Link]) -> None:
        """Takes over links that outlived the resident before; dead ones are given back."""
        by_index = {link.index: link for link in links}
        for name, fd in inherited.items():
            if not name.startswith(_NAME):
                continue
            link = by_index.get(libbpf.link_info(fd).ifindex)
            if link is None:
                os.close(fd)
                self._store.remove(name)
                continue
            at = self._describe(link, links, int(name[len(_NAME) :]))
            self.kernel.put_attachment(at)
            self._ledger.open(at.id, link.name)
            self.by_index[link.index] = Attached(at, link.name, fd, _mode_of(link), interfaces.seat(link, links))

    def follow(self, wanted: Sequence[Wanted], links: Sequence[Link], xdp_mode: str) -> list[Change]:
        """Brings what is attached in step with what is wanted."""
        told: list[Change] = []
        self.wanted = [w.name for w in wanted]
        keep = {w.link.index: w.link for w in wanted if w.link is not None and not w.fault}
        for name in self.broken(set(keep)) if self.mends else ():
            (index,) = (i for i, a in self.by_index.items() if a.name == name)
            told.append(Change("stop", name, "the program was taken off the interface"))
            self.detach(index)
        for index in [i for i, a in self.by_index.items() if i not in keep or xdp_mode not in ("auto", a.mode)]:
            told.append(Change("stop", self.by_index[index].name, "no longer watched"))
            self.detach(index)
        faults = {w.name: w.fault for w in wanted if w.fault}
        self.taken = False
        for link in keep.values():
            if link.index in self.by_index:
                self._refresh(self.by_index[link.index], link, links)
                continue
            try:
                told.append(self._attach(link, links, xdp_mode))
            except OSError as fault:
                faults[link.name] = _explain(link, fault, xdp_mode)
                self.taken = self.taken or fault.errno in _TAKEN
        faults.update({w.name: f"{w.name}: no such interface; waiting for it" for w in wanted if w.link is None})
        self._news += [text for name, text in faults.items() if self.faults.get(name) != text]
        self.faults = faults
        return told

    def news(self) -> list[str]:
        """Faults that were not there before, each told once."""
        news, self._news = self._news, []
        return news

    def detach(self, ifindex: int) -> None:
        attached = self.by_index.pop(ifindex)
        libbpf.link_detach(attached.link)  # the store lets go of its descriptor later, and till then nothing fits there
        self._store.remove(f"{_NAME}{attached.at.id}")
        os.close(attached.link)
        self.kernel.remove_attachment(ifindex)

    def detach_all(self) -> None:
        for ifindex in list(self.by_index):
            self.detach(ifindex)

    def broken(self, present: set[int]) -> list[str]:
        """Interfaces whose link has been taken away though the device is there."""
        return [
            a.name for i, a in self.by_index.items() if i in present and libbpf.link_info(a.link).ifindex != i
        ]

    def ids(self, attached: Attached) -> tuple[int, int]:
        """Ids of the link and of the program, as bpftool shows them."""
        info = libbpf.link_info(attached.link)
        return info.id, info.prog_id

    def _attach(self, link: Link, links: Sequence[Link], xdp_mode: str) -> Change:
        at = self._describe(link, links, self._free_id())
        self._ledger.close(at.id)
        self.kernel.clear_counters(at.id)
        self.kernel.put_attachment(at)
        try:
            fd, mode = self._link(link.index, xdp_mode)
        except OSError:
            self.kernel.remove_attachment(link.index)
            raise
        self._ledger.open(at.id, link.name)
        self._store.put(f"{_NAME}{at.id}", fd)
        seat = interfaces.seat(link, links)
        self.by_index[link.index] = Attached(at, link.name, fd, mode, seat)
        return Change("start", link.name, f"watching {seat or link.name}, XDP mode {mode}")

    def _link(self, ifindex: int, xdp_mode: str) -> tuple[int, str]:
        refused: Optional[OSError] = None
        for mode, flags in _MODES.items():
            if xdp_mode in ("auto", mode):
                try:
                    return libbpf.link_xdp(self.kernel.prog, ifindex, flags), mode
                except OSError as fault:
                    if fault.errno in (*_TAKEN, errno.EPERM):
                        raise
                    refused = fault
        assert refused is not None
        raise refused

    def _refresh(self, attached: Attached, link: Link, links: Sequence[Link]) -> None:
        at = self._describe(link, links, attached.at.id)
        if at != attached.at:
            self.kernel.put_attachment(at)
            attached.at = at
        if link.name != attached.name:
            attached.name = link.name
            self._ledger.open(at.id, link.name)
        attached.seat = interfaces.seat(link, links)

    @staticmethod
    def _describe(link: Link, links: Sequence[Link], number: int) -> Attachment:
        return Attachment(
            number, link.index, link.mac, link.arptype == _LOOPBACK, interfaces.mac_test(link, links)
        )

    def _free_id(self) -> int:
        """The id longest out of use: records of its last attachment are out of the ring by then."""
        used = {attached.at.id for attached in self.by_index.values()}
        for step in range(1, program.ATTACHMENTS + 1):
            number = (self.last_id + step) % program.ATTACHMENTS
            if number not in used:
                self.last_id = number
                return number
        raise OSError(errno.ENOSPC, f"at most {program.ATTACHMENTS} interfaces can be watched")


def _mode_of(link: Link) -> str:
    return next((xdp.mode for xdp in link.xdp), "native")


def _named(number: int) -> str:
    name = libbpf.prog_name(number)
    return f", name {name}" if name else ""


def _explain(link: Link, fault: OSError, xdp_mode: str) -> str:
    foreign = interfaces.foreign_xdp(link, ())
    if fault.errno in _TAKEN and foreign is not None:
        number, mode = foreign
        return (
            f"{link.name}: another XDP program is attached (id {number}{_named(number)}, {mode}); `bpftool prog show "
            f"id {number}` shows it; end its owner, or remove it with `ip link set dev {link.name} xdp off`"
        )
    if fault.errno == errno.EPERM:
        return f"{link.name}: attaching is not permitted; CAP_NET_ADMIN and CAP_BPF are needed"
    hint = " (try xdp.mode = generic)" if xdp_mode == "native" else ""
    return f"{link.name}: the kernel refuses XDP in mode {xdp_mode}: {os.strerror(fault.errno or 0)}{hint}"
