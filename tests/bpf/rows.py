# SPDX-License-Identifier: Apache-2.0
"""The table of frames: what a Linux host takes for a new connection, and what a naive reader mistakes for one.

One row is judged by the kernel half under BPF_PROG_TEST_RUN (test_frames) and, sent over a wire,
by a live listener (test_stack).
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

from packetwatch.metricnames import IGNORED, MALFORMED
from tests import frames as f

#: TINY: a first fragment that ends before the flags, malformed and a probe.
SYN, PROBE, TINY, OTHER = "syn", "probe", "tiny", "other"
WORDS = {SYN, PROBE, TINY, OTHER, *IGNORED, *MALFORMED}


class Ends(NamedTuple):
    """Who speaks with whom; MACs are bytes, addresses text."""

    client_mac: bytes
    server_mac: bytes
    client4: str
    server4: str
    client6: str
    server6: str
    sport: int
    dport: int
    seq: int = 0x1000


class Row(NamedTuple):
    """`expected`: a word for each frame. `why` is set where count and answer differ, which is then asserted."""

    description: str
    build: Callable[[Ends], list[bytes]]
    expected: tuple[str, ...]
    why: str = ""
    sport: Optional[int] = None  #: where the row is about the source port

    @property
    def counted(self) -> bool:
        return SYN in self.expected

    @property
    def answered(self) -> bool:
        return self.counted != bool(self.why)


def segment(e, src, dst, **fields):
    return f.tcp(src, dst, e.sport, e.dport, **{"seq": e.seq, **fields})


def v4(*, src=None, dst=None, tcp={}, ip={}, **eth):
    def build(e):
        ends = src or e.client4, dst or e.server4
        return [wire(e, f.ipv4(*named(e, ends), segment(e, *named(e, ends), **tcp), **ip), **eth)]

    return build


def v6(*extensions, src=None, dst=None, tcp={}, ip={}, **eth):
    def build(e):
        ends = named(e, (src or e.client6, dst or e.server6))
        return [wire(e, f.ipv6(*ends, segment(e, *ends, **tcp), extensions, **ip), **eth)]

    return build


def named(e, ends):
    """`own4` and `own6` stand for the listener's addresses."""
    return tuple({"own4": e.server4, "own6": e.server6}.get(end, end) for end in ends)


def wire(e, packet, *, to=None, cut=None, pad=0, **fields):
    frame = f.ethernet(packet, e.server_mac if to is None else f.mac(to), e.client_mac, **fields)
    return (frame + bytes(pad))[:cut]


def v4_fragments(size, order=1):
    def build(e):
        whole = segment(e, e.client4, e.server4, options=bytes.fromhex("020405b4"))
        packets = f.ipv4_fragments(e.client4, e.server4, whole, size, ident=e.sport)
        return [wire(e, packet) for packet in packets][::order]

    return build


def v4_first_and_rest(first, rest_from, **tcp):
    """A first fragment of `first` bytes, then a last one from `rest_from` on."""

    def build(e):
        whole = segment(e, e.client4, e.server4, **tcp)
        parts = (whole[:first], 0, True), (whole[rest_from:], rest_from, False)
        return [
            wire(e, f.ipv4(e.client4, e.server4, data, offset=at, more=more, ident=e.sport)) for data, at, more in parts
        ]

    return build


def v6_fragments(size, *before, order=1, **tcp):
    def build(e):
        whole = segment(e, e.client6, e.server6, **tcp)
        packets = []
        for at in range(0, len(whole), size):
            header = f.fragment_header(at, at + size < len(whole), e.sport)
            packets.append(f.ipv6(e.client6, e.server6, whole[at : at + size], [*before, header]))
        return [wire(e, packet) for packet in packets][::order]

    return build


def v4_raw(payload, **ip):
    return lambda e: [wire(e, f.ipv4(e.client4, e.server4, payload, **ip))]


def v6_raw(payload, *extensions, **ip):
    return lambda e: [wire(e, f.ipv6(e.client6, e.server6, payload, extensions, **ip))]


def in_tags(count, tpid=f.ETH_8021Q, vlan=0, build=v4):
    return build(tags=[(tpid, vlan)] * count)


def mapped(text):
    """An IPv4 address as IPv6, which on the wire is nobody's."""
    return bytes(10) + b"\xff\xff" + f.packed(text)


