/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The header walk: bytes of a frame -> struct packet. Pure: no maps, no clock.
 *
 * It answers one question, "is this a TCP segment that opens a connection, as
 * the host's own stack would read it?", and where it cannot answer it names
 * the reason. Lengths are judged only for a segment with the SYN flags, so
 * that any other packet costs a few loads.
 */
#ifndef PACKETWATCH_PACKET_H
#define PACKETWATCH_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

/* What the kernel needs to be told is the types in maps; for more the compiler takes a sixth of its time. */
#undef __always_inline
#define __always_inline inline __attribute__((always_inline, nodebug))

#ifndef VLAN_DEPTH
#define VLAN_DEPTH 12 /* tags; Linux has no limit, QinQ has 2 */
#endif
#ifndef EXTENSION_DEPTH
#define EXTENSION_DEPTH 160 /* chained IPv6 headers; Linux answers behind 150 */
#endif
#define HEADER_BYTES_MAX 0x3fff /* of all headers together; what the verifier can follow */

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS 0x3f /* without ECE and CWR */
#define TCP_HEADER_BYTES 20 /* without options */
#define BARE_ACK (5 << 12 | TCP_ACK) /* data offset and flags */
#define TCP_START_BYTES 14 /* up to and with the flags */
#define FRAGMENT_START_BYTES 16 /* the same in a first fragment: Linux cuts it to a multiple of 8 */
#define FRAGMENT_LEAST_BYTES 8 /* of any first fragment: the ports are in it */

/* Names in packetwatch/metricnames.py, in this order. */
enum malformed {
	MALFORMED_TRUNCATED, /* a header or its stated length ends beyond the frame */
	MALFORMED_IP_HEADER, /* version, IHL or total length cannot be */
	MALFORMED_IP_OPTIONS, /* an IPv4 option's length cannot be */
	MALFORMED_TCP_HEADER, /* data offset below 5 or beyond the segment */
	MALFORMED_FRAGMENT, /* first fragment too short for the TCP flags, or fragments within fragments */
	MALFORMED_VLAN_DEPTH, /* more tags than VLAN_DEPTH */
	MALFORMED_EXTENSION_DEPTH, /* more IPv6 headers than EXTENSION_DEPTH */
	MALFORMED_EXTENSION_ORDER, /* hop-by-hop options not in first place */
	MALFORMED_ROUTING_HEADER, /* IPv6 routing header with segments left */
	MALFORMED_REASONS
};

/* SYNs that the host itself would not take; names in metricnames.py too. */
enum ignored {
	IGNORED_NOT_LOCAL, /* destination is no address of this host */
	IGNORED_MARTIAN, /* source that no other host may have */
	IGNORED_FOREIGN_MAC, /* frame addressed to another station */
	IGNORED_SOURCE_ROUTE, /* IPv4 LSRR or SSRR */
	IGNORED_REASONS
};

enum walk {
	WALK_OTHER, /* no new TCP connection */
	WALK_SYN, /* or, where packet.probe says so, a segment that no connection has */
	WALK_MALFORMED, /* packet.reason is an enum malformed */
	WALK_IGNORED, /* packet.reason is an enum ignored */
	WALK_OPTIONS, /* WALK_SYN, unless judge_options() says otherwise */
	WALK_BARE, /* WALK_SYN, a probe, once read_bare() has read it */
};

union address { /* IPv6, or IPv4 as ::ffff:a.b.c.d; network byte order */
	__u8 bytes[16];
	__be32 words[4];
	__u64 halves[2];
};

struct packet {
	union address saddr;
	union address daddr;
	__be16 sport;
	__be16 dport;
	__u8 ipv6; /* read off the version field, so that the verifier sees one way, not two */
	__u8 reason;
	__u8 options_off; /* of IPv4 options, from the start of the frame */
	__u8 options_bytes; /* 0..40 */
	__u8 probe; /* neither SYN alone, nor with ACK or RST: no sender of TCP makes it */
	__u8 tiny; /* a first fragment that ends before the TCP flags, which no stack sends either: a probe */
	__u8 tcp_flags;
	__u8 network_off; /* of the IP header, from the start of the frame */
	__u8 bare; /* nothing but an acknowledgment, without options: a probe if no connection has it */
	__be32 ack_seq; /* of such a one */
#ifdef REPLAY
	union address source; /* as the frame has it; saddr is whom the tables know, see tell_hosts_apart() */
#endif
};

