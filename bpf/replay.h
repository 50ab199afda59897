/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The replay build (-DREPLAY), run by BPF_PROG_TEST_RUN alone: what a frame does not say stands in a
 * header in front of it, which packetwatch/replay.py writes. A clock in a map would cost an update a frame.
 */
#ifndef PACKETWATCH_REPLAY_H
#define PACKETWATCH_REPLAY_H

struct replay_header {
	__u64 now_ns; /* since 1970: the capture's time stands for CLOCK_BOOTTIME */
	__u32 ifindex; /* of the attachment: BPF_PROG_TEST_RUN knows lo only, and before 5.14 nothing else */
	__u8 port_state; /* EVENT_OPEN or EVENT_CLOSED, as the capture's answers tell; 0: they do not */
	__u8 hosts; /* 1: each destination address is a host of its own */
	__u16 reserved;
};

#define FRAME_OFFSET sizeof(struct replay_header)
#define NOW_NS() read_header(ctx).now_ns
#define INGRESS(ctx) read_header(ctx).ifindex
#define SOURCE_OF(p) (&(p)->source)
#define HAS_FLOWS 0 /* what connections a host has, a capture does not tell */

static __always_inline struct replay_header read_header(struct xdp_md *ctx)
{
	struct replay_header *header = (void *)(long)*(volatile __u32 *)&ctx->data, none = {};

	if ((void *)(header + 1) > (void *)(long)*(volatile __u32 *)&ctx->data_end)
		return none;
	return *header;
}

/* Of the destination port; port_state() asks the host's stack in its place. */
static __always_inline __u8 replay_port_state(struct xdp_md *ctx)
{
	return read_header(ctx).port_state;
}

#endif
