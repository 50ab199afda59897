/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The challenge: a SYN to a closed port that would be dropped is answered in its place with a
 * SYN-ACK, whose sequence number is a keyed hash of the four-tuple. Only who has sent the SYN, at
 * the address that it came from, acknowledges that number; who is at an address that somebody has
 * forged, or scans with frames of its own, has no such connection and sends a reset without it.
 * Nothing is remembered for that. Pure: no maps, no clock.
 */
#ifndef PACKETWATCH_CHALLENGE_H
#define PACKETWATCH_CHALLENGE_H

#include "packet.h"

struct cookie_key { /* secret */
	__u64 halves[2];
};

struct tcp_header {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack_seq;
	__be16 doff_flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

struct answer4 {
	struct iphdr ip;
	struct tcp_header tcp;
};

struct answer6 {
	struct ipv6hdr ip;
	struct tcp_header tcp;
};

#define ANSWER_TTL 64
#define ANSWER_WINDOW 0xffff
#define ANSWER_WORDS (5 << 12) /* of header, beside the flags */

static __always_inline __u64 rotated(__u64 x, int bits)
{
	return x << bits | x >> (64 - bits);
}

static __always_inline void sip_round(__u64 *v)
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = rotated(v[1], 13) ^ v[0];
	v[3] = rotated(v[3], 16) ^ v[2];
	v[0] = rotated(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = rotated(v[1], 17) ^ v[2];
	v[3] = rotated(v[3], 21) ^ v[0];
	v[2] = rotated(v[2], 32);
}

static __always_inline void sip_word(__u64 *v, __u64 word)
{
	v[3] ^= word;
	sip_round(v);
	sip_round(v);
	v[0] ^= word;
}

/* SipHash-2-4 of the four-tuple, of which 32 bits are used. */
static __always_inline __u32 cookie_of(const struct cookie_key *key, const struct packet *p)
{
	__u64 v[4] = { key->halves[0] ^ 0x736f6d6570736575ULL, key->halves[1] ^ 0x646f72616e646f6dULL,
		       key->halves[0] ^ 0x6c7967656e657261ULL, key->halves[1] ^ 0x7465646279746573ULL };

	sip_word(v, p->saddr.halves[0]);
	sip_word(v, p->saddr.halves[1]);
	sip_word(v, p->daddr.halves[0]);
	sip_word(v, p->daddr.halves[1]);
	sip_word(v, (__u64)36 << 56 | (__u64)p->dport << 16 | p->sport);
	v[2] ^= 0xff;
	sip_round(v);
	sip_round(v);
	sip_round(v);
	sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static __always_inline __u64 sum_of(__be32 word)
{
	return (word & 0xffff) + (word >> 16);
}

static __always_inline __sum16 folded(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* For both families: what makes an address v4-mapped sums up to zero. */
static __always_inline void answer_tcp(struct tcp_header *tcp, const struct packet *p, __be32 seq, __be32 ack,
				       __u16 flags)
{
	__be16 head = bpf_htons(ANSWER_WORDS | flags);
	__u64 sum = bpf_htons(IPPROTO_TCP) + bpf_htons(sizeof(*tcp)) + head + ANSWER_WINDOW;

	for (int i = 0; i < 4; i++)
		sum += sum_of(p->saddr.words[i]) + sum_of(p->daddr.words[i]);
	sum += sum_of(seq) + sum_of(ack) + p->sport + p->dport;
	tcp->sport = p->dport;
	tcp->dport = p->sport;
	tcp->seq = seq;
	tcp->ack_seq = ack;
	tcp->doff_flags = head;
	tcp->window = ANSWER_WINDOW;
	tcp->check = folded(sum);
	tcp->urgent = 0;
}

static __always_inline void answer_ipv4(struct iphdr *ip, const struct packet *p)
{
	__u64 sum = bpf_htons(0x4500) + bpf_htons(sizeof(struct answer4)) + bpf_htons(0x4000) +
		    bpf_htons(ANSWER_TTL << 8 | IPPROTO_TCP);

	ip->version = 4;
	ip->ihl = 5;
	ip->tos = 0;
	ip->tot_len = bpf_htons(sizeof(struct answer4));
	ip->id = 0;
	ip->frag_off = bpf_htons(0x4000);
	ip->ttl = ANSWER_TTL;
	ip->protocol = IPPROTO_TCP;
	ip->saddr = p->daddr.words[3];
	ip->daddr = p->saddr.words[3];
	ip->check = folded(sum + sum_of(ip->saddr) + sum_of(ip->daddr));
}

static __always_inline void answer_ipv6(struct ipv6hdr *ip, const struct packet *p)
{
	*(__be32 *)ip = bpf_htonl(6 << 28);
	ip->payload_len = bpf_htons(sizeof(struct tcp_header));
	ip->nexthdr = IPPROTO_TCP;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, &p->daddr, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, &p->saddr, sizeof(ip->daddr));
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
	__u8 mac[ETH_ALEN];

	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

#endif
