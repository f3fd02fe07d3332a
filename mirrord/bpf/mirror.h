/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the programs of a mirror share: counters, limits, the buffer to user space, devices, marks. mirrord/src/counters.rs and
 * mirrord/src/program.rs know the same numbers.
 *
 * Each frame that a program sees is counted so that this closes:
 *
 *	seen + copied = mirrored + not selected + sampled out + rate limited + the sum of drops
 *
 * All maps but the buffer are small, and those of a mirror are kept while its programs are replaced.
 */
#pragma once

#include "packet.h"
#include "rules.h"

#define MAX_DEVICES 16
#define DROPS 31		/* room for reasons */

/* Why a copy was not made. The names are in mirrord/src/counters.rs, in this order. */
enum drop {
	DROP_LOOP_GUARD,	/* is a copy itself: marked, or of an own tunnel; or is from the ring that it would go into */
	DROP_EXPIRED,		/* the mirror's time is over */
	DROP_FUSE,		/* the mirror has switched itself off */
	DROP_NO_MEMORY,		/* none for the clone */
	DROP_LINK_DOWN,		/* the device is down */
	DROP_NO_INTERFACE,	/* the device does not exist */
	DROP_CONGESTED,		/* the queue of the device is full */
	DROP_CLONE_FAILED,	/* any other error */
	DROP_BUFFER_FULL,	/* no room in the buffer to user space */
	DROP_UNREADABLE,	/* the frame's bytes cannot be had */
	DROP_FILTER_FAILED,	/* the program of the pcap-filter cannot be called */
	DROP_NO_ROUTE,		/* relay: no way to the collector */
	DROP_OVERSIZE,		/* relay: longer than the path's MTU */
	DROP_NOT_IP,		/* relay: the encapsulation carries IP packets only */
	DROP_ENCAP_FAILED,	/* relay: no room for the outer header */
	DROP_REDIRECT_FAILED,	/* relay, XDP: the way out refused it */
	DROP_NOT_TAKEN,		/* XDP: the driver of the device takes no redirected frames */
	DROP_NO_HEADROOM,	/* XDP: no room in front of the frame for a tag */
	DROP_UNREACHABLE,	/* relay: the next host on the way to the collector does not answer */
	DROP_NOT_SEGMENTED,	/* relay: several packets in one (GSO) that the kernel cannot take apart */
};

struct counters {
	__u64 seen;		/* frames that passed the program */
	__u64 copied;		/* copies beyond the first */
	__u64 mirrored;
	__u64 mirrored_bytes;	/* of the copies, as they were taken */
	__u64 not_selected;
	__u64 sampled_out;
	__u64 rate_limited;
	__u64 truncated;	/* of the mirrored ones */
	__u64 drops[DROPS];
	__u64 seen_out;		/* of those seen, the ones that the host sends */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* Copies by device: two entries for each, those that were sent and those that failed. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u64);
} output_frames SEC(".maps");

/* Why a fuse has blown; the texts are in mirrord/src/counters.rs. */
enum fuse {
	FUSE_WHOLE,
	FUSE_ERRORS,
	FUSE_FRAMES,
	FUSE_BITS,
};

/* Rate and fuse, one for all CPUs: the bounds hold exactly. Taken only by mirrors that have such bounds. */
struct state {
	struct bpf_spin_lock lock;
	__u32 unused;
	__u64 fuse;		/* enum fuse */
	__u64 blown;		/* when, CLOCK_BOOTTIME ns */
	__u64 frames_due;	/* when the next frame conforms, in TICKs of CLOCK_BOOTTIME */
	__u64 bits_due;
	__u64 second;		/* which the following ones count */
	__u64 errors;
	__u64 frames;
	__u64 bytes;
	__u64 lost;		/* frames for which the buffer had no room, ever */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");

/* Where copies go, kept up to date by mirrord. Each generation of programs has its own. */
struct device {
	__u32 ifindex;		/* 0: there is none */
	__u32 down;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* What mirrord keeps for its next life: which programs these are (pins.rs), and what became of frames in user space (events.rs). */
struct notes {
	__u64 words[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct notes);
} meta SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct notes);
} drained SEC(".maps");