struct vlan_tag {
	__be16 tci;
	__be16 proto;
};

struct tcp_start {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff; /* high four bits, in words */
	__u8 flags;
};

struct extension {
	__u8 nexthdr;
	__u8 len; /* in 8 bytes, the first not counted */
	union {
		__be16 frag_off; /* fragment header: offset in the high 13 bits, M in bit 0 */
		struct {
			__u8 type;
			__u8 segments_left;
		} routing;
	};
	__be32 id;
};

static __always_inline enum walk malformed(struct packet *p, enum malformed reason)
{
	p->reason = reason;
	return WALK_MALFORMED;
}

/* Keeps the compiler from turning arithmetic on `x` back into branches. */
#define barrier_var(x) asm volatile("" : "+r"(x))

/*
 * The target of a jump, where the verifier asks whether it has been here with the same before. Put
 * where many ways end that make no difference to what follows. The kernel takes the jump out again.
 */
#define merge_ways() asm volatile("goto +0")

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

/*
 * Comparisons of small numbers that are no branches, of which each doubles the verifier's ways.
 * Newer clangs know what such a subtraction means: the barriers keep it from them.
 */
static __always_inline __u64 is_negative(__u64 x)
{
	barrier_var(x);
	x >>= 63;
	barrier_var(x);
	return x;
}

static __always_inline __u64 equal(__u64 a, __u64 b)
{
	return is_negative((a ^ b) - 1);
}

static __always_inline __u64 below(__u64 a, __u64 b)
{
	return is_negative(a - b);
}

/* SYN alone opens one; other segments without ACK and RST belong to none. */
static __always_inline int is_of_connection(const struct tcp_start *tcp)
{
	return tcp->flags & (TCP_ACK | TCP_RST);
}

/* As the answer to a challenge is, and what ACK scans send. Where both ends use time stamps, no other segment is. */
static __always_inline int is_bare(const struct tcp_start *tcp)
{
	return *(const __be16 *)&tcp->doff == bpf_htons(BARE_ACK);
}

static __always_inline void take_flags(const struct tcp_start *tcp, struct packet *p)
{
	p->tcp_flags = tcp->flags & TCP_FLAGS;
	p->probe = equal(tcp->flags & (TCP_SYN | TCP_FIN), TCP_SYN) ^ 1;
	p->tiny = 0;
	p->bare = 0;
}

/* segment: bytes of the TCP segment as the IP header states them. */
static __always_inline enum walk take_ports(const struct tcp_start *tcp, __u32 segment, int fragment, struct packet *p)
{
	__u32 header = (tcp->doff >> 4) * 4;

	if (header < 20 || (!fragment && header > segment))
		return malformed(p, MALFORMED_TCP_HEADER);
	p->sport = tcp->sport;
	p->dport = tcp->dport;
	return WALK_SYN;
}

#define IP_OPTION_BYTES 40
#define IP_OPTION_ROOM 64 /* a power of two, so that a mask keeps within it */
#define IP_OPTION_END 0
#define IP_OPTION_NONE 1
#define IP_OPTION_RECORD_ROUTE 7
#define IP_OPTION_TIMESTAMP 68
#define IP_OPTION_LOOSE_ROUTE 131
#define IP_OPTION_STRICT_ROUTE 137
#define IP_OPTION_ROUTER_ALERT 148

