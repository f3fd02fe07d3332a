/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Checksums over whole packets, which UDP over IPv6 takes.
 */
#pragma once

#include "relay.h"

/* The complement of a sum in 16 bits. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

/* Adds the words from `at` to `end` to a sum, but at most CHUNK bytes; negative if they cannot be had. */
__attribute__((noinline)) long sum_chunk(struct __sk_buff *skb, __u32 at, __u32 end, __u32 sum)
{
	struct copy *copy = the_copy();
	__u32 n = end - at, words;
	long next;

	if (!copy)
		return -1;
	if (n >= CHUNK) {
		if (bpf_skb_load_bytes(skb, at, copy->chunk, CHUNK))
			return -1;
		next = bpf_csum_diff(NULL, 0, (__be32 *)(void *)copy->chunk, CHUNK, sum);
		return next < 0 ? -1 : (long)(__u32)next;
	}
	words = n & ~3u;
	if (words) {
		if (bpf_skb_load_bytes(skb, at, copy->chunk, bounded(words, CHUNK)))
			return -1;
		next = bpf_csum_diff(NULL, 0, (__be32 *)(void *)copy->chunk, bounded(words, CHUNK), sum);
		if (next < 0)
			return -1;
		sum = next;
	}
	if (n & 3) {
		__builtin_memset(copy->tail, 0, sizeof(copy->tail));
		if (bpf_skb_load_bytes(skb, at + words, copy->tail, bounded(n & 3, 4)))
			return -1;
		next = bpf_csum_diff(NULL, 0, (__be32 *)(void *)copy->tail, sizeof(copy->tail), sum);
		if (next < 0)
			return -1;
		sum = next;
	}
	return sum;
}

/* One step of what follows. The compiler leaves loops with such exits as they are, so these are none. */
#define ADD(function, bytes)                                                                                                      \
	do {                                                                                                                      \
		if (at >= end || next < 0)                                                                                        \
			return next;                                                                                              \
		next = function(skb, at, end, next);                                                                              \
		at += (bytes);                                                                                                    \
	} while (0)

/* The same for up to 12 times as many bytes, and for all that a packet may have. */
__attribute__((noinline)) long sum_chunks(struct __sk_buff *skb, __u32 at, __u32 end, __u32 sum)
{
	long next = sum;

	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	ADD(sum_chunk, CHUNK);
	return next;
}

__attribute__((noinline)) long sum_words(struct __sk_buff *skb, __u32 at, __u32 end, __u32 sum)
{
	long next = sum;

	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	ADD(sum_chunks, 12 * CHUNK);
	return next;
}

#undef ADD

/*
 * Where the sum of the inner TCP or UDP header and what follows ends when a sender of this host has left the checksum to the driver: the field
 * holds the sum of the pseudo header then, and all from the header on will come to its complement. (If the checksum is there, and is the
 * same number by chance, this is right as well.) 0: nothing is left open.
 */
__attribute__((noinline)) __u32 open_checksum(struct __sk_buff *skb, __u32 l3)
{
	struct copy *copy = the_copy();
	struct packet *packet;
	__u32 header, length, sum;

	if (!copy)
		return 0;
	packet = &copy->packet;
	header = packet->l4 - packet->l3;
	if (packet->kind != PACKET_PORTS || packet->fragment || (packet->proto != PROTO_TCP && packet->proto != PROTO_UDP))
		return 0;
	if (bpf_skb_load_bytes(skb, l3 + header + (packet->proto == PROTO_TCP ? 16 : 6), &copy->field, sizeof(copy->field)) ||
	    bpf_skb_load_bytes(skb, l3 + (packet->family == 4 ? 2 : 4), &copy->claimed, sizeof(copy->claimed)))
		return 0;
	length = bpf_ntohs(copy->claimed) + (packet->family == 4 ? 0 : IPV6_LEN) - header;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&packet->source, 2 * sizeof(packet->source), 0);
	sum = (sum & 0xffff) + (sum >> 16) + bpf_htons(packet->proto) + bpf_htons(length);
	return (__u16)~fold(sum) == copy->field ? l3 + header : 0;
}

/*
 * The UDP checksum, which receivers of IPv6 insist on unless they are told otherwise (RFC 6935 allows to leave it out). Giants go without it: it
 * would have to be made after they were cut into packets.
 */
__attribute__((noinline)) int checksum_v6(struct __sk_buff *skb)
{
	const __u32 udp = ETHERNET + IPV6_LEN;
	struct copy *copy = the_copy();
	__u32 length = skb->len - udp, end;
	long sum;

	if (!copy)
		return -1;
	/* The checksum of SCTP, which may be left to the driver too, is none of this kind. */
	if (copy->packet.proto == PROTO_SCTP)
		return 0;
	copy->field = 0;
	end = open_checksum(skb, ETHERNET + copy->grow);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)(void *)(copy->outer.header + 8), 32, 0);
	sum = (sum & 0xffff) + (sum >> 16) + bpf_htons(PROTO_UDP) + bpf_htons(length);
	sum = sum_words(skb, udp, end ? end : skb->len, sum);
	if (sum < 0)
		return -1;
	if (end)
		sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (__u16)~copy->field;
	copy->field = fold(sum);
	if (copy->field == 0)
		copy->field = 0xffff;
	return bpf_skb_store_bytes(skb, udp + 6, &copy->field, sizeof(copy->field), 0) ? -1 : 0;
}
