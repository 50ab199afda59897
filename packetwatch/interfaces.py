# SPDX-License-Identifier: Apache-2.0
"""Which interfaces are wanted, where each sits, and what holds there: pure functions on what netlink told.

Reads nothing and attaches nothing.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple, Optional

from packetwatch.netlink import DefaultRoute, Link

DEFAULT_ROUTE = "default-route"

_ETHER, _LOOPBACK = 1, 772  # linux/if_arp.h
_GLOB = frozenset("*?[")
#: Devices above an interface that take frames for MAC addresses of their own.
_STACKED = frozenset(("macvlan", "macvtap", "ipvlan", "ipvtap"))
#: Devices that receive what their ports got, whatever its destination was there.
_MASTERS = frozenset(("bond", "bridge", "team", "openvswitch"))
_NAMES = {"vlan": "VLAN", "vrf": "VRF", "bond": "bond", "bridge": "bridge", "team": "team"}


class Wanted(NamedTuple):
    """An interface the settings ask for."""

    name: str
    pattern: str  #: the first setting that asks for it
    link: Optional[Link] = None  #: None while no interface has this name
    fault: str = ""  #: a sentence: why it cannot be watched


def wanted(patterns: Sequence[str], links: Sequence[Link], default_routes: Iterable[DefaultRoute]) -> list[Wanted]:
    """What the patterns ask for now, in their order, each interface once.

    A pattern is ``default-route``, a name or a glob. A name that no interface has stays, without a link. Globs leave
    out ``lo``: whoever wants it names it.
    """
    carrying = {route.oif for route in default_routes}
    found: dict[str, Wanted] = {}
    for pattern in patterns:
        for link in links:
            if _matches(pattern, link, carrying):
                found.setdefault(link.name, Wanted(link.name, pattern, link, _fault(link, links)))
        if pattern != DEFAULT_ROUTE and not _GLOB & set(pattern):
            found.setdefault(pattern, Wanted(pattern, pattern))
    return list(found.values())


def _matches(pattern: str, link: Link, carrying: Collection[int]) -> bool:
    if pattern == DEFAULT_ROUTE:
        return link.index in carrying
    return pattern == link.name or (link.arptype != _LOOPBACK and fnmatch.fnmatchcase(link.name, pattern))


def _fault(link: Link, links: Sequence[Link]) -> str:
    if link.arptype in (_ETHER, _LOOPBACK):
        return ""
    below = _by_index(link.lower, links)
    return f"{link.name} carries no Ethernet frames; attach to {below.name if below else 'the interface'} below it"


def mac_test(link: Link, links: Sequence[Link]) -> bool:
    """Whether a frame for a foreign MAC address can be left out on this interface.

    Not on ports of a bridge or bond and not on these themselves, not on a macvlan (VRRP), and not where something
    above takes frames for another address.
    """
    return _mac_test(link, links, frozenset())


def _mac_test(link: Link, links: Sequence[Link], seen: frozenset[int]) -> bool:
    if link.arptype not in (_ETHER, _LOOPBACK) or link.kind in _MASTERS | _STACKED or link.index in seen:
        return False
    if link.master and not _in_vrf(link, links):
        return False
    above = [other for other in links if other.lower == link.index and other.kind in _STACKED | {"vlan"}]
    return all(other.mac == link.mac and _mac_test(other, links, seen | {link.index}) for other in above)


def _in_vrf(link: Link, links: Sequence[Link]) -> bool:
    """A VRF binds routes, not frames."""
    master = _by_index(link.master, links)
    return master is not None and master.kind == "vrf"


def seat(link: Link, links: Sequence[Link]) -> str:
    """Where the interface sits, for people: ``eth0 (port of bridge br0)``; empty if there is nothing to say."""
    parts = [part for part in (_members(link, links), _above_what(link, links), _port_of(link, links)) if part]
    return f"{link.name} ({', '.join(parts)})" if parts else ""


def _members(link: Link, links: Sequence[Link]) -> str:
    if link.kind not in _NAMES or link.kind == "vlan":
        return ""
    names = [other.name for other in links if other.master == link.index]
    return f"{_NAMES[link.kind]} of {', '.join(names)}" if names else f"{_NAMES[link.kind]} without ports"


def _above_what(link: Link, links: Sequence[Link]) -> str:
    if link.kind not in _STACKED | {"vlan"}:
        return ""
    below = _by_index(link.lower, links)
    return f"{_NAMES.get(link.kind, link.kind)} on {below.name if below else 'an interface of another namespace'}"


def _port_of(link: Link, links: Sequence[Link]) -> str:
    master = _by_index(link.master, links)
    if master is None:
        return ""
    name = f"{_NAMES.get(master.kind, master.kind)} {master.name}"
    return f"in {name}" if master.kind == "vrf" else f"port of {name}"


def _by_index(index: int, links: Iterable[Link]) -> Optional[Link]:
    return next((link for link in links if index and link.index == index), None)


def gateways(default_routes: Iterable[DefaultRoute]) -> set[bytes]:
    """The addresses (16 bytes) of the default gateways."""
    return {route.gateway for route in default_routes if route.gateway is not None}


def foreign_xdp(link: Link, own_ids: Collection[int]) -> Optional[tuple[int, str]]:
    """Id and mode of an XDP program on the interface that is not ours."""
    return next(((program.id, program.mode) for program in link.xdp if program.id not in own_ids), None)
