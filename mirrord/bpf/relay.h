/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the parts of the relay have in common: its settings, the way to the collector, and what it works on.
 */
#pragma once

#include "mirror.h"

#define TAG_LEN 4
#define MAX_TAGS 4
#define IPV4_LEN 20
#define IPV6_LEN 40
#define UDP_LEN 8
#define MAX_HEADER 80		/* outer IP, UDP and tunnel header */
#define LONGEST_PACKET 65535
#define FIRST_PORT 49152	/* of the dynamic ones (RFC 6335) */
#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86dd
#define BOUND 128		/* for bounded() */
#define CHUNK 512		/* bytes that bpf_csum_diff takes at a time */
#define ROOM_FOR_HEADERS 256	/* more than all headers of a packet in a tunnel in the overlay's */
#define EALREADY 114

/* Set by mirrord before the program is loaded. */
const volatile __u32 carries_frames = 0;	/* whole frames, else IP packets */
const volatile __u32 names_version = 0;		/* GUE: its second byte says whether IPv4 or IPv6 is inside */
const volatile __u32 over_gre = 0;		/* GRE follows the outer IP header, else UDP */
const volatile __u32 spread_ports = 0;		/* UDP source port by flow */
const volatile __u32 drop_oversize = 0;		/* else frames are cut to the path's MTU */

/* The way to the collector at a moment. */
struct way {
	__u32 ifindex;		/* to leave by; 0: there is none */
	__u32 mtu;		/* longest IP packet */
	__u32 header_len;	/* of `header` */
	__u32 silent;		/* the next host does not answer: one copy a second goes out, so that the kernel asks again */
	__u64 asked;		/* when that was, CLOCK_BOOTTIME ns */
	__u32 cutter;		/* the interface that cuts giants in tunnels; 0: there is none */
	__u32 unused;
	__u8 header[MAX_HEADER];	/* lengths, identification and checksums are zero */
};

/* mirrord writes the one that is not in use, and then says which one is. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct way);
} ways SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} way_in_use SEC(".maps");

/* An outer Ethernet header, which the kernel fills in when it knows the next host, and what is in front of the payload. */
struct outer {
	__u8 ethernet[ETHERNET];
	__u8 header[MAX_HEADER];
	__u8 unused[BOUND - ETHERNET - MAX_HEADER];
};

/* What is known of a copy, and made for it. */
struct copy {
	__u32 hash;		/* of its flow */
	__u32 head;		/* bytes of Ethernet header and tags */
	__u32 rest;		/* bytes behind them */
	__u32 whole;		/* the same before it was cut */
	__u32 segment;		/* of a giant: bytes of one of its packets; 0: to be sent as it is */
	__u32 shrink;		/* its packets have to become shorter by the outer header */
	__u32 is_tcp;
	__u32 mtu;		/* of the way */
	__u32 header_len;
	__u32 grow;		/* bytes that are put in front of what is behind the tags */
	__u32 odd;		/* see make_room() */
	__be16 type;		/* EtherType behind the tags */
	__be16 field, claimed;	/* of headers */
	__u8 start[6];
	__u8 tail[4];
	__u8 bytes[BOUND];	/* addresses and tags */
	struct packet packet;
	struct outer outer;
	__u8 chunk[CHUNK];
};

/* The stack has no room for it. Nothing else can run on this CPU until the program returns, but what it gives to the cutter. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct copy);
} scratch SEC(".maps");

static __always_inline struct copy *the_copy(void)
{
	return find(&scratch, 0);
}