/* Frames on their way to user space. mirrord sets the size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/* What is in front of a frame in the buffer; mirrord/src/events.rs takes it apart. */
struct event {
	__u64 time;		/* CLOCK_BOOTTIME ns */
	__u64 lost;		/* state.lost before this frame */
	__u32 wire_len;		/* with the tag that the kernel took out */
	__u32 captured;		/* bytes that follow */
	__u32 ifindex;
	__u16 tpid;		/* of the tag that the kernel took out; 0: none */
	__u16 tci;
	__u8 direction;		/* DIRECTION_IN, DIRECTION_OUT */
	__u8 flags;
	__u8 unused[6];
};

#define EVENT_GSO 1		/* several packets joined */
#define EVENT_NO_CSUM 2		/* the checksum was not verified: it may not have been made yet */

_Static_assert(sizeof(struct event) == 40, "mirrord/src/events.rs");

/* Own tunnels, of all mirrors of a folder: what is sent through them is never mirrored, marked or not. */
struct tunnel {
	__u8 family;		/* 4, 6 */
	__u8 proto;		/* PROTO_UDP, PROTO_GRE */
	__u16 port;		/* of the destination, host byte order; 0 for GRE */
	__u32 unused;
	union address remote;	/* of IPv4 the rest is 0 */
};

_Static_assert(sizeof(struct tunnel) == 24, "own_tunnel() makes it of three words");

#define PROTO_GRE 47

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct tunnel);
	__type(value, __u8);
} tunnels SEC(".maps");

/* Whether a frame is of an own tunnel. */
static __always_inline int own_tunnel(const struct packet *packet)
{
	__u64 key[3];

	if (packet->proto != PROTO_UDP && packet->proto != PROTO_GRE)
		return 0;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	key[0] = (__u64)packet->family << 56 | (__u64)packet->proto << 48 | (__u64)packet->dport << 32;
#else
	key[0] = packet->family | packet->proto << 8 | (__u64)packet->dport << 16;
#endif
	key[1] = packet->destination.v6[0];
	key[2] = packet->destination.v6[1];
	return bpf_map_lookup_elem(&tunnels, key) != 0;
}

/* Set by mirrord before the programs are loaded. */
const volatile __u32 mark = 0x40000000;	/* bit of the mark of copies */
const volatile __u32 origin = 0;	/* mark of what is sent from the ring that is filled; 0: it may come again */
const volatile __u32 device_count = 0;
const volatile __u32 to_ring = 0;	/* XDP: into the buffer, too */
const volatile __u32 relayed = 0;	/* the only device has a relay program, which counts what becomes of copies */
const volatile __u32 snaplen = 0;	/* of copies into the ring; 0: whole frames */
const volatile __u64 sample_below = 0;	/* a draw of 32 bits below this is kept; 0: all are */
const volatile __u32 sample_flows = 0;
const volatile __u64 sample_seed = 0;
const volatile __u64 expires = 0;	/* CLOCK_BOOTTIME ns */
const volatile __u64 frame_ticks = 0;	/* time for each frame; 0: any number of frames */
const volatile __u64 bits_per_second = 0;
const volatile __u64 burst_ticks = 0;
const volatile __u64 fuse_errors = 0;	/* in a second; 0: no limit */
const volatile __u64 fuse_frames = 0;
const volatile __u64 fuse_bytes = 0;

/* What the mark tells of frames that rings were sent with; lib/socket/src/origin.rs has the same. */
#define ORIGIN_MASK 0x3fffffffu
#define ORIGIN_SENT 0x20000000u
#define ORIGIN_SEVERAL 0x30000000u

