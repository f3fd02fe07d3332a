/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What a frame is: VLAN tags, addresses, protocol, ports, and the hash of its flow.
 *
 *	[ MAC addresses | tags, 0 to 4 | EtherType | IP, extension headers | TCP, UDP, ... ]
 *	               ^ the outermost one may be held apart, in the metadata of the socket buffer
 *
 * Bytes are only read by copies (LOAD), which work for frames in several pieces too and change nothing. Whatever is
 * missing or wrong has a defined result; fluxcap_headers::rules says the same in Rust, and tests compare the two.
 *
 * Without CAP_PERFMON the verifier refuses each write to the stack that is narrower than 8 bytes and meets something that was saved
 * there before: a pointer, and for Linux before 6.7 a number too. So these programs have their variables in memory of a map
 * (the_packet), write keys of maps as 8 bytes (find), and are compiled without 32-bit registers, so that the compiler saves 8 bytes as well.
 *
 * Define PACKET_XDP before including this in a program for XDP.
 */
#pragma once

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ETHERNET 14		/* bytes of a header without tags */
#define MAX_INLINE_TAGS 4
#define MAX_EXTENSIONS 8	/* extension headers of IPv6 that are followed */
#define TAG_HELD (1u << 31)

/* Bytes of the interface's link header: ETHERNET, or another length without meaning, such as 0. */
const volatile __u32 l2_len = ETHERNET;

#ifdef PACKET_XDP

typedef struct xdp_md CTX;
#define LOAD(ctx, off, to, len) bpf_xdp_load_bytes(ctx, off, to, len)

/* Drivers may hold a tag apart, but do not tell programs of it without help of their own. */
static __always_inline __u32 held_tag(CTX *ctx)
{
	(void)ctx;
	return 0;
}

/* Only interfaces with Ethernet headers take programs for XDP here. */
static __always_inline __u16 link_protocol(CTX *ctx)
{
	(void)ctx;
	return 0;
}

#else

typedef struct __sk_buff CTX;
#define LOAD(ctx, off, to, len) bpf_skb_load_bytes(ctx, off, to, len)

/* The tag that is not in the bytes: TAG_HELD and its TCI, or 0. */
static __always_inline __u32 held_tag(CTX *ctx)
{
	return ctx->vlan_present ? TAG_HELD | (ctx->vlan_tci & 0xffff) : 0;
}

static __always_inline __u16 link_protocol(CTX *ctx)
{
	return bpf_ntohs(ctx->protocol);
}

#endif

enum {
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_DCCP = 33,
	PROTO_SCTP = 132,
	PROTO_UDPLITE = 136,
};

enum packet_kind {
	PACKET_PLAIN,	/* its protocol has no ports, or it is not IP */
	PACKET_PORTS,	/* with ports */
	PACKET_LATER,	/* a protocol with ports, but they are in the first fragment */
	PACKET_CUT,	/* a protocol with ports, but they are missing */
};

union address {
	__u32 v4;	/* both in network byte order */
	__u64 v6[2];
};

/* Headers as they are in a frame; each of them is read into the same place. */
union headers {
	__be16 tag[2];
	struct {
		__u8 version_length, tos;
		__be16 length, id, fragment;
		__u8 ttl, proto;
		__be16 check;
		__be32 source, destination;
	} ipv4;
	struct {
		__u8 version, flow[3];
		__be16 length;
		__u8 next, hops;
		__u64 source[2], destination[2];
	} ipv6;
	struct {
		__u8 next, length;
		__be16 fragment;
	} extension;
	/* As far as the flags of TCP (RFC 9293, section 3.1). */
	struct {
		__be16 sport, dport;
		__u32 numbers[2];
		__u8 offset, flags;
	} upper;
	__u8 macs[12];
};

struct packet {
	union address source, destination;
	__u32 l3;		/* offset of what follows the EtherType */
	__u32 l4;		/* offset of the protocol's header, where that could be found */
	__u16 ether_type;	/* behind all tags; 0 if the frame ends before */
	__u16 vid[2];		/* of the outer two tags */
	__u16 sport, dport;	/* 0 without ports */
	__u8 tags;		/* how many, the one that is held apart included */
	__u8 family;		/* 4, 6, or 0: not IP, or no whole header */
	__u8 proto;		/* of IP; 0 if it is not */
	__u8 kind;		/* enum packet_kind */
	__u8 fragment;		/* part of a fragmented packet, the first part included */
	__u8 later;		/* not the first part */
	__u8 has_tcp_flags;
	__u8 tcp_flags;
	union headers raw;
};

