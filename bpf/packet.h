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

#ifndef VLAN_DEPTH
#define VLAN_DEPTH 12 /* tags; Linux has no limit, QinQ has 2 */
#endif
#ifndef EXTENSION_DEPTH
#define EXTENSION_DEPTH 160 /* chained IPv6 headers; Linux answers behind 150 */
#endif
#define HEADER_BYTES_MAX 0x3fff /* of all headers together; what the verifier can follow */

#define TCP_FLAG_BITS 0x17 /* ACK, RST, SYN, FIN */
#define TCP_SYN_ONLY 0x02
#define TCP_START_BYTES 14 /* up to and with the flags */

/* Names in packetwatch/metricnames.py, in this order. */
enum malformed {
	MALFORMED_TRUNCATED, /* a header or its stated length ends beyond the frame */
	MALFORMED_IP_HEADER, /* version, IHL or total length cannot be */
	MALFORMED_IP_OPTIONS, /* an IPv4 option's length cannot be */
	MALFORMED_TCP_HEADER, /* data offset below 5 or beyond the segment */
	MALFORMED_FRAGMENT, /* first fragment too short for the TCP flags */
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
	WALK_SYN,
	WALK_MALFORMED, /* packet.reason is an enum malformed */
	WALK_IGNORED, /* packet.reason is an enum ignored */
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

static __always_inline int is_vlan(__be16 proto)
{
	return proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD);
}

static __always_inline int opens_connection(const struct tcp_start *tcp)
{
	return (tcp->flags & TCP_FLAG_BITS) == TCP_SYN_ONLY;
}

/* segment: bytes of the TCP segment as the IP header states them. */
static __always_inline enum walk take_ports(const struct tcp_start *tcp, __u32 segment, int fragment,
					    struct packet *p)
{
	__u32 header = (tcp->doff >> 4) * 4;

	if (header < 20 || (!fragment && header > segment))
		return malformed(p, MALFORMED_TCP_HEADER);
	p->sport = tcp->sport;
	p->dport = tcp->dport;
	return WALK_SYN;
}

#define IP_OPTION_WORDS 10

/*
 * ip_options_compile() in net/ipv4/ip_options.c, as far as a default host drops for it. The bytes
 * are copied first and then read at fixed places: a moving packet offset costs the verifier more
 * than the million instructions it has.
 */
static __always_inline enum walk walk_ip_options(const __be32 *words, void *data_end, __u32 length, struct packet *p)
{
	__be32 copy[IP_OPTION_WORDS] = {};
	__u8 *options = (__u8 *)copy;
	__u32 next = 0;

	for (__u32 i = 0; i < IP_OPTION_WORDS && i * 4 < length; i++) {
		if ((void *)(words + i + 1) > data_end)
			return malformed(p, MALFORMED_TRUNCATED);
		copy[i] = words[i];
	}
	for (__u32 i = 0; i < sizeof(copy); i++) {
		if (i != next)
			continue;
		next = i + 1;
		if (i >= length || options[i] == 0)
			break;
		if (options[i] == 1)
			continue;
		if (i + 1 == sizeof(copy) || options[i + 1] < 2 || i + options[i + 1] > length)
			return malformed(p, MALFORMED_IP_OPTIONS);
		if (options[i] == 131 || options[i] == 137) {
			p->reason = IGNORED_SOURCE_ROUTE;
			return WALK_IGNORED;
		}
		next = i + options[i + 1];
	}
	return WALK_SYN;
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
	if (frag && total < header + TCP_START_BYTES)
		return malformed(p, MALFORMED_FRAGMENT);
	tcp = data + off + header;
	if ((void *)(tcp + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	if (!opens_connection(tcp))
		return WALK_OTHER;

	frame = data_end - data;
	if (total < header + TCP_START_BYTES)
		return malformed(p, MALFORMED_IP_HEADER);
	if (off + total > frame)
		return malformed(p, MALFORMED_TRUNCATED);
	verdict = take_ports(tcp, total - header, frag, p);
	if (verdict != WALK_SYN)
		return verdict;
	p->ipv6 = *(__u8 *)ip >> 5 & 1;
	p->saddr.halves[0] = 0;
	p->saddr.words[2] = bpf_htonl(0xffff);
	p->saddr.words[3] = ip->saddr;
	p->daddr.halves[0] = 0;
	p->daddr.words[2] = bpf_htonl(0xffff);
	p->daddr.words[3] = ip->daddr;
	if (header > sizeof(*ip))
		return walk_ip_options((__be32 *)(ip + 1), data_end, header - sizeof(*ip), p);
	return WALK_SYN;
}

static __always_inline int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_ROUTING ||
	       next == IPPROTO_FRAGMENT;
}

static __always_inline enum walk walk_ipv6(void *data, void *data_end, __u64 off, struct packet *p)
{
	struct ipv6hdr *ip = data + off;
	__u64 end;
	struct tcp_start *tcp;
	__u64 fragment = 0;
	__u8 next;

	if ((void *)(ip + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	next = ip->nexthdr;
	off += sizeof(*ip);
	end = off + bpf_ntohs(ip->payload_len);
	for (int i = 0; i < EXTENSION_DEPTH && next != IPPROTO_TCP; i++) {
		struct extension *ext = data + off;
		__u64 size, is_fragment;

		if ((void *)(ext + 1) > data_end)
			return is_extension(next) ? malformed(p, MALFORMED_TRUNCATED) : WALK_OTHER;
		/*
		 * Without a branch and before any test of `next`, so that for the verifier there is
		 * one way through an iteration, not one per kind of header: else 160 are too many.
		 */
		is_fragment = ((__u64)(next ^ IPPROTO_FRAGMENT) - 1) >> 63;
		barrier_var(is_fragment);
		size = 8 + 8 * (ext->len & (is_fragment - 1));
		fragment |= bpf_ntohs(ext->frag_off) & is_fragment;
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
	if (fragment && off + TCP_START_BYTES > end)
		return malformed(p, MALFORMED_FRAGMENT);
	tcp = data + off;
	if ((void *)(tcp + 1) > data_end)
		return malformed(p, MALFORMED_TRUNCATED);
	if (!opens_connection(tcp))
		return WALK_OTHER;

	if (ip->version != 6 || off + TCP_START_BYTES > end)
		return malformed(p, MALFORMED_IP_HEADER);
	if (end > data_end - data)
		return malformed(p, MALFORMED_TRUNCATED);
	p->ipv6 = *(__u8 *)ip >> 5 & 1;
	__builtin_memcpy(&p->saddr, &ip->saddr, sizeof(p->saddr));
	__builtin_memcpy(&p->daddr, &ip->daddr, sizeof(p->daddr));
	return take_ports(tcp, end - off, fragment, p);
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

/*
 * Sources that are martian whatever this host's addresses are: ip_route_input_slow(),
 * ip6_rcv_core(), tcp_v6_conn_request(). 127/8 and ::1 are legal on a loopback device.
 */
static __always_inline int is_martian(const struct packet *p, int loopback)
{
	const __u8 *b = p->saddr.bytes;

	if (!p->ipv6) {
		if (b[12] == 127)
			return !loopback;
		return b[12] == 0 || (b[12] & 0xf0) == 0xe0 || p->saddr.words[3] == 0xffffffff;
	}
	if (b[0] == 0xff)
		return 1;
	if (p->saddr.halves[0])
		return 0;
	if (p->saddr.words[2] == bpf_htonl(0xffff))
		return 1;
	if (p->saddr.words[2])
		return 0;
	return p->saddr.words[3] == 0 || (p->saddr.words[3] == bpf_htonl(1) && !loopback);
}

#endif
