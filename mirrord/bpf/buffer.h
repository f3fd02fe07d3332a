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

/* What is going to be in front of a frame: not on the stack, see packet.h. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct event);
} event_in_work SEC(".maps");

/* An event with all fields 0. */
static __always_inline struct event *new_event(void)
{
	struct event *event = find(&event_in_work, 0);

	if (event)
		__builtin_memset(event, 0, sizeof(*event));
	return event;
}

/* A wake-up costs as much as many frames, so there is one for the first frame, and none while user space looks again by itself. */
static __always_inline __u64 wake_up(void)
{
	__u32 *wanted = find(&doorbell, 0);

	if (!wanted || !*wanted)
		return BPF_RB_NO_WAKEUP;
	*wanted = 0;
	return BPF_RB_FORCE_WAKEUP;
}

/* Fills a record for frames of `shorter` + 1 to `shorter` + `step` bytes and hands it over; 0, or why not. */
static __always_inline int put_class(CTX *ctx, const struct event *event, const __u64 shorter, const __u64 step)
{
	__u64 length = event->captured;
	struct event *record = bpf_ringbuf_reserve(&events, sizeof(struct event) + shorter + step, 0);

	if (!record)
		return DROP_BUFFER_FULL;
	*record = *event;
	length = shorter + bounded(length - shorter, step);
	if (LOAD(ctx, 0, record + 1, length)) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return DROP_UNREADABLE;
	}
	bpf_ringbuf_submit(record, wake_up());
	return -1;
}

/* Each step is a power of two, which is all that bounds a number for a loader without CAP_PERFMON (bounded). */
#define CLASS(shorter, step) \
	if (event->captured <= (shorter) + (step)) \
		return put_class(ctx, event, shorter, step)

/* Hands a frame over; -1, or the reason (enum drop) why not. */
__attribute__((noinline)) int put(CTX *ctx, struct event *event)
{
	if (!event || !event->captured)
		return DROP_UNREADABLE;
	CLASS(0, 64);
	CLASS(64, 64);
	CLASS(128, 128);
	CLASS(256, 256);
	CLASS(512, 512);
	CLASS(1024, 512);
	CLASS(1536, 1024);
	CLASS(2560, 2048);
	CLASS(4608, 4096);
	CLASS(8704, 512);
	CLASS(9216, 8192);
	CLASS(17408, 16384);
	CLASS(33792, 32768);
	return DROP_UNREADABLE;
}

_Static_assert(LONGEST <= 33792 + 32768, "the last class");

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
		COUNT(truncated);
	COUNT(mirrored);
	count->mirrored_bytes += event->wire_len;
}
