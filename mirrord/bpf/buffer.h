/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Frames into the buffer to user space. The kernel wants the size of a record to be known when the program is verified, so there
 * are classes of sizes.
 */
#pragma once

#include "mirror.h"

/* Longest copy of a frame. */
#define LONGEST 65600

/* Whether user space wants to be woken: it sleeps, and has not for a moment only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} doorbell SEC(".maps");

/* A wake-up costs as much as many frames, so there is one for the first frame, and none while user space looks again by itself. */
static __always_inline __u64 wake_up(void)
{
	__u32 zero = 0, *wanted = bpf_map_lookup_elem(&doorbell, &zero);

	if (!wanted || !*wanted)
		return BPF_RB_NO_WAKEUP;
	*wanted = 0;
	return BPF_RB_FORCE_WAKEUP;
}

/* Fills a record of `size` bytes and hands it over; 0, or why not. */
static __always_inline int put_class(CTX *ctx, const struct event *event, const __u64 size)
{
	const __u32 room = size - sizeof(struct event);
	__u32 length = event->captured;
	struct event *record = bpf_ringbuf_reserve(&events, size, 0);

	if (!record)
		return DROP_BUFFER_FULL;
	*record = *event;
	/*
	 * The compiler knows the bounds by the class and would leave the check out; the verifier needs it, and that of Linux 6.1 does not see
	 * that a number is not 0 unless it is one more than another.
	 */
	length--;
	asm volatile("" : "+r"(length));
	if (length >= room || LOAD(ctx, 0, record + 1, length + 1)) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return DROP_UNREADABLE;
	}
	bpf_ringbuf_submit(record, wake_up());
	return -1;
}

#define CLASS(bytes) \
	if (event->captured <= (bytes) - sizeof(struct event)) \
		return put_class(ctx, event, bytes)

/* Hands a frame over; -1, or the reason (enum drop) why not. */
static __always_inline int put(CTX *ctx, const struct event *event)
{
	CLASS(128);
	CLASS(256);
	CLASS(512);
	CLASS(1024);
	CLASS(1600);
	CLASS(2560);
	CLASS(4608);
	CLASS(9216);
	CLASS(18432);
	CLASS(36864);
	return put_class(ctx, event, LONGEST + sizeof(struct event));
}

#undef CLASS

/*
 * Copies a frame of `length` bytes in memory into the buffer and counts it. The caller has filled in ifindex, direction, flags and tag
 * of `event`.
 */
static __always_inline void to_buffer(CTX *ctx, struct counters *count, struct event *event, __u32 length)
{
	struct state *state = own_state();
	int reason;

	if (!state)
		return;		/* cannot be: it has an entry */
	event->time = bpf_ktime_get_boot_ns();
	event->lost = state->lost;
	event->wire_len = length + (event->tpid ? 4 : 0);
	event->captured = length > LONGEST ? LONGEST : length;
	/* With the tag that may become four bytes too many, which user space cuts. */
	if (snaplen && event->captured > snaplen)
		event->captured = snaplen;
	reason = put(ctx, event);
	if (reason >= 0) {
		/* In the buffer it shows in front of the next frame. */
		if (reason == DROP_BUFFER_FULL)
			__sync_fetch_and_add(&state->lost, 1);
		count_drop(count, reason);
		add_errors(1);
		return;
	}
	if (event->captured < length || (snaplen && event->wire_len > snaplen))
		count->truncated++;
	count->mirrored++;
	count->mirrored_bytes += event->wire_len;
}