/* Memory for one packet. No other program is run on this CPU until this one returns, but by what it calls itself. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} packets SEC(".maps");

/* The entry of a map whose keys are 32 bits long. */
static __always_inline void *find(void *map, __u64 key)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	key <<= 32;
#endif
	return bpf_map_lookup_elem(map, &key);
}

/*
 * The same number, which is 1 to `bound`, a power of two: said in a way that the compiler does not see through and the verifier believes.
 * A comparison it does not believe of a loader without CAP_PERFMON, because a CPU may guess its outcome.
 */
static __always_inline __u64 bounded(__u64 number, const __u64 bound)
{
	number--;
	asm volatile("" : "+r"(number));
	return (number & (bound - 1)) + 1;
}

static __always_inline struct packet *the_packet(void)
{
	return find(&packets, 0);
}

static __always_inline int is_tpid(__u16 type)
{
	return type == 0x8100 || type == 0x88a8 || type == 0x9100;
}

static __always_inline int has_ports(__u8 proto)
{
	return proto == PROTO_TCP || proto == PROTO_UDP || proto == PROTO_DCCP || proto == PROTO_SCTP || proto == PROTO_UDPLITE;
}

static __always_inline void packet_add_tag(struct packet *packet, __u16 tci)
{
	if (packet->tags == 0)
		packet->vid[0] = tci & 0xfff;
	else if (packet->tags == 1)
		packet->vid[1] = tci & 0xfff;
	packet->tags++;
}

/* Tags and EtherType. */
static __always_inline void packet_parse_link(CTX *ctx, struct packet *packet)
{
	__u32 held = held_tag(ctx);
	__u32 at = ETHERNET - 2;
	__be16 *tag = packet->raw.tag;

	if (held)
		packet_add_tag(packet, held);
	if (l2_len != ETHERNET) {
		packet->ether_type = link_protocol(ctx);
		packet->l3 = l2_len;
		return;
	}
#pragma unroll
	for (int i = 0; i <= MAX_INLINE_TAGS; i++) {
		/* Two bytes more than an EtherType: a frame that ends there holds neither a tag nor IP. */
		if (LOAD(ctx, at, tag, sizeof(packet->raw.tag)))
			return;
		packet->ether_type = bpf_ntohs(tag[0]);
		packet->l3 = at + 2;
		if (i == MAX_INLINE_TAGS || !is_tpid(packet->ether_type))
			return;
		packet_add_tag(packet, bpf_ntohs(tag[1]));
		at += sizeof(packet->raw.tag);
	}
}

/* RFC 791, section 3.1. */
static __always_inline void packet_parse_v4(CTX *ctx, struct packet *packet)
{
	__u16 fragment;
	__u8 first;

	if (LOAD(ctx, packet->l3, &packet->raw.ipv4, sizeof(packet->raw.ipv4)))
		return;
	first = packet->raw.ipv4.version_length;
	if (first < 0x45 || first > 0x4f)
		return;
	packet->family = 4;
	packet->source.v4 = packet->raw.ipv4.source;
	packet->destination.v4 = packet->raw.ipv4.destination;
	packet->proto = packet->raw.ipv4.proto;
	packet->l4 = packet->l3 + (first & 0x0f) * 4;
	fragment = bpf_ntohs(packet->raw.ipv4.fragment);
	/* More fragments, or an offset. */
	packet->fragment = (fragment & 0x3fff) != 0;
	packet->later = (fragment & 0x1fff) != 0;
}

/* Bytes of an extension header (RFC 8200, section 4), given its first ones; 0 for what is none. */
__attribute__((noinline)) __u32 extension_length(__u32 type, __u32 length)
{
	switch (type & 0xff) {
	case 0:		/* hop-by-hop options */
	case 43:	/* routing */
	case 60:	/* destination options */
	case 135:	/* mobility */
	case 139:	/* HIP */
	case 140:	/* shim6 */
		return ((length & 0xff) + 1) * 8;
	case 51:	/* authentication header (RFC 4302) */
		return ((length & 0xff) + 2) * 4;
	case 44:	/* fragment */
		return 8;
	default:
		return 0;
	}
}

/* Follows one extension header. Returns whether another may follow. */
__attribute__((noinline)) int packet_skip_extension(CTX *ctx, struct packet *packet)
{
	__u32 proto;

	if (!packet)
		return 0;
	proto = packet->proto;
	if (!extension_length(proto, 0) || LOAD(ctx, packet->l4, &packet->raw.extension, sizeof(packet->raw.extension)))
		return 0;
	if (proto == 44) {
		__u16 fragment = bpf_ntohs(packet->raw.extension.fragment);

		/* Offset, and more fragments; an atomic fragment (RFC 6946) is a whole packet. */
		if (fragment & 0xfff9)
			packet->fragment = 1;
		packet->later = (fragment & 0xfff8) != 0;
	}
	packet->l4 += extension_length(proto, packet->raw.extension.length);
	packet->proto = packet->raw.extension.next;
	return !packet->later;
}