def row(description, build, *expected, why="", sport=None):
    assert set(expected) <= WORDS, description
    return Row(description, build, expected, why, sport)


OPTION = f.ipv4_option
DSTOPTS = f.options_header(f.DESTINATION)
FRAGMENT_ROOM = {"options": bytes.fromhex("020405b4"), "payload": b"x" * 24}  # 48 bytes of segment
SYN_BYTES = f.tcp("192.0.2.1", "192.0.2.2", 1, 2)
NOT_MODELLED = "left to the stack, as checksums are"

REACHES = [
    row("IPv4", v4(), SYN),
    *(row(f"IPv4, IHL {5 + n}, no-operations", v4(ip={"options": f.NOOP * 4 * n}), SYN) for n in range(1, 11)),
    row("IPv4, record route with room for 9", v4(ip={"options": OPTION(7, b"\4" + bytes(36))}), SYN),
    row("IPv4, record route that is full", v4(ip={"options": OPTION(7, b"\x08" + bytes(4))}), SYN),
    row("IPv4, record route that never had room", v4(ip={"options": OPTION(7, b"\4")}), SYN),
    row("IPv4, timestamps", v4(ip={"options": OPTION(68, b"\5\0" + bytes(8))}), SYN),
    row("IPv4, timestamps with addresses", v4(ip={"options": OPTION(68, b"\5\1" + bytes(8))}), SYN),
    row("IPv4, timestamps, full, of 14 more hosts", v4(ip={"options": OPTION(68, b"\x09\xe0" + bytes(4))}), SYN),
    row("IPv4, timestamps of chosen hosts, full", v4(ip={"options": OPTION(68, b"\x0d\xf3" + bytes(8))}), SYN),
    row("IPv4, record route and timestamps",
        v4(ip={"options": OPTION(7, b"\4" + bytes(4)) + OPTION(68, b"\5\0" + bytes(4))}), SYN),
    row("IPv4, unknown option twice", v4(ip={"options": OPTION(30, b"") * 2}), SYN),
    row("IPv4, router alert", v4(ip={"options": OPTION(148, bytes(2))}), SYN),
    row("IPv4, unknown option", v4(ip={"options": OPTION(30, bytes(6))}), SYN),
    row("IPv4, what looks like LSRR behind the end of options", v4(ip={"options": f.END + b"\x83\3\4"}), SYN),
    row("IPv4, what looks like LSRR inside another option", v4(ip={"options": OPTION(30, b"\x83\3\4")}), SYN),
    row("IPv4, fragments of 16 bytes", v4_fragments(16), SYN, OTHER),
    row("IPv4, fragments of 16 bytes, last first", v4_fragments(16, -1), OTHER, SYN),
    row("IPv4, fragments of 8 bytes", v4_fragments(8), TINY, OTHER, OTHER, why="no first fragment has the flags"),
    row("IPv4, fragments of 8 bytes, last first", v4_fragments(8, -1), OTHER, OTHER, TINY, why="as in order"),
    row("IPv4, first fragment with options", v4_first_and_rest(24, 24, **FRAGMENT_ROOM), SYN, OTHER),
    row("802.1Q priority tag", in_tags(1), SYN),
    row("802.1ad priority tag", in_tags(1, f.ETH_8021AD), SYN),
    row("802.1ad around 802.1Q", v4(tags=[(f.ETH_8021AD, 0), (f.ETH_8021Q, 0)]), SYN),
    row("priority tags with a priority", v4(tags=[(f.ETH_8021Q, 7 << 13), (f.ETH_8021Q, 1 << 12)]), SYN),
    row("10 tags", in_tags(10), SYN),
    row("10 tags, IPv6", in_tags(10, build=v6), SYN),
    row("10 tags of 802.1ad, IPv6", in_tags(10, f.ETH_8021AD, build=v6), SYN),
    row("12 tags", in_tags(12), SYN),
    row("12 tags, IHL 15", v4(tags=[(f.ETH_8021Q, 0)] * 12, ip={"options": f.NOOP * 40}), SYN),
    row("13 tags", in_tags(13), "vlan_depth", why="a bound is needed"),
    row("IPv6", v6(), SYN),
    *(row(f"IPv6, hop-by-hop options of {n} bytes", v6(f.options_header(f.HOP_BY_HOP, n)), SYN)
      for n in (8, 16, 24, 64, 128, 256, 512, 1024)),
    *(row(f"IPv6, destination options of {n} bytes", v6(f.options_header(f.DESTINATION, n)), SYN)
      for n in (8, 16, 24, 64, 128, 256, 512, 1024)),
    *(row(f"IPv6, {n} headers", v6(*[DSTOPTS] * n), SYN) for n in (2, 3, 10, 64, 100, 150, 159, 160)),
    row("IPv6, 161 headers", v6(*[DSTOPTS] * 161), "extension_depth", why="a bound is needed"),
    row("IPv6, hop-by-hop, destination, routing, fragment, destination",
        v6(f.options_header(f.HOP_BY_HOP), DSTOPTS, f.routing_header(0, 0), f.fragment_header(), DSTOPTS), SYN),
    row("IPv6, routing header 0 with no segments left", v6(f.routing_header(0, 0)), SYN),
    row("IPv6, routing header 0 of 40 bytes with no segments left", v6(f.routing_header(0, 0, bytes(36))), SYN),
    row("IPv6, unknown routing header with no segments left", v6(f.routing_header(77, 0)), SYN),
    row("IPv6, atomic fragment", v6(f.fragment_header()), SYN),
    row("IPv6, atomic fragment behind options", v6(DSTOPTS, f.fragment_header()), SYN),
    row("IPv6, fragments", v6_fragments(24, **FRAGMENT_ROOM), SYN, OTHER),
    row("IPv6, fragments, last first", v6_fragments(24, order=-1, **FRAGMENT_ROOM), OTHER, SYN),
    row("IPv6, fragments behind options", v6_fragments(24, DSTOPTS, **FRAGMENT_ROOM), SYN, OTHER),
    row("IPv6, hop-by-hop options and no payload length", v6(f.options_header(f.HOP_BY_HOP), ip={"length": 0}), SYN),
    *(row(f"{words} with {name}", build(tcp={"flags": f.SYN | flags}), SYN)
      for words, build in (("IPv4", v4), ("IPv6", v6))
      for name, flags in (("ECE and CWR", f.ECE | f.CWR), ("ECE", f.ECE), ("PSH", f.PSH), ("URG", f.URG),
                          ("PSH, URG, ECE and CWR", f.PSH | f.URG | f.ECE | f.CWR))),
    row("reserved bits", v4(tcp={"reserved": 0xE}), SYN),
    row("the accurate ECN bit", v4(tcp={"reserved": 1, "flags": f.SYN | f.ECE | f.CWR}), SYN),
    row("SYN with data", v4(tcp={"payload": b"GET /"}), SYN),
    row("SYN with data, IPv6", v6(tcp={"payload": b"GET /"}), SYN),
    row("SYN with all the options there is room for", v4(tcp={"options": f.NOOP * 40}), SYN),
    row("TCP fast open, cookie asked for", v4(tcp={"options": bytes.fromhex("01012202")}), SYN),
    row("TCP fast open, cookie and data", v4(tcp={"options": b"\x22\x0a" + bytes(8) + b"\1\1", "payload": b"x"}), SYN),
    row("padded to the least an Ethernet has", v4(pad=6), SYN),
    row("padded, IPv6", v6(pad=6), SYN),
    row("source port 0", v4(), SYN, sport=0),
    row("source port 65535", v6(), SYN, sport=65535),
    row("source in 240/4", v4(src="240.0.0.1"), SYN),
    row("source ::", v6(src="::"), SYN),
    row("source ::192.0.2.1", v6(src="::192.0.2.1"), SYN),
    row("source fe80::1", v6(src="fe80::1"), SYN),
]