/* Whether a host drops for what the option holds; `seen` remembers those that may stand there once. */
static __always_inline __u64 is_bad_option(__u64 kind, __u64 length, __u64 pointer, __u64 last, __u64 *seen)
{
	__u64 flags = last & 15, overflows = last >> 4;
	__u64 route = equal(kind, IP_OPTION_RECORD_ROUTE), time = equal(kind, IP_OPTION_TIMESTAMP);
	__u64 once = route | time << 1, room = below(pointer, length + 1);
	__u64 place = 3 + 4 * (time & (equal(flags, 1) | equal(flags, 3))); /* an address besides */
	__u64 overflow = (room ^ 1) & (equal(flags, 3) ^ 1) & equal(overflows, 15);
	__u64 bad = (route | time) & (below(length, 3 + time) | below(pointer, 4 + time));

	bad |= (route | time) & room & below(length, pointer + place);
	bad |= (*seen & once) | (time & overflow);
	bad |= equal(kind, IP_OPTION_ROUTER_ALERT) & below(length, 4);
	*seen |= once;
	return bad;
}

/*
 * ip_options_compile() in net/ipv4/ip_options.c, as far as a default host drops for it; CIPSO is
 * left out. `o` is a copy of IP_OPTION_ROOM bytes in a map, which alone may be read at a place
 * that the verifier knows only the bounds of; in the packet or on the stack it would walk every
 * combination of options.
 */
static __always_inline enum walk judge_options(const __u8 *o, struct packet *p)
{
	__u64 at = 0, seen = 0, bad = 0, length = p->options_bytes;

	for (int i = 0; i < IP_OPTION_BYTES; i++) {
		__u64 kind = o[at & (IP_OPTION_ROOM - 1)], size = o[(at + 1) & (IP_OPTION_ROOM - 1)];
		__u64 none = equal(kind, IP_OPTION_NONE);

		if (at >= length || kind == IP_OPTION_END)
			break;
		if ((none ^ 1) & (below(size, 2) | below(length, at + size)))
			return malformed(p, MALFORMED_IP_OPTIONS);
		if (kind == IP_OPTION_LOOSE_ROUTE || kind == IP_OPTION_STRICT_ROUTE) {
			p->reason = IGNORED_SOURCE_ROUTE;
			return WALK_IGNORED;
		}
		bad |= is_bad_option(kind, size, o[(at + 2) & (IP_OPTION_ROOM - 1)], o[(at + 3) & (IP_OPTION_ROOM - 1)],
				     &seen);
		at += none + (none ^ 1) * size;
	}
	return bad ? malformed(p, MALFORMED_IP_OPTIONS) : WALK_SYN;
}

static __always_inline void take_ipv4(const struct iphdr *ip, __u64 off, __u32 header, struct packet *p)
{
	p->ipv6 = *(__u8 *)ip >> 5 & 1;
	p->saddr.halves[0] = 0;
	p->saddr.words[2] = bpf_htonl(0xffff);
	p->saddr.words[3] = ip->saddr;
	p->daddr.halves[0] = 0;
	p->daddr.words[2] = bpf_htonl(0xffff);
	p->daddr.words[3] = ip->daddr;
	p->options_off = off + sizeof(*ip);
	p->options_bytes = header - sizeof(*ip);
}

/* A first fragment with the ports and without the flags: whatever follows, it is a probe. */
static __always_inline enum walk walk_tiny(void *data, void *data_end, __u64 off, __u32 header, struct packet *p)
{
	struct iphdr *ip = data + off;
	__be16 *ports = data + off + header;

	p->reason = MALFORMED_FRAGMENT;
	if (bpf_ntohs(ip->tot_len) < header + FRAGMENT_LEAST_BYTES || (void *)(ports + 2) > data_end)
		return WALK_MALFORMED;
	p->sport = ports[0];
	p->dport = ports[1];
	p->tcp_flags = 0;
	p->probe = p->tiny = 1;
	p->bare = 0;
	take_ipv4(ip, off, header, p);
	return p->options_bytes ? WALK_OPTIONS : WALK_SYN;
}

