/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What costs are told in: the least that a scan detector in XDP can do, and a program that does
 * nothing. IPv4 without options, one LRU lookup, four ports a source, one record. No local test, no
 * lists, no lock, no block, no counter: it is wrong in all that these are for. Never attached.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#define SLOTS 4
#define PORTS 3
#define WINDOW_NS 60000000000ULL

struct seen {
	__u64 at_ns[SLOTS];
	__be16 ports[SLOTS];
};

struct record {
	__u64 at_ns;
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u32 scan;
};

BPF_TABLE("lru_hash", __be32, struct seen, sources, TRACKERS);
BPF_RINGBUF_OUTPUT(records, CONNECTIONS_PAGES);

static __always_inline __u32 count_ports(struct seen *seen, __u64 now, __be16 port)
{
	__u32 slot = 0, known = 0, count = 1;

#pragma unroll
	for (__u32 i = 0; i < SLOTS; i++) {
		if (seen->ports[i] == port) {
			slot = i;
			known = 1;
			continue;
		}
		count += now - seen->at_ns[i] < WINDOW_NS;
		if (!known && seen->at_ns[i] < seen->at_ns[slot & (SLOTS - 1)])
			slot = i;
	}
	seen->at_ns[slot & (SLOTS - 1)] = now;
	seen->ports[slot & (SLOTS - 1)] = port;
	return count;
}

int reference(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct tcphdr *tcp = data + sizeof(*eth) + sizeof(*ip);
	struct seen fresh = {}, *seen;
	struct record *record;
	__be32 saddr;
	__u64 now;

	if ((void *)(tcp + 1) > data_end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->protocol != IPPROTO_TCP)
		return XDP_PASS;
	if (!tcp->syn || tcp->ack)
		return XDP_PASS;
	now = bpf_ktime_get_boot_ns();
	saddr = ip->saddr;
	seen = sources.lookup(&saddr);
	if (!seen) {
		sources.update(&saddr, &fresh);
		seen = sources.lookup(&saddr);
		if (!seen)
			return XDP_PASS;
	}
	record = records.ringbuf_reserve(sizeof(*record));
	if (!record)
		return XDP_PASS;
	record->at_ns = now;
	record->saddr = saddr;
	record->daddr = ip->daddr;
	record->sport = tcp->source;
	record->dport = tcp->dest;
	record->scan = count_ports(seen, now, tcp->dest) >= PORTS;
	records.ringbuf_submit(record, 0);
	return XDP_PASS;
}

int empty(struct xdp_md *ctx)
{
	return XDP_PASS;
}

BPF_PROG_ARRAY(next, 1);

/* Passes the frame on with another of 4,096 sources each time. */
int crowd(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	struct iphdr *ip = data + sizeof(struct ethhdr);

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	ip->saddr = bpf_htonl(0xc6120000 | (bpf_get_prandom_u32() & 0xfff));
	next.call(ctx, 0);
	return XDP_ABORTED;
}
