// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The sink of the bench: counts and judges the frames that arrive at an interface, and drops them. As an XDP program at a peer
 * that has one, as a program for traffic control where the peer builds socket buffers. e2e/src/bench/{frame,sink}.rs have the
 * same layouts in Rust.
 *
 * The frames of one interface are handled one after the other (one queue), so the counters need no atomics.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define ETHERNET 14		/* bytes in front of the stamp */
#define MAGIC 0x666c7562
#define STREAMS 4
#define RECENT 1024		/* a frame that is late by less than this is known to be a duplicate or not */
#define BUCKETS 1184

#define TC_DROP 2
#define TC_PASS 0

struct stamp {
	__u32 magic;
	__u16 run;
	__u16 stream;
	__u64 seq;
	__u64 sent_ns;
	__u64 sum;
};

struct stream {
	__u64 next;		/* the number that is expected */
	__u64 received;
	__u64 duplicates;
	__u64 reordered;
};

struct state {
	__u64 run;		/* frames of other runs are stale */
	__u64 pass;		/* not 0: hand frames on to the stack */
	__u64 sample;		/* of every so many numbers, less one, the latency is taken: 2^n - 1 */
	__u64 stale;
	__u64 foreign;
	__u64 corrupt;
	struct stream stream[STREAMS];
	__u64 latency[BUCKETS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state);
} state SEC(".maps");

struct recent {
	__u64 seen[STREAMS][RECENT];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct recent);
} recent SEC(".maps");

static __always_inline __u64 sum(const struct stamp *stamp, __u32 len)
{
	__u64 hash = stamp->seq * 0x9e3779b97f4a7c15ull;

	hash = (hash ^ hash >> 29 ^ stamp->sent_ns) * 0xbf58476d1ce4e5b9ull;
	hash = (hash ^ hash >> 32 ^ ((__u64)stamp->run << 48 | (__u64)stamp->stream << 32 | len)) * 0x94d049bb133111ebull;
	return hash ^ hash >> 31;
}

/* 32 buckets for each power of two: values are told apart to 3 %. */
static __always_inline __u32 bucket(__u64 value)
{
	__u32 shift = 0;
	__u64 rest = value;

	if (value < 32)
		return value;
	if (rest >> 32) { shift += 32; rest >>= 32; }
	if (rest >> 16) { shift += 16; rest >>= 16; }
	if (rest >> 8) { shift += 8; rest >>= 8; }
	if (rest >> 4) { shift += 4; rest >>= 4; }
	if (rest >> 2) { shift += 2; rest >>= 2; }
	if (rest >> 1) shift += 1;
	shift -= 5;
	return (shift + 1) * 32 + ((value >> shift) & 31);
}

static __always_inline void judge_late(struct stream *stream, __u64 seen, __u64 mark)
{
	if (seen == mark)
		stream->duplicates++;
	else
		stream->reordered++;
}

/* Counts a frame. Whether the stack is to have it. */
static __always_inline int judge(const struct stamp *stamp, __u32 len)
{
	__u32 zero = 0, at, which = stamp->stream;
	struct state *s = bpf_map_lookup_elem(&state, &zero);
	struct recent *r = bpf_map_lookup_elem(&recent, &zero);
	struct stream *stream;
	__u64 mark;

	if (!s || !r)
		return 0;
	if (stamp->magic != MAGIC) {
		s->foreign++;
		return 1;
	}
	if (stamp->run != (__u16)s->run) {
		s->stale++;
		return s->pass != 0;
	}
	if (stamp->sum != sum(stamp, len) || which >= STREAMS) {
		s->corrupt++;
		return s->pass != 0;
	}
	/* What the compiler knows of it, the verifier has forgotten. */
	asm volatile("" : "+r"(which));
	which &= STREAMS - 1;
	stream = &s->stream[which];
	mark = (__u64)stamp->run << 48 | (stamp->seq + 1);
	at = stamp->seq & (RECENT - 1);
	if (stamp->seq >= stream->next) {
		stream->next = stamp->seq + 1;
		stream->received++;
	} else {
		judge_late(stream, r->seen[which][at], mark);
		if (r->seen[which][at] != mark)
			stream->received++;
	}
	r->seen[which][at] = mark;
	if (!(stamp->seq & s->sample)) {
		at = bucket(bpf_ktime_get_ns() - stamp->sent_ns);
		s->latency[at < BUCKETS ? at : BUCKETS - 1]++;
	}
	return s->pass != 0;
}

/* What it costs to get rid of a frame before a socket buffer is made of it. */
SEC("xdp")
int drop_xdp(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_DROP;
}

SEC("xdp")
int sink_xdp(struct xdp_md *ctx)
{
	struct stamp stamp;

	if (bpf_xdp_load_bytes(ctx, ETHERNET, &stamp, sizeof(stamp)))
		return XDP_PASS;
	return judge(&stamp, ctx->data_end - ctx->data) ? XDP_PASS : XDP_DROP;
}

SEC("classifier")
int sink_tc(struct __sk_buff *skb)
{
	struct stamp stamp;

	if (bpf_skb_load_bytes(skb, ETHERNET, &stamp, sizeof(stamp)))
		return TC_PASS;
	return judge(&stamp, skb->len) ? TC_PASS : TC_DROP;
}
