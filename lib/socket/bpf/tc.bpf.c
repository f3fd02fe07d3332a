// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Sends frames by clones of one socket buffer: user space runs `send` through BPF_PROG_TEST_RUN once for a batch, and the
 * program gives the buffer the length and the bytes of each frame and has it cloned to the frame's outputs. Works with every
 * driver, and the kernel says of each clone what became of it.
 */
#include "frames.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define SHORTEST 14		/* an Ethernet header */
#define LONGEST (15u << 10)	/* somewhat less than a socket buffer of one piece holds, BPF_SKB_MAX_LEN in net/core/filter.c */

struct state {
	struct __sk_buff *skb;
	struct area *area;
	int err;		/* why the buffer does not hold the present frame */
};

static __always_inline int put(struct __sk_buff *skb, __u8 *from, __u32 len)
{
	long rc;

	if (len < SHORTEST || len > LONGEST)
		return -EINVAL;
	rc = bpf_skb_change_tail(skb, len, 0);
	if (rc)
		return rc;
	return bpf_skb_store_bytes(skb, 0, from, len, 0);
}

static long send_one(__u32 index, struct state *state)
{
	struct area *area = state->area;
	struct attempt attempt;
	int rc;

	if (index >= RESULTS || !next_attempt(area, &attempt))
		return 1;
	if (attempt.first)
		state->err = put(state->skb, attempt.data, attempt.len);
	rc = state->err;
	if (!rc) {
		rc = bpf_clone_redirect(state->skb, area->header.ifindex[attempt.output], 0);
		if (rc == -EINVAL)
			rc = -ENODEV;	/* what the helper means by it */
	}
	area->header.results[index] = rc;
	return 0;
}

SEC("classifier")
int send(struct __sk_buff *skb)
{
	struct state state = { .skb = skb, .area = the_area() };

	if (state.area)
		bpf_loop(RESULTS, send_one, &state, 0);
	return 0;
}
