/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sends a frame out of the interface, the last four bytes of its source drawn anew. It is written whole each time:
 * its memory comes back from a program that may have made an answer of it.
 * FRAME_WORDS: its length, in 16 bits; SOURCE_END: offset behind the source; SOURCE_MASK: which of its bits are drawn.
 */
#include <linux/bpf.h>

#define IPV4_SOURCE_END 30
#define FORGED_NET 0xc6120000 /* 198.18.0.0/15 */

struct frame {
	__u16 words[FRAME_WORDS];
};

BPF_ARRAY(original, struct frame, 1);

int generate(struct xdp_md *ctx)
{
	int zero = 0;
	struct frame *whole = original.lookup(&zero), *sent = (void *)(long)ctx->data;
	__u8 *frame = (void *)(long)ctx->data;
	__u32 *last = (void *)(frame + SOURCE_END - 4);
	__u16 *words = (void *)(frame + 14);
	__u32 sum = 0;

	if (!whole || (void *)(sent + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	*sent = *whole;
	*last = bpf_htonl(bpf_get_prandom_u32() & SOURCE_MASK);
	if (SOURCE_END != IPV4_SOURCE_END)
		return XDP_TX;
	*last |= bpf_htonl(FORGED_NET);
	words[5] = 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	sum = (sum & 0xffff) + (sum >> 16);
	words[5] = ~((sum & 0xffff) + (sum >> 16));
	return XDP_TX;
}
