/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * The memory through which user space hands frames to the transmit programs: one value of a memory-mapped array.
 *
 *	[ header, 4 KiB | frame | frame | ... | pad ]
 *	 frame: struct frame, len bytes, zeros up to a multiple of 8
 *
 * User space writes it, runs the program, and reads in the header what became of each frame. Nothing is written while
 * a program runs but by the program. lib/socket/src/area.rs has the same layout in Rust.
 */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define OUTPUTS 12		/* interfaces of one transmitter */
#define DATA_SIZE (1u << 20)	/* bytes for frames, a power of two */
#define PAD_SIZE (64u << 10)	/* what a copy of the largest size may read beyond the data */
#define ATTEMPTS 1024		/* frames times outputs of one run of the live program, at most */
#define EVENTS 256		/* room for a note of every queue that such a run can hand to a driver */
#define RESULTS 64		/* attempts of one run of the tc program */

#define EINVAL 22
#define ENODEV 19
#define ENOBUFS 105

/* One frame. It is sent to `count` outputs, one attempt after the other. */
struct frame {
	__u16 len;
	__u8 count;
	__u8 unused;
	__u8 outputs[OUTPUTS];
};

/* The frames `from` to `from + count - 1` that were queued for an output were dropped by its driver. */
struct event {
	__u16 from;
	__u8 output;
	__u8 count;
	__s32 err;		/* 0: no room */
};

struct header {
	__u32 cursor;		/* offset of the present frame in the data */
	__u32 end;		/* offset behind the last one */
	__u32 turn;		/* which of the present frame's outputs is next */
	__u32 attempts;		/* frames times outputs that were tried */
	__u32 dead;		/* outputs that refused a frame or had no room, by bit: nothing is tried there any more */
	__u32 events;		/* entries of event[] */
	__u64 task;		/* who runs the program */
	__u32 ifindex[OUTPUTS];
	__u32 queued[OUTPUTS];	/* frames that the kernel took for the output */
	__u32 flushed[OUTPUTS];	/* of these, frames that went to the driver */
	__s32 refused[OUTPUTS];	/* why an output is dead: a negative errno */
	__s32 results[RESULTS];	/* tc: of each attempt, 0 or an errno or NET_XMIT_* */
	struct event event[EVENTS];
};

struct area {
	union {
		struct header header;
		__u8 page[4096];
	};
	__u8 data[DATA_SIZE + PAD_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct area);
} frames SEC(".maps");

static __always_inline struct area *the_area(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&frames, &zero);
}

/* The next attempt: a frame and one of its outputs. */
struct attempt {
	struct frame *frame;
	__u8 *data;
	__u32 len;
	__u32 output;
	int first;		/* this frame was not tried on another output before */
};

/* Takes the next attempt and moves on. False when there is none. */
static __always_inline int next_attempt(struct area *area, struct attempt *attempt)
{
	struct header *header = &area->header;
	__u32 at = header->cursor;
	__u32 turn = header->turn;

	if (at >= header->end || turn >= OUTPUTS)
		return 0;
	at &= DATA_SIZE - 1;
	attempt->frame = (struct frame *)(area->data + at);
	attempt->data = area->data + at + sizeof(struct frame);
	attempt->len = attempt->frame->len;
	attempt->output = attempt->frame->outputs[turn];
	attempt->first = turn == 0;
	header->attempts++;
	if (++turn < attempt->frame->count) {
		header->turn = turn;
	} else {
		header->turn = 0;
		header->cursor = at + sizeof(struct frame) + ((attempt->len + 7) & ~7u);
	}
	return attempt->output < OUTPUTS;
}
