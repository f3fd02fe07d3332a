// SPDX-License-Identifier: GPL-2.0 OR MIT
// Compiled with -mcpu=v2, see packet.h.
/*
 * A mirror in the driver's receive path, for an interface that only a tap feeds: `replicate` sends the selected frames out of all
 * outputs at once (devmap broadcast), and into the buffer to user space beside that. They do not reach the host. What is not
 * replicated, for whatever reason, goes on to the host: nothing ends here.
 *
 *	rules -> sample -> expired? fuse? rate? -> buffer -> slice -> outputs, each: push a tag -> slice -> driver
 *
 * `output0` to `output15` run for each copy before the driver of that output gets it. The kernel tells nobody of copies that it does not hand to an
 * output, because that is down, takes no redirected frames, or the frame is too long. So what mirrord knows of the outputs is counted
 * here (`refuse`); what the kernel has left out beyond that is what is missing in the end (mirrord/src/xdp/status.rs).
 */
#define PACKET_XDP
#include "mirror.h"
#include "buffer.h"
#include "unsent.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define MACS 12			/* bytes in front of a frame's first tag */
#define TAG 4

/* TPID and TCI to push at each output, as they are in a frame; 0: none. */
const volatile __u32 tags[MAX_DEVICES];
const volatile __u32 untagged_count;	/* outputs that push none */

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

/* What mirrord knows of the outputs; mirrord/src/xdp/outputs.rs has the same in Rust. */
struct limits {
	__u32 least;			/* a frame that is not longer goes to all outputs */
	__u32 unused;
	struct {
		__u32 longest;		/* longer frames the kernel does not hand to this output */
		__u32 reason;		/* why, enum drop */
	} output[MAX_DEVICES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limits);
} limits SEC(".maps");

/* Copies that are in the buffer to user space, or were: `mirrored` has those of the outputs, too. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} buffered SEC(".maps");

/* Counts the outputs that do not get this frame. */
static __always_inline void refuse(struct counters *count, const struct limits *l, __u32 length)
{
	__u32 failed = 0;

	/* No loop: the verifier would follow it beyond its end, as a CPU might in advance. */
#pragma unroll
	for (__u32 n = 0; n < MAX_DEVICES; n++) {
		if (n >= device_count)
			break;
		if (length <= l->output[n].longest)
			continue;
		count_output(n, 1);
		count_drop(count, l->output[n].reason);
		failed++;
	}
	add_errors(failed);
}

static __always_inline int to_outputs(struct xdp_md *ctx, struct counters *count, __u32 length)
{
	const struct limits *l = find(&limits, 0);

	if (!l)
		return XDP_PASS;	/* cannot be: it has an entry */
	/* Before it is copied, for that costs less; and a long frame, cut, goes where it could not go whole. */
	if (snaplen && length > snaplen && !bpf_xdp_adjust_tail(ctx, (int)(snaplen - length))) {
		length = snaplen;
		count->truncated += untagged_count;
	}
	if (length > l->least)
		refuse(count, l, length);
	return bpf_redirect_map(&ports, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

static __always_inline void to_user_space(struct xdp_md *ctx, struct counters *count, __u32 length)
{
	__u64 before = count->mirrored, *copies;
	struct event *event = new_event();

	if (!event)
		return;		/* cannot be: it has an entry */
	event->ifindex = ctx->ingress_ifindex;
	event->direction = DIRECTION_IN;
	to_buffer(ctx, count, event, length);
	copies = find(&buffered, 0);
	if (copies)
		*copies += count->mirrored - before;
}

static __always_inline int is_selected(struct xdp_md *ctx)
{
	struct packet *packet;

	/* Nothing is looked at for nothing. */
	if (!rule_settings[RULES_WORDS])
		return rule_settings[RULES_DEFAULT];
	packet = the_packet();
	if (!packet)
		return 0;	/* cannot be: it has an entry */
	packet_parse(ctx, packet);
	return rules_select(packet, DIRECTION_IN);
}

SEC("xdp")
int replicate(struct xdp_md *ctx)
{
	/* To subtract the frame's begin from its end takes CAP_PERFMON; the helper is there from Linux 5.18 on. */
	__u32 length = bpf_xdp_get_buff_len(ctx), copies = device_count + (to_ring ? 1 : 0);
	struct counters *count = own_counters();

	if (!count)
		return XDP_PASS;	/* cannot be: it has an entry */
	COUNT(seen);
	if (!is_selected(ctx)) {
		COUNT(not_selected);
		return XDP_PASS;
	}
	if (!may_copy(ctx, count, length, copies))
		return XDP_PASS;
	count->copied += copies - 1;
	if (to_ring)
		to_user_space(ctx, count, length);
	return to_outputs(ctx, count, length);
}

/* Pushes a tag between addresses and type. Whether there was room. */
static __always_inline int push(struct xdp_md *ctx, __u32 tag)
{
	__u32 *to, *end;

	if (bpf_xdp_adjust_head(ctx, -TAG))
		return 0;
	to = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (to + (MACS + TAG) / 4 > end)
		return 0;
	to[0] = to[1];
	to[1] = to[2];
	to[2] = to[3];
	to[3] = tag;
	return 1;
}

/* Edits a copy for its output; -1, or the reason (enum drop) why it cannot go. */
static __always_inline int edit(struct xdp_md *ctx, struct counters *count, const __u32 n)
{
	const struct limits *l;
	__u32 length;

	if (!tags[n])
		return -1;
	if (!push(ctx, tags[n]))
		return DROP_NO_HEADROOM;
	length = bpf_xdp_get_buff_len(ctx);
	if (snaplen && length > snaplen && !bpf_xdp_adjust_tail(ctx, (int)(snaplen - length))) {
		length = snaplen;
		COUNT(truncated);
	}
	l = find(&limits, 0);
	return l && length > l->output[n].longest ? DROP_OVERSIZE : -1;
}

/* A copy on its way to an output. */
static __always_inline int leave(struct xdp_md *ctx, const __u32 n)
{
	struct counters *count = own_counters();
	__u32 *ended;
	int reason;

	if (!count)
		return XDP_DROP;	/* cannot be: it has an entry */
	reason = edit(ctx, count, n);
	if (reason >= 0) {
		count_output(n, 1);
		count_drop(count, reason);
		ended = find(&unsent, n);
		if (ended)
			(*ended)++;
		return XDP_DROP;
	}
	count_output(n, 0);
	COUNT(mirrored);
	count->mirrored_bytes += bpf_xdp_get_buff_len(ctx);
	return XDP_PASS;
}

#define OUTPUT(n) \
	SEC("xdp/devmap") \
	int output##n(struct xdp_md *ctx) \
	{ \
		return leave(ctx, n); \
	}

OUTPUT(0)
OUTPUT(1)
OUTPUT(2)
OUTPUT(3)
OUTPUT(4)
OUTPUT(5)
OUTPUT(6)
OUTPUT(7)
OUTPUT(8)
OUTPUT(9)
OUTPUT(10)
OUTPUT(11)
OUTPUT(12)
OUTPUT(13)
OUTPUT(14)
OUTPUT(15)
