# SPDX-License-Identifier: Apache-2.0
"""What rtnetlink says about links, local addresses and default routes, and a monitor that tells when it changes.

Mechanism only: which interface is wanted, or what a change means, is decided in ``interfaces`` and the daemon.
No call here needs a privilege.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Optional, TypeVar

from packetwatch.address import IPV4_OFFSET, MAPPED, Prefix

T = TypeVar("T")

# linux/netlink.h
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")
_U32 = struct.Struct("=I")
_F_REQUEST, _F_DUMP, _F_DUMP_INTR = 0x1, 0x300, 0x10
_NOOP, _ERROR, _DONE = 1, 2, 3
_SOL_NETLINK, _ADD_MEMBERSHIP, _GET_STRICT_CHK = 270, 1, 12
_TYPE_MASK = 0x3FFF  # the two high bits of an attribute's type are flags

# linux/rtnetlink.h
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWNEXTHOP, _DELNEXTHOP, _GETNEXTHOP = 104, 105, 106
_LINK = struct.Struct("=BxHiII")  # family, ARPHRD, index, flags, change
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NEXTHOP = struct.Struct("=HBBi")  # length, flags, hops, index
_NHMSG = struct.Struct("=BBBxI")  # family, scope, protocol, flags
_GROUP_MEMBER = struct.Struct("=IBBH")  # id, weight, …
_UNICAST, _LOCAL = 1, 2
_TABLE_LOCAL = 255
_F_CLONED = 0x200
#: link, IPv4 and IPv6 addresses, IPv4 and IPv6 routes, nexthop objects
_GROUPS = (1, 5, 9, 7, 11, 32)
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA, _RTA_NH_ID = 1, 4, 5, 9, 15, 18, 30
_NHA_ID, _NHA_GROUP, _NHA_OIF, _NHA_GATEWAY = 1, 2, 5, 6

# linux/if_link.h
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_EXT_MASK, _IFLA_LINK_NETNSID, _IFLA_XDP = 29, 37, 43
_INFO_KIND, _INFO_DATA, _VRF_TABLE = 1, 2, 1
_EXT_SKIP_STATS = 8
_XDP_MODES = ((5, "native"), (6, "generic"), (7, "offload"))

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_BUFFER = 256 * 1024  # above the largest message: a link with 256 virtual functions takes about 100 KiB
_MONITOR_BUFFER = 2 * 1024 * 1024
_TRIES = 8
_DRAIN_LIMIT = 1024

EVERYTHING = frozenset(("link", "route", "address", "resync"))


class Xdp(NamedTuple):
    """An XDP program attached to a link."""

    id: int
    mode: str  #: native, generic or offload


class Link(NamedTuple):
    """A network interface as RTM_NEWLINK describes it."""

    index: int  # type: ignore[assignment]  # nobody looks for a value's place in a link
    name: str
    mac: bytes = b""  #: link-layer address; 6 bytes on Ethernet
    kind: str = ""  #: IFLA_INFO_KIND: bond, bridge, vlan, …; empty for a physical one and for lo
    arptype: int = 1  #: ARPHRD_*
    up: bool = True  #: administratively
    master: int = 0  #: index of the bond, bridge or VRF it is a port of
    lower: int = 0  #: index of the link below (veth: its peer); 0 if there is none or it is in another namespace
    mtu: int = 1500
    xdp: tuple[Xdp, ...] = ()
    table: int = 0  #: of a VRF: its routing table


class DefaultRoute(NamedTuple):
    """One next hop of a default route."""

    family: int  #: AF_INET or AF_INET6
    oif: int
    gateway: Optional[bytes]  #: 16 bytes (IPv6 or v4-mapped); None if the destination is on the link
    table: int


class _Hop(NamedTuple):
    oif: int
    gateway: Optional[bytes]


def links() -> list[Link]:
    """All links of this network namespace, by index."""
    body = _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_EXT_MASK, _U32.pack(_EXT_SKIP_STATS))
    return sorted(_dump("links", _GETLINK, body, decode_link))


def local_prefixes() -> set[Prefix]:
    """The destinations this host takes itself: routes of type local in the local table and in those of VRFs.

    Routes of type local elsewhere (a table of a transparent proxy, reached by a mark) are not meant.
    """
    tables = {_TABLE_LOCAL} | {link.table for link in links() if link.table}
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        for table in tables:
            found.update(_routes(family, table, _LOCAL, lambda data: _local(data, tables)))
    return found


def default_routes() -> list[DefaultRoute]:
    """Every next hop of every unicast default route, in any table but the local one.

    The kernel cannot filter by prefix length, so this reads the whole routing table: about a second per million routes.
    """
    objects = _nexthops()
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        found += _routes(family, 0, 0, lambda data: _default(data, objects))
    return found


class Monitor:
    """Tells what kind of thing has changed. Open it before the first dump, so that no change falls in between.

    Of the routes only local and default ones count; the kernel drops the others before they reach the queue.
    An IPv4 route that goes because its link goes down is not announced: after "link" read the routes, too.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        try:
            _widen(self._socket)
            _attach_filter(self._socket)
            self._socket.bind((0, 0))
            for group in _GROUPS:
                self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when something has changed."""
        return self._socket.fileno()

    def drain(self) -> set[str]:
        """Reads a bounded number of notices. Returns a subset of {"link", "route", "address"}.

        If the queue has overflowed, all three and "resync". What is left keeps ``fileno`` readable.
        """
        changed: set[str] = set()
        for _ in range(_DRAIN_LIMIT):
            try:
                data = _receive(self._socket)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.EMSGSIZE):
                    raise
                changed |= EVERYTHING
                continue
            changed.update(_concern(kind, payload) for kind, _, payload in _messages(data))
        changed.discard("")
        return changed

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.close()


# Decoding: bytes in, facts out.


def decode_link(data: memoryview) -> Iterator[Link]:
    """The link of one RTM_NEWLINK payload; none if it tells of something else (a bridge port, a wireless event)."""
    family, arptype, index, flags, _ = _LINK.unpack_from(data)
    attributes = _attributes(data[_LINK.size:])
    if family != socket.AF_UNSPEC or _IFLA_IFNAME not in attributes:
        return
    info = _attributes(attributes.get(_IFLA_LINKINFO, b""))
    kind = _string(info.get(_INFO_KIND, b""))
    details = _attributes(info.get(_INFO_DATA, b"")) if kind == "vrf" else {}
    yield Link(
        index=index,
        name=_string(attributes[_IFLA_IFNAME]),
        mac=attributes.get(_IFLA_ADDRESS, b""),
        kind=kind,
        arptype=arptype,
        up=bool(flags & _IFF_UP),
        master=_number(attributes, _IFLA_MASTER),
        lower=0 if _IFLA_LINK_NETNSID in attributes else _number(attributes, _IFLA_LINK),
        mtu=_number(attributes, _IFLA_MTU),
        xdp=_xdp(_attributes(attributes.get(_IFLA_XDP, b""))),
        table=_number(details, _VRF_TABLE),
    )


def _xdp(attributes: dict[int, bytes]) -> tuple[Xdp, ...]:
    found = (Xdp(_number(attributes, attribute), mode) for attribute, mode in _XDP_MODES)
    return tuple(program for program in found if program.id)


def _local(data: memoryview, tables: set[int]) -> Iterator[Prefix]:
    family, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(data)
    if kind != _LOCAL or flags & _F_CLONED:
        return
    attributes = _attributes(data[_ROUTE.size:])
    if _number(attributes, _RTA_TABLE, table) in tables:
        mapped = _mapped(attributes.get(_RTA_DST, b""), family)
        yield Prefix(mapped, length + (IPV4_OFFSET if family == socket.AF_INET else 0))


def _default(data: memoryview, objects: dict[int, list[_Hop]]) -> Iterator[DefaultRoute]:
    if data[1] or data[7] != _UNICAST:  # first and alone: this sees every route of the host
        return
    family, _, _, _, table, _, _, _, flags = _ROUTE.unpack_from(data)
    attributes = _attributes(data[_ROUTE.size:])
    table = _number(attributes, _RTA_TABLE, table)
    if table == _TABLE_LOCAL or flags & _F_CLONED:
        return
    hops = _hops(attributes, family) or objects.get(_number(attributes, _RTA_NH_ID), [])
    yield from (DefaultRoute(family, hop.oif, hop.gateway, table) for hop in hops)


def _hops(attributes: dict[int, bytes], family: int) -> list[_Hop]:
    found = list(_multipath(attributes.get(_RTA_MULTIPATH, b""), family))
    if _RTA_OIF in attributes:
        found.append(_Hop(_number(attributes, _RTA_OIF), _gateway(attributes, family)))
    return found


def _multipath(data: bytes, family: int) -> Iterator[_Hop]:
    while len(data) >= _NEXTHOP.size:
        length, _, _, index = _NEXTHOP.unpack_from(data)
        if length < _NEXTHOP.size:
            return
        yield _Hop(index, _gateway(_attributes(data[_NEXTHOP.size:length]), family))
        data = data[_aligned(length):]


def _gateway(attributes: dict[int, bytes], family: int) -> Optional[bytes]:
    if _RTA_GATEWAY in attributes:
        return _mapped(attributes[_RTA_GATEWAY], family)
    if _RTA_VIA in attributes:  # a next hop of the other family
        via = attributes[_RTA_VIA]
        return _mapped(via[2:], struct.unpack_from("=H", via)[0])
    return None


def _nexthops() -> dict[int, list[_Hop]]:
    """Nexthop objects by id; needed where net.ipv4.nexthop_compat_mode is off, and routes name only the id."""
    objects = dict(_dump("nexthops", _GETNEXTHOP, _NHMSG.pack(0, 0, 0, 0), _nexthop))
    return {
        key: hops + [hop for member in members if member in objects for hop in objects[member][0]]
        for key, (hops, members) in objects.items()
    }


def _nexthop(data: memoryview) -> Iterator[tuple[int, tuple[list[_Hop], list[int]]]]:
    """A nexthop object: its id with its own hop, or with the ids of its members if it is a group."""
    family = data[0]
    attributes = _attributes(data[_NHMSG.size:])
    hops = []
    if _NHA_OIF in attributes:
        gateway = _mapped(attributes[_NHA_GATEWAY], family) if _NHA_GATEWAY in attributes else None
        hops.append(_Hop(_number(attributes, _NHA_OIF), gateway))
    members = [member for member, *_ in _GROUP_MEMBER.iter_unpack(attributes.get(_NHA_GROUP, b""))]
    yield _number(attributes, _NHA_ID), (hops, members)


def _concern(kind: int, payload: memoryview) -> str:
    if kind in (_NEWLINK, _DELLINK):
        return "link"
    if kind in (_NEWADDR, _DELADDR):
        return "address"
    if kind in (_NEWROUTE, _DELROUTE):
        return "route" if not payload[1] or payload[7] == _LOCAL else ""
    return "route" if kind in (_NEWNEXTHOP, _DELNEXTHOP) else ""


def _mapped(data: bytes, family: int) -> bytes:
    """The 16 byte form of an address; an absent one is all zero."""
    if family == socket.AF_INET:
        return MAPPED + data[:4].ljust(4, b"\0")
    return data[:16].ljust(16, b"\0")


def _attributes(data: bytes | memoryview) -> dict[int, bytes]:
    found = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = bytes(data[offset + _ATTRIBUTE.size:offset + length])
        offset += _aligned(length)
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return (_ATTRIBUTE.pack(length, kind) + value).ljust(_aligned(length), b"\0")


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _number(attributes: dict[int, bytes], kind: int, absent: int = 0) -> int:
    value = attributes.get(kind, b"")
    return int(_U32.unpack_from(value)[0]) if len(value) >= _U32.size else absent


def _string(value: bytes) -> str:
    return value.split(b"\0", 1)[0].decode(errors="surrogateescape")


# The socket.


def _routes(family: int, table: int, kind: int, decode: Callable[[memoryview], Iterable[T]]) -> list[T]:
    """Routes of one family; ``table`` and ``kind`` (0: all) are filtered in the kernel where it can, else by decode."""
    body = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, kind, 0)
    if table:
        body += _attribute(_RTA_TABLE, _U32.pack(table))

    def of_family(data: memoryview) -> Iterable[T]:  # a kernel without IPv6 answers with all families
        return decode(data) if data[0] == family else ()

    try:
        return _dump("routes", _GETROUTE, body, of_family)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # no such table, or no such family
            return []
        raise


def _dump(what: str, request: int, body: bytes, decode: Callable[[memoryview], Iterable[T]]) -> list[T]:
    """All answers to a dump request, decoded one by one; raises OSError that says what was asked.

    A dump that a change interrupted is asked for again. If changes never stop, the last answer has to do:
    each of them is announced to the monitor, too.
    """
    found: list[T] = []
    for left in reversed(range(_TRIES)):
        try:
            found, whole = _dump_once(request, body, decode)
        except OSError as error:
            if error.errno == errno.ENOBUFS and left:
                continue
            raise OSError(error.errno, f"cannot list the {what} through netlink: {error.strerror}") from error
        if whole:
            break
    return found


def _dump_once(request: int, body: bytes, decode: Callable[[memoryview], Iterable[T]]) -> tuple[list[T], bool]:
    found: list[T] = []
    whole = True
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        with suppress(OSError):
            sock.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
        sock.bind((0, 0))
        sock.send(_HEADER.pack(_HEADER.size + len(body), request, _F_REQUEST | _F_DUMP, 1, 0) + body)
        while True:
            for kind, flags, payload in _messages(_receive(sock)):
                whole = whole and not flags & _F_DUMP_INTR
                if kind in (_DONE, _ERROR):
                    _raise(payload)
                    return found, whole
                if kind != _NOOP:
                    found.extend(decode(payload))


def _raise(payload: memoryview) -> None:
    code = -_ERRNO.unpack_from(payload)[0] if len(payload) >= _ERRNO.size else 0
    if code:
        raise OSError(code, os.strerror(code))


def _receive(sock: socket.socket) -> bytes:
    """One datagram; empty if it does not come from the kernel."""
    data, _, flags, sender = sock.recvmsg(_BUFFER)
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return data if sender[0] == 0 else b""


def _messages(data: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """Type, flags and payload of each message of a datagram."""
    view = memoryview(data)
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, flags, view[offset + _HEADER.size:offset + length]
        offset += _aligned(length)


def _widen(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _MONITOR_BUFFER)
    except OSError:  # needs CAP_NET_ADMIN; else as much as net.core.rmem_max allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _MONITOR_BUFFER)


def _attach_filter(sock: socket.socket) -> None:
    """Lets the kernel drop what ``_concern`` would: a router's million routes must not even wake this process."""
    instruction = struct.Struct("HBBI")
    load_half, load_byte, equal, give = 0x28, 0x30, 0x15, 0x06
    new, gone = socket.htons(_NEWROUTE), socket.htons(_DELROUTE)
    length, kind = _HEADER.size + 1, _HEADER.size + 7
    program = b"".join(instruction.pack(*row) for row in (
        (load_half, 0, 0, 4),
        (equal, 1, 0, new),
        (equal, 0, 4, gone),
        (load_byte, 0, 0, length),
        (equal, 2, 0, 0),
        (load_byte, 0, 0, kind),
        (equal, 0, 1, _LOCAL),
        (give, 0, 0, 0xFFFFFFFF),
        (give, 0, 0, 0),
    ))
    code = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("HP", len(program) // instruction.size, ctypes.addressof(code))
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