/* Whether a frame with this mark would go round: it is a copy already, or from the ring that copies go into. */
static __always_inline int goes_round(__u32 frame_mark)
{
	__u32 from = frame_mark & ORIGIN_MASK;

	/* A bit for copies that is among those of origins says nothing of frames that have one. */
	if (frame_mark & mark && !(mark & ORIGIN_MASK && from & ORIGIN_SENT))
		return 1;
	return origin && (from == origin || from == ORIGIN_SEVERAL);
}

#define TICK 16			/* in a nanosecond */
#define SECOND 1000000000ULL

#define BOUNDED (frame_ticks || bits_per_second || fuse_frames || fuse_bytes)
#define FUSED (fuse_errors || fuse_frames || fuse_bytes)

static __always_inline struct counters *own_counters(void)
{
	return find(&counters, 0);
}

/*
 * Counts at a place of `count` that is known when the program is compiled. The compiler is kept from counting at several places by one
 * instruction and a pointer that moves by another number on each way that leads there, which the verifier takes from nobody without CAP_PERFMON.
 */
#define COUNT(place)                                                                                                              \
	do {                                                                                                                      \
		count->place++;                                                                                                   \
		asm volatile("" : : "i"(offsetof(struct counters, place)));                                                       \
	} while (0)

/*
 * Counts a copy that was not made. A reason that is known when the program is compiled may be counted by
 * COUNT; for the others every reason has a place of its own in the program.
 */
__attribute__((noinline)) int count_drop(struct counters *count, __u32 reason)
{
	if (!count)
		return 0;
#define CASE(at) case at: COUNT(drops[at]); break
	switch (reason) {
	CASE(DROP_LOOP_GUARD);
	CASE(DROP_EXPIRED);
	CASE(DROP_FUSE);
	CASE(DROP_NO_MEMORY);
	CASE(DROP_LINK_DOWN);
	CASE(DROP_NO_INTERFACE);
	CASE(DROP_CONGESTED);
	CASE(DROP_CLONE_FAILED);
	CASE(DROP_BUFFER_FULL);
	CASE(DROP_UNREADABLE);
	CASE(DROP_FILTER_FAILED);
	CASE(DROP_NO_ROUTE);
	CASE(DROP_OVERSIZE);
	CASE(DROP_NOT_IP);
	CASE(DROP_ENCAP_FAILED);
	CASE(DROP_REDIRECT_FAILED);
	CASE(DROP_NOT_TAKEN);
	CASE(DROP_NO_HEADROOM);
	CASE(DROP_UNREACHABLE);
	CASE(DROP_NOT_SEGMENTED);
	}
	return 0;
#undef CASE
}

__attribute__((noinline)) int add_output(__u32 n, __u32 failed, __u64 copies)
{
	__u64 *frames = find(&output_frames, 2 * n + !!failed);

	if (frames)
		*frames += copies;
	return 0;
}

static __always_inline void count_output(__u32 n, int failed)
{
	add_output(n, failed, 1);
}

static __always_inline struct state *own_state(void)
{
	return find(&state, 0);
}

/* Whether a frame is in the sample; flows are picked as fluxcap_headers::Sampler picks them. */
__attribute__((noinline)) int sampled(CTX *ctx)
{
	struct packet *packet;

	if (!sample_below)
		return 1;
	if (!sample_flows)
		return bpf_get_prandom_u32() < sample_below;
	packet = the_packet();
	if (!packet)
		return 1;	/* cannot be: it has an entry */
	packet_parse(ctx, packet);
	return hash_mix(sample_seed ^ packet_flow_hash(ctx, packet)) >> 32 < sample_below;
}

/* Whether a frame that takes `cost` conforms to what is due (the generic cell rate algorithm, ITU-T I.371); with the lock held. */
static __always_inline int conforms(__u64 due, __u64 now, __u64 cost)
{
	__u64 ahead = (__s64)(due - now) > 0 ? due - now : 0;

	return ahead + cost <= (burst_ticks > cost ? burst_ticks : cost);
}

