// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Sends frames by XDP "live frames": user space runs `live` through BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES
 * (Documentation/bpf/bpf_prog_run.rst), once for each frame and output. Each time the program gets an empty frame of
 * TEMPLATE bytes, fills it from the array, and redirects it to the output.
 *
 * The kernel tells nobody what becomes of redirected frames but two tracepoints, so two more programs listen there, and
 * every frame is accounted for.
 */
#include "frames.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define TEMPLATE 1536		/* longer frames have to grow, and the kernel clears what grows */
#define LONGEST 3408		/* what fits into a page of the kernel's, net/bpf/test_run.c */
#define BLOCK 64
#define BY_BLOCKS 512		/* up to here, copying in blocks is faster than the helper */
#define LOOPBACK 1		/* its index in each namespace; where a test run pretends that frames come from */

/* As much of the kernel's as is needed; the loader finds the place of the field. */
struct net_device {
	int ifindex;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, OUTPUTS);
	__type(key, __u32);
	__type(value, __u32);
} outputs SEC(".maps");

/* Copies a short frame over the template and cuts that to its length. */
static __always_inline int put_short(struct xdp_md *ctx, const __u8 *from, __u32 len)
{
	__u8 *to = (void *)(long)ctx->data;
	__u8 *end = (void *)(long)ctx->data_end;

	for (__u32 done = 0; done < BY_BLOCKS && done < len; done += BLOCK) {
		if (to + BLOCK > end)
			return -EINVAL;
		for (int i = 0; i < BLOCK / 8; i++)
			((__u64 *)to)[i] = ((const __u64 *)from)[i];
		to += BLOCK;
		from += BLOCK;
	}
	return bpf_xdp_adjust_tail(ctx, (int)len - TEMPLATE);
}

static __always_inline int put(struct xdp_md *ctx, const __u8 *from, __u32 len)
{
	long rc;

	if (ctx->data_end - ctx->data != TEMPLATE)
		return -EINVAL;
	if (len <= BY_BLOCKS)
		return put_short(ctx, from, len);
	if (len > LONGEST)
		return -EINVAL;
	rc = bpf_xdp_adjust_tail(ctx, (int)len - TEMPLATE);
	if (rc)
		return rc;
	return bpf_xdp_store_bytes(ctx, 0, (void *)from, len);
}

static __always_inline void give_up(struct header *header, __u32 output, int err)
{
	header->dead |= 1u << output;
	header->refused[output] = err;
}

SEC("xdp")
int live(struct xdp_md *ctx)
{
	struct area *area = the_area();
	struct attempt attempt;
	struct header *header;
	int rc;

	if (!area || !next_attempt(area, &attempt))
		return XDP_DROP;
	header = &area->header;
	if (header->dead & (1u << attempt.output))
		return XDP_DROP;
	rc = put(ctx, attempt.data, attempt.len);
	if (rc) {
		give_up(header, attempt.output, rc);
		return XDP_DROP;
	}
	header->task = bpf_get_current_task();
	rc = bpf_redirect_map(&outputs, attempt.output, XDP_DROP);
	if (rc == XDP_REDIRECT)
		header->queued[attempt.output]++;
	else
		give_up(header, attempt.output, -ENODEV);
	return rc;
}

/* The array, if the run that goes on in this task is one of ours. */
static __always_inline struct header *our_run(struct net_device *from)
{
	struct area *area = the_area();

	if (!area || area->header.task != bpf_get_current_task() || from->ifindex != LOOPBACK)
		return 0;
	return &area->header;
}

/* A redirected frame that did not get into the output's queue: (dev, xdp, target, err, map_type, map_id, index). */
SEC("tp_btf/xdp_redirect_err")
int not_queued(__u64 *ctx)
{
	struct header *header = our_run((struct net_device *)ctx[0]);
	__u32 output = (__u32)ctx[6];

	if (!header || output >= OUTPUTS)
		return 0;
	header->queued[output]--;
	give_up(header, output, (int)ctx[3]);
	return 0;
}

/* A queue that was handed to a driver: (from, to, sent, drops, err). */
SEC("tp_btf/xdp_devmap_xmit")
int flushed(__u64 *ctx)
{
	struct net_device *to = (struct net_device *)ctx[1];
	struct header *header = our_run((struct net_device *)ctx[0]);
	int sent = (int)ctx[2], drops = (int)ctx[3], err = (int)ctx[4];
	__u32 ifindex = to->ifindex;
	__u32 output, at;

	if (!header)
		return 0;
	for (output = 0; output < OUTPUTS; output++)
		if (header->ifindex[output] == ifindex)
			break;
	if (output >= OUTPUTS)
		return 0;
	if (drops) {
		at = header->events;
		if (at < EVENTS) {
			header->event[at].output = output;
			header->event[at].from = header->flushed[output] + sent;
			header->event[at].count = drops;
			header->event[at].err = err;
			header->events = at + 1;
		}
		/* Without room, what comes after must not overtake what was dropped. */
		give_up(header, output, err ? err : -ENOBUFS);
	}
	header->flushed[output] += sent + drops;
	return 0;
}