/* Follows extension headers. No loop: the verifier would follow it beyond its end, as a CPU might in advance. */
static __always_inline void packet_skip_extensions(CTX *ctx, struct packet *packet)
{
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (!packet_skip_extension(ctx, packet))
			break;
	}
}

/* RFC 8200, section 3. */
static __always_inline void packet_parse_v6(CTX *ctx, struct packet *packet)
{
	if (LOAD(ctx, packet->l3, &packet->raw.ipv6, sizeof(packet->raw.ipv6)) || packet->raw.ipv6.version >> 4 != 6)
		return;
	packet->family = 6;
	packet->source.v6[0] = packet->raw.ipv6.source[0];
	packet->source.v6[1] = packet->raw.ipv6.source[1];
	packet->destination.v6[0] = packet->raw.ipv6.destination[0];
	packet->destination.v6[1] = packet->raw.ipv6.destination[1];
	packet->proto = packet->raw.ipv6.next;
	packet->l4 = packet->l3 + sizeof(packet->raw.ipv6);
	packet_skip_extensions(ctx, packet);
}

static __always_inline void packet_parse_upper(CTX *ctx, struct packet *packet)
{
	if (!has_ports(packet->proto))
		return;
	if (packet->later) {
		packet->kind = PACKET_LATER;
		return;
	}
	if (packet->proto == PROTO_TCP && !LOAD(ctx, packet->l4, &packet->raw.upper, 14)) {
		packet->has_tcp_flags = 1;
		packet->tcp_flags = packet->raw.upper.flags;
	} else if (LOAD(ctx, packet->l4, &packet->raw.upper, 4)) {
		packet->kind = PACKET_CUT;
		return;
	}
	packet->kind = PACKET_PORTS;
	packet->sport = bpf_ntohs(packet->raw.upper.sport);
	packet->dport = bpf_ntohs(packet->raw.upper.dport);
}

/*
 * Functions that are not inlined the verifier looks at once, each by itself (Linux 5.6), and not again for every way that leads there. Without
 * CAP_PERFMON these are many: all that a CPU might do in advance is among them.
 */
__attribute__((noinline)) int packet_parse(CTX *ctx, struct packet *packet)
{
	if (!packet)
		return 0;
	__builtin_memset(packet, 0, offsetof(struct packet, raw));
	packet_parse_link(ctx, packet);
	if (packet->ether_type == 0x0800)
		packet_parse_v4(ctx, packet);
	else if (packet->ether_type == 0x86dd)
		packet_parse_v6(ctx, packet);
	packet_parse_upper(ctx, packet);
	return 0;
}

/* The finaliser of SplitMix64. */
static __always_inline __u64 hash_mix(__u64 value)
{
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

static __always_inline __u64 hash_end(__u8 family, const union address *address, __u16 port)
{
	if (family == 4)
		return (__u64)bpf_ntohl(address->v4) << 16 | port;
	return hash_mix(bpf_be64_to_cpu(address->v6[0]) ^ port) ^ bpf_be64_to_cpu(address->v6[1]);
}

static __always_inline __u64 hash_mac(const __u8 *mac)
{
	__u64 value = 0;

	for (int i = 0; i < 6; i++)
		value = value << 8 | mac[i];
	return value;
}

/*
 * The same number for both directions of a flow, and the same as fluxcap_headers::flow_hash: addresses, protocol and
 * ports; of fragments the addresses only, so that all parts of a packet agree; of other frames the MAC addresses.
 */
__attribute__((noinline)) __u32 packet_flow_hash(CTX *ctx, struct packet *packet)
{
	__u64 from, to, salt = 0;

	if (!packet)
		return 0;
	if (packet->family) {
		int whole = !packet->fragment;

		from = hash_end(packet->family, &packet->source, whole ? packet->sport : 0);
		to = hash_end(packet->family, &packet->destination, whole ? packet->dport : 0);
		salt = whole ? (__u64)packet->proto << 56 : 0;
	} else {
		__u8 *macs = packet->raw.macs;

		__builtin_memset(macs, 0, sizeof(packet->raw.macs));
		if (l2_len == ETHERNET)
			LOAD(ctx, 0, macs, sizeof(packet->raw.macs));
		from = hash_mac(macs + 6);
		to = hash_mac(macs);
	}
	/* The smaller end first, so that it does not matter which one sent. */
	if (to < from) {
		__u64 swap = to;

		to = from;
		from = swap;
	}
	return hash_mix(hash_mix(from ^ salt) ^ to) >> 32;
}