static __always_inline __u64 after(__u64 due, __u64 now, __u64 cost)
{
	return ((__s64)(due - now) > 0 ? due : now) + cost;
}

/* A new second begins with nothing counted; with the lock held. */
static __always_inline void turn(struct state *state, __u64 second)
{
	if (state->second == second)
		return;
	state->second = second;
	state->errors = 0;
	state->frames = 0;
	state->bytes = 0;
}

enum admission {
	ADMITTED,
	LIMITED,
	BLOWN,
};

/* Lets a frame pass, or not: rate first, then the fuse, which blows at the first copy beyond it. `copies` are made of it. */
__attribute__((noinline)) int admit(__u32 length, __u32 copies)
{
	__u64 time = bpf_ktime_get_boot_ns(), now = time * TICK, second = time / SECOND;
	struct state *state = own_state();
	__u64 bits_ticks = 0;
	enum admission result = ADMITTED;
	enum fuse fuse = FUSE_WHOLE;

	if (!state)
		return ADMITTED;	/* cannot be: it has an entry */
	if (bits_per_second)
		bits_ticks = (__u64)length * 8 * SECOND * TICK / bits_per_second;
	bpf_spin_lock(&state->lock);
	if (frame_ticks && !conforms(state->frames_due, now, frame_ticks))
		result = LIMITED;
	if (bits_per_second && !conforms(state->bits_due, now, bits_ticks))
		result = LIMITED;
	if (result == ADMITTED) {
		if (frame_ticks)
			state->frames_due = after(state->frames_due, now, frame_ticks);
		if (bits_per_second)
			state->bits_due = after(state->bits_due, now, bits_ticks);
		if (fuse_frames || fuse_bytes) {
			turn(state, second);
			state->frames += copies;
			state->bytes += (__u64)length * copies;
			if (fuse_frames && state->frames > fuse_frames)
				fuse = FUSE_FRAMES;
			else if (fuse_bytes && state->bytes > fuse_bytes)
				fuse = FUSE_BITS;
			if (fuse != FUSE_WHOLE) {
				state->fuse = fuse;
				state->blown = time;
				result = BLOWN;
			}
		}
	}
	bpf_spin_unlock(&state->lock);
	return result;
}

/* Copies that failed, which the fuse bounds. */
__attribute__((noinline)) int add_errors(__u32 errors)
{
	__u64 time;
	struct state *state;

	if (!fuse_errors || !errors)
		return 0;
	state = own_state();
	if (!state)
		return 0;	/* cannot be: it has an entry */
	time = bpf_ktime_get_boot_ns();
	bpf_spin_lock(&state->lock);
	turn(state, time / SECOND);
	state->errors += errors;
	if (state->errors > fuse_errors && !state->fuse) {
		state->fuse = FUSE_ERRORS;
		state->blown = time;
	}
	bpf_spin_unlock(&state->lock);
	return 0;
}

/*
 * Whether copies may be made of a frame that was selected; else it has been counted. What is the same for every target.
 */
static __always_inline int may_copy(CTX *ctx, struct counters *count, __u32 length, __u32 copies)
{
	struct state *state;

	if (!sampled(ctx)) {
		COUNT(sampled_out);
		return 0;
	}
	if (expires && bpf_ktime_get_boot_ns() >= expires) {
		COUNT(drops[DROP_EXPIRED]);
		return 0;
	}
	if (!BOUNDED && !FUSED)
		return 1;
	state = own_state();
	if (!state)
		return 1;	/* cannot be: it has an entry */
	if (FUSED && state->fuse) {
		COUNT(drops[DROP_FUSE]);
		return 0;
	}
	if (!BOUNDED)
		return 1;
	switch (admit(length, copies)) {
	case LIMITED:
		COUNT(rate_limited);
		return 0;
	case BLOWN:
		COUNT(drops[DROP_FUSE]);
		return 0;
	default:
		return 1;
	}
}