static __always_inline enum walk walk_ipv4(void *data, void *data_end, __u64 off, struct packet *p)
{
	struct iphdr *ip = data + off;
	struct tcp_start *tcp;
	__u32 header, total, frame;
	enum walk verdict;
	__u16 frag;

	if ((void *)(ip + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	if (ip->protocol != IPPROTO_TCP)
		return WALK_OTHER;
	frag = bpf_ntohs(ip->frag_off);
	if (frag & 0x1fff)
		return WALK_OTHER;
	if (ip->version != 4 || ip->ihl < 5)
		return malformed(p, MALFORMED_IP_HEADER);
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	frag &= 0x2000;
	frame = data_end - data;
	if (frag && total < header + FRAGMENT_START_BYTES)
		return walk_tiny(data, data_end, off, header, p);
	tcp = data + off + header;
	if ((void *)(tcp + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	if (is_of_connection(tcp)) {
		if (!is_bare(tcp) || header != sizeof(*ip) || total != sizeof(*ip) + TCP_HEADER_BYTES)
			return WALK_OTHER;
		return WALK_BARE;
	}

	if (total < header + TCP_START_BYTES)
		return malformed(p, MALFORMED_IP_HEADER);
	if (off + total > frame)
		return malformed(p, MALFORMED_TRUNCATED);
	verdict = take_ports(tcp, total - header, frag, p);
	if (verdict != WALK_SYN)
		return verdict;
	take_flags(tcp, p);
	take_ipv4(ip, off, header, p);
	return p->options_bytes ? WALK_OPTIONS : WALK_SYN;
}

static __always_inline int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_ROUTING ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline void take_ipv6(const struct ipv6hdr *ip, struct packet *p)
{
	p->ipv6 = *(__u8 *)ip >> 5 & 1;
	__builtin_memcpy(&p->saddr, &ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ip->daddr, sizeof(p->daddr));
}

static __always_inline enum walk walk_ipv6(void *data, void *data_end, __u64 off, struct packet *p)
{
	struct ipv6hdr *ip = data + off;
	__u64 start = off + sizeof(*ip), end;
	struct tcp_start *tcp;
	__u64 fragment = 0; /* bit 0: more follow; bit 1: there is a fragment header; bit 2: there are two */
	__u8 next;

	if ((void *)(ip + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	next = ip->nexthdr;
	off = start;
	for (int i = 0; i < EXTENSION_DEPTH && next != IPPROTO_TCP; i++) {
		struct extension *ext = data + off;
		__u64 size, is_fragment;

		if ((void *)(ext + 1) > data_end)
			return is_extension(next) ? malformed(p, MALFORMED_TRUNCATED) : WALK_OTHER;
		/*
		 * Without a branch and before any test of `next`, so that for the verifier there is
		 * one way through an iteration, not one per kind of header: else 160 are too many.
		 */
		is_fragment = equal(next, IPPROTO_FRAGMENT);
		size = 8 + 8 * (ext->len & (is_fragment - 1));
		fragment |= ((bpf_ntohs(ext->frag_off) & 1) | 2 | (fragment & 2) << 1) & -is_fragment;
		barrier_var(size);
		barrier_var(fragment);
		if (!is_extension(next))
			return WALK_OTHER;
		if (next == IPPROTO_FRAGMENT && ext->frag_off & bpf_htons(0xfff8))
			return WALK_OTHER;
		if (next == IPPROTO_HOPOPTS && i)
			return malformed(p, MALFORMED_EXTENSION_ORDER);
		if (next == IPPROTO_ROUTING && ext->routing.segments_left)
			return malformed(p, MALFORMED_ROUTING_HEADER);
		next = ext->nexthdr;
		off += size;
		if (off > HEADER_BYTES_MAX)
			return malformed(p, MALFORMED_EXTENSION_DEPTH);
	}
	if (next != IPPROTO_TCP)
		return malformed(p, MALFORMED_EXTENSION_DEPTH);
	end = start + bpf_ntohs(ip->payload_len);
	/* Meant for jumbograms, but Linux does not ask whether it is one. */
	if (end == start && ip->nexthdr == IPPROTO_HOPOPTS && !fragment)
		end = data_end - data;
	if (fragment & 4 || (fragment & 1 && (off + TCP_START_BYTES > end || (end - off) & 7)))
		return malformed(p, MALFORMED_FRAGMENT);
	tcp = data + off;
	if ((void *)(tcp + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	if (is_of_connection(tcp)) {
		if (!is_bare(tcp) || off != start || end != off + TCP_HEADER_BYTES)
			return WALK_OTHER;
		return WALK_BARE;
	}

	if (ip->version != 6 || off + TCP_START_BYTES > end)
		return malformed(p, MALFORMED_IP_HEADER);
	if (end > data_end - data)
		return malformed(p, MALFORMED_TRUNCATED);
	take_ipv6(ip, p);
	take_flags(tcp, p);
	return take_ports(tcp, end - off, fragment & 1, p);
}

/* A bare acknowledgment, of which the walk has seen that nothing stands between its headers. */
static __always_inline enum walk read_bare(void *data, void *data_end, __u64 off, __be16 proto, struct packet *p)
{
	struct tcp_start *tcp = data + off + sizeof(struct iphdr);
	struct ipv6hdr *ip = data + off;

	if (proto == bpf_htons(ETH_P_IPV6)) {
		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > data_end)
			return WALK_OTHER;
		take_ipv6(ip, p);
	} else {
		if ((void *)(tcp + 1) > data_end)
			return WALK_OTHER;
		take_ipv4(data + off, off, sizeof(struct iphdr), p);
	}
	take_flags(tcp, p);
	p->bare = 1;
	p->sport = tcp->sport;
	p->dport = tcp->dport;
	p->ack_seq = tcp->ack_seq;
	return WALK_SYN;
}

/*
 * The same offset, of which the verifier knows only the bounds: it would otherwise walk all that
 * follows once for every number of tags. A value minus itself is unknown to it.
 */
static __always_inline __u64 blur(__u64 off, __u64 any)
{
	__u64 same = any;

	barrier_var(same);
	return (off + any - same) & 0x7f;
}
_Static_assert(ETH_HLEN + 4 * VLAN_DEPTH <= 0x7f, "blur() cuts the offset");

/* Offset of the network header and, in `proto`, its kind; 0 where the frame ends before it. */
static __always_inline __u64 walk_tags(void *data, void *data_end, __be16 *proto)
{
	struct ethhdr *eth = data;
	__u64 off = sizeof(*eth);

	if ((void *)(eth + 1) > data_end)
		return 0;
	*proto = eth->h_proto;
	for (int i = 0; i < VLAN_DEPTH && is_vlan(*proto); i++) {
		struct vlan_tag *tag = data + off;

		if ((void *)(tag + 1) > data_end)
			return 0;
		*proto = tag->proto;
		off += sizeof(*tag);
	}
	return blur(off, *proto);
}

static __always_inline enum walk walk_network(void *data, void *data_end, __u64 off, __be16 proto, struct packet *p)
{
	if (!off)
		return malformed(p, MALFORMED_TRUNCATED);
	if (proto == bpf_htons(ETH_P_IP))
		return walk_ipv4(data, data_end, off, p);
	if (proto == bpf_htons(ETH_P_IPV6))
		return walk_ipv6(data, data_end, off, p);
	if (is_vlan(proto))
		return malformed(p, MALFORMED_VLAN_DEPTH);
	return WALK_OTHER;
}

static __always_inline int is_mapped(const union address *a)
{
	return !a->halves[0] && a->words[2] == bpf_htonl(0xffff);
}

static __always_inline int is_loopback6(const union address *a)
{
	return !a->halves[0] && !a->words[2] && a->words[3] == bpf_htonl(1);
}

/*
 * Addresses that no other host may send from or to, whatever this host's are:
 * ip_route_input_slow(), ip6_rcv_core(), tcp_v6_conn_request(). Those of the loopback are legal on
 * a loopback device. Linux takes 0.1.2.3 since 5.3, but nobody can be there.
 */
static __always_inline int is_martian(const struct packet *p, int loopback)
{
	const __u8 *b = p->saddr.bytes;

	if (!p->ipv6) {
		if (b[12] == 0 || (b[12] & 0xf0) == 0xe0 || p->saddr.words[3] == 0xffffffff)
			return 1;
		return !loopback && (b[12] == 127 || p->daddr.bytes[12] == 127);
	}
	if (b[0] == 0xff || is_mapped(&p->saddr))
		return 1;
	return !loopback && (is_loopback6(&p->saddr) || is_loopback6(&p->daddr));
}

#endif