DISCARDED = [
    row("TCP checksum wrong", v4(tcp={"bad": 1}), SYN, why=NOT_MODELLED),
    row("TCP checksum wrong, IPv6", v6(tcp={"bad": 1}), SYN, why=NOT_MODELLED),
    row("IPv4 checksum wrong", v4(ip={"bad": 1}), SYN, why=NOT_MODELLED),
    *(row(f"data offset {n}", v4(tcp={"doff": n}), "tcp_header") for n in (0, 4)),
    *(row(f"data offset {n}, IPv6", v6(tcp={"doff": n}), "tcp_header") for n in (0, 4)),
    row("data offset beyond the packet", v4(tcp={"doff": 6}), "tcp_header"),
    row("data offset beyond the packet, IPv6", v6(tcp={"doff": 6}), "tcp_header"),
    row("data offset beyond the packet, inside the frame", v4(tcp={"doff": 6}, pad=8), "tcp_header"),
    row("SYN and FIN", v4(tcp={"flags": f.SYN | f.FIN}), PROBE),
    row("SYN and RST", v4(tcp={"flags": f.SYN | f.RST}), OTHER),
    row("SYN and ACK", v4(tcp={"flags": f.SYN | f.ACK}), OTHER),
    row("SYN and FIN, IPv6", v6(tcp={"flags": f.SYN | f.FIN}), PROBE),
    *(row(name, v4(tcp={"flags": flags}), OTHER)
      for name, flags in (("ACK", f.ACK), ("RST", f.RST), ("all flags", 0xFF))),
    *(row(name, v4(tcp={"flags": flags}), PROBE)
      for name, flags in (("no flags", 0), ("FIN", f.FIN), ("FIN, PSH and URG", f.FIN | f.PSH | f.URG))),
    row("FIN, IPv6", v6(tcp={"flags": f.FIN}), PROBE),
    row("destination MAC of another", v4(to="02:00:00:00:00:77"), "foreign_mac"),
    row("destination MAC of another, IPv6", v6(to="02:00:00:00:00:77"), "foreign_mac"),
    row("destination MAC broadcast", v4(to="ff:ff:ff:ff:ff:ff"), "foreign_mac"),
    row("destination MAC multicast", v4(to="01:00:5e:00:00:01"), "foreign_mac"),
    row("destination MAC multicast, IPv6", v6(to="33:33:00:00:00:01"), "foreign_mac"),
    row("destination not ours", v4(dst="198.51.100.9"), "not_local"),
    row("destination not ours, IPv6", v6(dst="2001:db8:9::9"), "not_local"),
    row("destination the subnet's broadcast address", v4(dst="10.9.0.255"), "not_local"),
    row("destination 255.255.255.255", v4(dst="255.255.255.255"), "not_local"),
    row("destination 224.0.0.1", v4(dst="224.0.0.1"), "not_local"),
    row("destination ff02::1", v6(dst="ff02::1"), "not_local"),
    row("destination 0.0.0.0", v4(dst="0.0.0.0"), "not_local"),
    row("destination 127.0.0.1", v4(dst="127.0.0.1"), "martian"),
    row("destination ::1", v6(dst="::1"), "martian"),
    row("destination ours, as a v4-mapped one", v6(dst=mapped("10.9.0.1")), "not_local"),
    row("source own", v4(src="own4"), "martian"),
    row("source own, IPv6", v6(src="own6"), "martian"),
    *(row(f"source {text}", v4(src=text), "martian")
      for text in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "224.0.0.1", "239.255.255.255", "255.255.255.255")),
    *(row(f"source {text}", v6(src=text), "martian") for text in ("::1", "ff02::1", "ff0e::9")),
    row("source v4-mapped", v6(src=mapped("192.0.2.7")), "martian"),
    row("loose source route", v4(ip={"options": OPTION(131, b"\4" + bytes(4))}), "source_route"),
    row("strict source route", v4(ip={"options": OPTION(137, b"\4" + bytes(4))}), "source_route"),
    row("loose source route that is used up", v4(ip={"options": OPTION(131, b"\x08" + bytes(4))}), "source_route"),
    row("loose source route behind others",
        v4(ip={"options": f.NOOP + OPTION(7, b"\4" + bytes(8)) + OPTION(131, b"\4" + bytes(4))}), "source_route"),
    row("option with length 0", v4(ip={"options": b"\x1e\0\0\0"}), "ip_options"),
    row("option with length 1", v4(ip={"options": b"\x1e\1\0\0"}), "ip_options"),
    row("option that ends behind the header", v4(ip={"options": b"\x1e\5\0\0"}), "ip_options"),
    row("option of 40 bytes and one more", v4(ip={"options": b"\x1e\x29" + bytes(38)}), "ip_options"),
    row("option without a length", v4(ip={"options": f.NOOP * 3 + b"\x1e"}), "ip_options"),
    row("option without a length in the 40th byte", v4(ip={"options": f.NOOP * 39 + b"\x1e"}), "ip_options"),
    row("record route with an impossible pointer", v4(ip={"options": OPTION(7, b"\3" + bytes(4))}), "ip_options"),
    row("record route with half a place", v4(ip={"options": OPTION(7, b"\6" + bytes(4))}), "ip_options"),
    row("record route without a pointer", v4(ip={"options": OPTION(7, b"")}), "ip_options"),
    row("record route twice", v4(ip={"options": OPTION(7, b"\4" + bytes(4)) * 2}), "ip_options"),
    row("timestamps with an impossible pointer", v4(ip={"options": OPTION(68, b"\4\0" + bytes(4))}), "ip_options"),
    row("timestamps without flags", v4(ip={"options": OPTION(68, b"\5")}), "ip_options"),
    row("timestamps with addresses, room for none", v4(ip={"options": OPTION(68, b"\5\1" + bytes(4))}), "ip_options"),
    row("timestamps of chosen hosts, room for none", v4(ip={"options": OPTION(68, b"\5\3" + bytes(4))}), "ip_options"),
    row("timestamps, full, of 15 more hosts", v4(ip={"options": OPTION(68, b"\x09\xf0" + bytes(4))}), "ip_options"),
    row("timestamps twice", v4(ip={"options": OPTION(68, b"\5\0" + bytes(4)) * 2}), "ip_options"),
    row("router alert of 3 bytes", v4(ip={"options": OPTION(148, b"\0")}), "ip_options"),
    row("IHL 4", v4(ip={"ihl": 4}), "ip_header"),
    row("IHL beyond the total length", v4_raw(bytes(40) + SYN_BYTES, ihl=15, total=40), "ip_header"),
    row("version 5", v4(ip={"version": 5}, proto=f.ETH_IPV4), "ip_header"),
    row("version 6 in an IPv4 frame", v4(ip={"version": 6}, proto=f.ETH_IPV4), "ip_header"),
    row("version 4 in an IPv6 frame", v6(ip={"version": 4}, proto=f.ETH_IPV6), "ip_header"),
    row("total length of the header alone", v4(ip={"total": 20}), "ip_header"),
    row("total length that cuts TCP's flags", v4(ip={"total": 33}), "ip_header"),
    row("total length that cuts TCP's checksum", v4(ip={"total": 36}), "tcp_header"),
    row("total length beyond the frame", v4(ip={"total": 41}), "truncated"),
    row("payload length that cuts TCP's flags", v6(ip={"length": 13}), "ip_header"),
    row("payload length 0", v6(ip={"length": 0}), "ip_header"),
    row("payload length that cuts TCP's checksum", v6(ip={"length": 16}), "tcp_header"),
    row("payload length beyond the frame", v6(ip={"length": 21}), "truncated"),
    row("payload length that ends inside an extension header", v6(DSTOPTS, ip={"length": 7}), "ip_header"),
    row("hop-by-hop options in second place", v6(DSTOPTS, f.options_header(f.HOP_BY_HOP)), "extension_order"),
    row("hop-by-hop options twice", v6(*[f.options_header(f.HOP_BY_HOP)] * 2), "extension_order"),
    row("routing header 0 with a segment left", v6(f.routing_header(0, 1, bytes(20))), "routing_header"),
    row("unknown routing header with a segment left", v6(f.routing_header(77, 1, bytes(20))), "routing_header"),
    row("extension header that ends behind the frame",
        v6(f.Extension(f.DESTINATION, b"\x05\1\4" + bytes(4))), "truncated"),
    row("source 0.1.2.3", v4(src="0.1.2.3"), "martian", why="nobody can be there, though Linux answers since 5.3"),
    row("routing header 3 with no segments left", v6(f.routing_header(3, 0)), SYN, why="Linux wants a setting for it"),
    row("routing header 4 with no segments left", v6(f.routing_header(4, 0)), SYN, why="Linux wants a setting for it"),
    row("TCP MD5 signature that nobody asked for", v4(tcp={"options": b"\x13\x12" + bytes(16) + f.NOOP * 2}), SYN,
        why="the walk does not read options"),
    row("destination option that a receiver must refuse", v6(f.Extension(f.DESTINATION, b"\0\x41\4" + bytes(4))), SYN,
        why="the walk does not read options"),
    row("two atomic fragment headers", v6(f.fragment_header(), f.fragment_header()), "fragment"),
    row("two fragment headers with options between", v6(f.fragment_header(), DSTOPTS, f.fragment_header()), "fragment"),
    row("hop-by-hop options, an atomic fragment and no payload length",
        v6(f.options_header(f.HOP_BY_HOP), f.fragment_header(), ip={"length": 0}), "ip_header"),
    row("first fragment of 16 bytes, IPv6", v6_fragments(16), SYN, OTHER,
        why="has the flags; Linux wants the whole header since 5.11 (RFC 8200)"),
    row("first fragment of 14 bytes", v4_first_and_rest(14, 16), TINY, OTHER),
    row("first fragment of 8 bytes, IPv6", v6_fragments(8), "fragment", OTHER, OTHER),
    row("first fragment of 22 bytes, IPv6", v6_raw(SYN_BYTES + b"xx", f.fragment_header(0, True)), "fragment"),
    *(row(f"fragment at {8 << n} that looks like a SYN", v4_raw(SYN_BYTES, offset=8 << n), OTHER) for n in range(13)),
    row("fragment at 65528 that looks like a SYN", v4_raw(SYN_BYTES[:7], offset=65528), OTHER),
    *(row(f"fragment at {8 << n} that looks like a SYN, IPv6", v6_raw(SYN_BYTES, f.fragment_header(8 << n)), OTHER)
      for n in range(13)),
    row("fragment in the middle that looks like a SYN", v4_raw(SYN_BYTES + bytes(4), offset=64, more=True), OTHER),
    row("UDP", v4_raw(SYN_BYTES, proto=f.UDP), OTHER),
    row("UDP, IPv6", v6_raw(SYN_BYTES, last=f.UDP), OTHER),
    row("UDP behind options", v6_raw(SYN_BYTES, DSTOPTS, last=f.UDP), OTHER),
    row("no next header", v6_raw(SYN_BYTES, DSTOPTS, last=f.NO_NEXT), OTHER),
    row("authentication header", v6_raw(bytes([f.TCP, 4]) + bytes(22) + SYN_BYTES, last=51), OTHER),
    row("IPv4 in IPv4", v4_raw(f.ipv4("192.0.2.1", "192.0.2.2", SYN_BYTES), proto=4), OTHER),
    row("IPv4 in IPv6", v6_raw(f.ipv4("192.0.2.1", "192.0.2.2", SYN_BYTES), last=4), OTHER),
    row("ARP", v4(proto=0x0806), OTHER),
    row("a length instead of an EtherType", v4(proto=40), OTHER),
    row("VLAN 5, which no device of the host is in", in_tags(1, vlan=5), SYN, why="the walk knows no VLAN devices"),
    row("VLAN 5 inside a priority tag", v4(tags=[(f.ETH_8021AD, 0), (f.ETH_8021Q, 5)]), SYN, why="as for VLAN 5"),
    row("EtherType 9100", v4(tags=[(0x9100, 0)]), OTHER),
    row("IPv6 behind the EtherType of IPv4", v6(proto=f.ETH_IPV4), OTHER),
    row("VLAN tag that ends with the frame", v4(tags=[(f.ETH_8021Q, 0)], cut=18), "truncated"),
    row("VLAN tag cut in two", v4(tags=[(f.ETH_8021Q, 0)], cut=16), "truncated"),
    row("second VLAN tag cut in two", v4(tags=[(f.ETH_8021Q, 0)] * 2, cut=20), "truncated"),
    *(row(f"cut to {n} bytes", v4(cut=n), "truncated") for n in range(14, 54)),
    *(row(f"cut to {n} bytes, IPv6", v6(cut=n), "truncated") for n in range(14, 74)),
    *(row(f"cut to {n} bytes, options", v4(ip={"options": f.NOOP * 40}, cut=n), "truncated") for n in range(34, 94, 3)),
    *(row(f"cut to {n} bytes, extension headers", v6(DSTOPTS, DSTOPTS, cut=n), "truncated") for n in range(54, 90, 3)),
]

ROWS = REACHES + DISCARDED
