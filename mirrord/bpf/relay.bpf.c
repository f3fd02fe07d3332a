// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * What changes a copy on its way: cuts it, encapsulates it, gives it to several interfaces. A mirror clones frames to an interface of
 * its own (which stays down), at whose egress this program is, and owns the clone: nothing that happens here concerns the original.
 *
 *	clone -> cut to the snap length -> outer header -> bpf_redirect_neigh -> the kernel finds the next host, and sends
 *	                                -> clone to each device
 *
 * mirrord makes the outer header (fluxcap_headers::tunnel) and keeps interface, source and MTU up to date; only what differs from frame to
 * frame goes in here. The stack cuts giants (GSO) into packets later: BPF_F_ADJ_ROOM_ENCAP_* tell it which bytes are headers.
 *
 * Everything about the copy is counted here, and the mirror is told nothing of it.
 */
#include <stddef.h>
#include <linux/pkt_cls.h>
#include "mirror.h"
#include "clone.h"

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
#define BOUND 128		/* a power of two, see bounded() */
#define CHUNK 512		/* bytes that bpf_csum_diff takes at a time */
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
	__u32 segment;		/* of a giant: bytes of one of its packets; 0: to be sent as it is */
	__u32 shrink;		/* its packets have to become shorter by the outer header */
	__u32 is_tcp;
	__be16 type;		/* EtherType behind the tags */
	__u8 bytes[BOUND];	/* addresses and tags */
	struct packet packet;
	struct outer outer;
	__u8 chunk[CHUNK + 4];
};

/* The stack has no room for it. Nothing else can run on this CPU until the program returns. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct copy);
} scratch SEC(".maps");

static __always_inline struct copy *the_copy(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline struct way *the_way(void)
{
	__u32 zero = 0, *in_use = bpf_map_lookup_elem(&way_in_use, &zero), index;

	if (!in_use)
		return NULL;
	index = *in_use & 1;
	return bpf_map_lookup_elem(&ways, &index);
}

/*
 * The same number, which is 1 to `bound`, a power of two: said in a way that the compiler does not see through and older verifiers
 * understand, right before the number is used.
 */
static __always_inline __u32 bounded(__u32 number, const __u32 bound)
{
	number--;
	asm volatile("" : "+r"(number));
	return (number & (bound - 1)) + 1;
}

/* Whether this is the first copy in a second. */
static __always_inline int may_ask(struct way *way)
{
	__u64 now = bpf_ktime_get_boot_ns(), asked = way->asked;

	return now - asked >= SECOND && __sync_val_compare_and_swap(&way->asked, asked, now) == asked;
}

/* What is to be known before anything is changed. */
static __always_inline void look(struct __sk_buff *skb, struct copy *copy)
{
	struct packet *packet = &copy->packet;
	__u8 offset;

	copy->shrink = 0;
	copy->segment = 0;
	packet_parse(skb, packet);
	copy->hash = packet_flow_hash(skb, packet);
	if (!skb->gso_size || !packet->family)
		return;
	copy->segment = packet->l4 - packet->l3 + skb->gso_size;
	copy->is_tcp = packet->proto == PROTO_TCP;
	if (!copy->is_tcp)
		copy->segment += UDP_LEN;
	else if (!bpf_skb_load_bytes(skb, packet->l4 + 12, &offset, 1))
		copy->segment += (offset >> 4) * 4;
}

/* Takes addresses and tags into `copy` and the tags off the frame; the outermost one may be held apart. */
static __always_inline int take_head(struct __sk_buff *skb, struct copy *copy)
{
	__be16 tag[2];

	copy->head = ETHERNET;
	if (bpf_skb_load_bytes(skb, 0, copy->bytes, 12))
		return -1;
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		if (skb->vlan_present) {
			tag[0] = skb->vlan_proto;
			tag[1] = bpf_htons(skb->vlan_tci);
		} else if (bpf_skb_load_bytes(skb, 12, tag, sizeof(tag))) {
			return -1;
		} else if (tag[0] != (__be16)skb->protocol || (tag[0] != bpf_htons(0x8100) && tag[0] != bpf_htons(0x88a8))) {
			/* Not a tag, or none that the kernel would take off. */
			break;
		}
		__builtin_memcpy(copy->bytes + 12 + i * TAG_LEN, tag, sizeof(tag));
		copy->head += TAG_LEN;
		if (bpf_skb_vlan_pop(skb))
			return -1;
	}
	copy->rest = skb->len - ETHERNET;
	return skb->vlan_present ? -1 : bpf_skb_load_bytes(skb, 12, &copy->type, sizeof(copy->type));
}

static __always_inline int is_ip(const struct copy *copy)
{
	return copy->type == bpf_htons(TYPE_IPV4) || copy->type == bpf_htons(TYPE_IPV6);
}

/* Leaves out what follows the IP packet, padding of short frames. Returns 0, or that there is no IP packet. */
static __always_inline int take_packet(struct __sk_buff *skb, struct copy *copy)
{
	__u8 start[6];
	__u32 claimed;

	if (!is_ip(copy) || bpf_skb_load_bytes(skb, ETHERNET, start, sizeof(start)))
		return -1;
	if (copy->type == bpf_htons(TYPE_IPV4)) {
		claimed = start[2] << 8 | start[3];
		if (start[0] < 0x45 || start[0] > 0x4f || copy->rest < IPV4_LEN || (claimed && claimed < (start[0] & 0xfu) * 4))
			return -1;
	} else {
		claimed = start[4] << 8 | start[5];
		if (start[0] >> 4 != 6 || copy->rest < IPV6_LEN)
			return -1;
		if (claimed)
			claimed += IPV6_LEN;
	}
	/* A giant may say 0. */
	if (claimed && claimed < copy->rest && !copy->segment)
		copy->rest = claimed;
	return 0;
}

/* Decides how much is kept: `rest` becomes that. Returns 0, or that it does not fit. */
static __always_inline int fit(struct copy *copy, __u32 mtu, __u32 header_len, __u32 grow)
{
	__u32 fixed = header_len + (carries_frames ? copy->head : 0);
	__u32 least = carries_frames ? 0 : copy->type == bpf_htons(TYPE_IPV4) ? IPV4_LEN : IPV6_LEN;
	__u32 most, wanted = copy->rest;

	if (mtu < fixed + least)
		return -1;
	most = mtu - fixed;
	if (snaplen) {
		__u32 slice = snaplen < copy->head + least ? least : snaplen - copy->head;

		/* A giant is so many packets: only if those are too long is it cut. */
		if (copy->segment ? copy->segment > slice : wanted > slice) {
			wanted = slice;
			copy->segment = 0;
		}
	}
	if (copy->segment) {
		if (fixed + copy->rest > LONGEST_PACKET)
			return -1;
		if (copy->segment <= most)
			return 0;
		if (drop_oversize)
			return -1;
		if (copy->is_tcp && copy->segment - grow <= most && copy->segment > 4 * grow) {
			copy->shrink = 1;
			return 0;
		}
		copy->segment = 0;
	}
	if (wanted > most) {
		if (drop_oversize)
			return -1;
		wanted = most;
	}
	copy->rest = wanted;
	return 0;
}

/*
 * Cuts a frame. The kernel does not cut before the place of a checksum that it has still to make, some 20 bytes into the TCP header: then
 * somewhat more is kept, but never more than there is.
 */
static __always_inline int cut(struct __sk_buff *skb, __u32 length)
{
	if (!bpf_skb_change_tail(skb, length, 0))
		return 0;
	if (length < 80 && skb->len > 80 && !bpf_skb_change_tail(skb, 80, 0))
		return 0;
	return length < 160 && skb->len > 160 ? bpf_skb_change_tail(skb, 160, 0) : -1;
}

/*
 * Gives the buffer the protocol number of the outer packet, by which bpf_redirect_neigh goes. There is no helper for that; but the kernel
 * reads the number from the frame when it takes a tag off.
 */
static __always_inline int set_protocol(struct __sk_buff *skb)
{
	return bpf_skb_vlan_push(skb, bpf_htons(0x8100), 1) || bpf_skb_vlan_push(skb, bpf_htons(0x8100), 1) ||
	       bpf_skb_vlan_pop(skb) || bpf_skb_vlan_pop(skb);
}

#define IN_TUNNEL 2

/* Makes room for `grow` bytes of headers. `odd` becomes whether the protocol number is still that of the frame. */
static __always_inline long make_room(struct __sk_buff *skb, const struct copy *copy, int v6, __u32 grow, int *odd)
{
	__u64 flags = v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	long result;

	*odd = 0;
	if (!is_ip(copy) || copy->type != (__be16)skb->protocol) {
		*odd = 1;
		return skb->gso_size ? -1 : bpf_skb_change_head(skb, grow, 0);
	}
	flags |= over_gre ? BPF_F_ADJ_ROOM_ENCAP_L4_GRE : BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (carries_frames) {
		flags |= BPF_F_ADJ_ROOM_ENCAP_L2(copy->head);
		/* Linux before 5.13 does not know this, and giants are all that needs it. */
		if (skb->gso_size)
			flags |= BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	}
	if (!copy->shrink)
		flags |= BPF_F_ADJ_ROOM_FIXED_GSO;
	result = bpf_skb_adjust_room(skb, grow, BPF_ADJ_ROOM_MAC, flags);
	if (result == -EALREADY && !skb->gso_size) {
		/* It is in a tunnel of this host already; what has to be known of its headers is known. */
		*odd = IN_TUNNEL;
		result = bpf_skb_adjust_room(skb, grow, BPF_ADJ_ROOM_MAC, 0);
	}
	return result;
}

/* The complement of a sum in 16 bits. */
static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

static __always_inline void put16(__u8 *to, __u16 value)
{
	to[0] = value >> 8;
	to[1] = value;
}

static __always_inline void complete_v4(struct outer *outer, __u32 total)
{
	__u8 *ip = outer->header;
	__u16 sum;

	put16(outer->ethernet + 12, TYPE_IPV4);
	put16(ip + 2, total);
	put16(ip + 4, bpf_get_prandom_u32() | 1);	/* never 0: then some hosts choose one */
	sum = fold(bpf_csum_diff(NULL, 0, (__be32 *)(void *)ip, IPV4_LEN, 0));
	__builtin_memcpy(ip + 10, &sum, sizeof(sum));
}

static __always_inline void complete_v6(struct outer *outer, __u32 total, __u32 hash)
{
	__u8 *ip = outer->header;

	put16(outer->ethernet + 12, TYPE_IPV6);
	ip[1] |= hash >> 16 & 0x0f;
	put16(ip + 2, hash);
	put16(ip + 4, total - IPV6_LEN);
}

static __always_inline void complete_udp(__u8 *udp, const struct copy *copy, __u32 length)
{
	if (spread_ports)
		put16(udp, FIRST_PORT | copy->hash >> 18);
	put16(udp + 4, length);
	if (names_version)
		udp[UDP_LEN + 1] = copy->type == bpf_htons(TYPE_IPV4) ? 4 : 41;
}

/* Writes all headers into the room that was made. */
static __always_inline long write_headers(struct __sk_buff *skb, struct copy *copy, const struct way *way, int v6)
{
	__u32 total = skb->len - ETHERNET, at = ETHERNET + way->header_len, tagged = copy->head - 2;
	struct outer *outer = &copy->outer;

	__builtin_memset(outer->ethernet, 0, sizeof(outer->ethernet));
	__builtin_memcpy(outer->header, way->header, sizeof(outer->header));
	if (v6)
		complete_v6(outer, total, copy->hash);
	else
		complete_v4(outer, total);
	if (!over_gre && v6)
		complete_udp(outer->header + IPV6_LEN, copy, total - IPV6_LEN);
	else if (!over_gre)
		complete_udp(outer->header + IPV4_LEN, copy, total - IPV4_LEN);
	if (bpf_skb_store_bytes(skb, 0, outer, bounded(at, BOUND), 0))
		return -1;
	if (!carries_frames)
		return 0;
	return bpf_skb_store_bytes(skb, at, copy->bytes, bounded(tagged, BOUND), 0) ||
	       bpf_skb_store_bytes(skb, at + tagged, &copy->type, sizeof(copy->type), 0);
}

/*
 * The sum of the words from `at` to `end`; negative if they cannot be had. A function for the verifier too, which so looks at its loop once.
 */
__noinline long sum_words(struct __sk_buff *skb, __u32 at, __u32 end, __u32 sum)
{
	struct copy *copy = the_copy();

	if (!copy)
		return -1;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i <= LONGEST_PACKET / CHUNK && at < end; i++) {
		__u32 n = end - at;
		long next;

		if (n > CHUNK)
			n = CHUNK;
		n = bounded(n, CHUNK);
		__builtin_memset(copy->chunk + n, 0, 4);
		if (bpf_skb_load_bytes(skb, at, copy->chunk, n))
			return -1;
		next = bpf_csum_diff(NULL, 0, (__be32 *)(void *)copy->chunk, (n + 3) & ~3u, sum);
		if (next < 0)
			return -1;
		sum = next;
		at += n;
	}
	return at < end ? -1 : (long)sum;
}

/*
 * Where the sum of the inner TCP or UDP header and what follows ends when a sender of this host has left the checksum to the driver: the field
 * holds the sum of the pseudo header then, and all from the header on will come to its complement. (If the checksum is there, and is the
 * same number by chance, this is right as well.) 0: nothing is left open.
 */
static __always_inline __u32 open_checksum(struct __sk_buff *skb, struct copy *copy, __u32 l3, __u16 *field)
{
	struct packet *packet = &copy->packet;
	__u32 header = packet->l4 - packet->l3, length, sum;
	__be16 claimed;

	if (packet->kind != PACKET_PORTS || packet->fragment || (packet->proto != PROTO_TCP && packet->proto != PROTO_UDP))
		return 0;
	if (bpf_skb_load_bytes(skb, l3 + header + (packet->proto == PROTO_TCP ? 16 : 6), field, sizeof(*field)) ||
	    bpf_skb_load_bytes(skb, l3 + (packet->family == 4 ? 2 : 4), &claimed, sizeof(claimed)))
		return 0;
	length = bpf_ntohs(claimed) + (packet->family == 4 ? 0 : IPV6_LEN) - header;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&packet->source, 2 * sizeof(packet->source), 0);
	sum = (sum & 0xffff) + (sum >> 16) + bpf_htons(packet->proto) + bpf_htons(length);
	return (__u16)~fold(sum) == *field ? l3 + header : 0;
}

/*
 * The UDP checksum, which receivers of IPv6 insist on unless they are told otherwise (RFC 6935 allows to leave it out). Giants go without it: it
 * would have to be made after they were cut into packets.
 */
static __always_inline long checksum_v6(struct __sk_buff *skb, struct copy *copy, __u32 l3)
{
	const __u32 udp = ETHERNET + IPV6_LEN;
	__u32 length = skb->len - udp, end;
	__u16 field = 0, check;
	long sum;

	/* The checksum of SCTP, which may be left to the driver too, is none of this kind. */
	if (copy->packet.proto == PROTO_SCTP)
		return 0;
	end = open_checksum(skb, copy, l3, &field);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)(void *)(copy->outer.header + 8), 32, 0);
	sum = (sum & 0xffff) + (sum >> 16) + bpf_htons(PROTO_UDP) + bpf_htons(length);
	sum = sum_words(skb, udp, end ? end : skb->len, sum);
	if (sum < 0)
		return -1;
	if (end)
		sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (__u16)~field;
	check = fold(sum);
	if (check == 0)
		check = 0xffff;
	return bpf_skb_store_bytes(skb, udp + 6, &check, sizeof(check), 0);
}

/* Encapsulates a frame; -1, or the reason (enum drop) why that cannot be. */
static __always_inline int encapsulate(struct __sk_buff *skb, struct copy *copy, const struct way *way)
{
	__u32 header_len = way->header_len, whole, grow;
	int v6 = way->header[0] >> 4 == 6, odd;

	if (header_len < IPV4_LEN || header_len > MAX_HEADER)
		return DROP_NO_ROUTE;
	look(skb, copy);
	if (take_head(skb, copy))
		return DROP_ENCAP_FAILED;
	if (!carries_frames && take_packet(skb, copy))
		return DROP_NOT_IP;
	grow = header_len + (carries_frames ? copy->head : 0);
	whole = copy->rest;
	if (fit(copy, way->mtu, header_len, grow))
		return DROP_OVERSIZE;
	/* Not the same: padding goes without saying. */
	if (ETHERNET + copy->rest < skb->len && cut(skb, ETHERNET + copy->rest))
		return DROP_ENCAP_FAILED;
	if (make_room(skb, copy, v6, grow, &odd) || write_headers(skb, copy, way, v6))
		return DROP_ENCAP_FAILED;
	if (v6 && !over_gre && odd != IN_TUNNEL && !skb->gso_size && checksum_v6(skb, copy, ETHERNET + grow))
		return DROP_ENCAP_FAILED;
	if (odd && set_protocol(skb))
		return DROP_ENCAP_FAILED;
	copy->rest = whole - copy->rest;	/* what was cut off */
	return -1;
}

/* Sends a copy to the collector. */
static __always_inline int to_collector(struct __sk_buff *skb, struct counters *count, __u32 length)
{
	struct way *way = the_way();
	struct copy *copy = the_copy();
	int reason;

	if (!way || !copy || !way->ifindex)
		reason = DROP_NO_ROUTE;
	else if (way->silent && !may_ask(way))
		reason = DROP_UNREACHABLE;
	else
		reason = encapsulate(skb, copy, way);
	if (reason < 0 && bpf_redirect_neigh(way->ifindex, NULL, 0, 0) != TC_ACT_REDIRECT)
		reason = DROP_REDIRECT_FAILED;
	count_output(0, reason >= 0);
	if (reason >= 0) {
		count_drop(count, reason);
		add_errors(1);
		return TC_ACT_SHOT;
	}
	count->mirrored++;
	count->mirrored_bytes += length;
	if (copy->rest)
		count->truncated++;
	return TC_ACT_REDIRECT;
}

/* Gives what is left of a copy to each device. */
static __always_inline void to_devices(struct __sk_buff *skb, struct counters *count, __u32 length)
{
	__u32 cut_off = 0, failed = 0, tag = skb->vlan_present ? TAG_LEN : 0;

	/* A giant is so many packets: only if those are too long is it cut. */
	if (length > snaplen && (!skb->gso_size || skb->gso_size > snaplen)) {
		cut_off = 1;
		if (cut(skb, snaplen - tag)) {
			count->drops[DROP_ENCAP_FAILED]++;
			add_errors(1);
			return;
		}
	}
	count->copied += device_count - 1;
#pragma clang loop unroll(disable)
	for (__u32 n = 0; n < MAX_DEVICES && n < device_count; n++) {
		int reason = clone(skb, n);

		count_output(n, reason >= 0);
		if (reason >= 0) {
			count_drop(count, reason);
			failed++;
			continue;
		}
		count->mirrored++;
		count->mirrored_bytes += length;
		count->truncated += cut_off;
	}
	add_errors(failed);
}

SEC("classifier")
int relay(struct __sk_buff *skb)
{
	struct counters *count = own_counters();
	__u32 length = skb->len + (skb->vlan_present ? TAG_LEN : 0);

	if (!count)
		return TC_ACT_SHOT;	/* cannot be: it has an entry */
	if (!device_count)
		return to_collector(skb, count, length);
	to_devices(skb, count, length);
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
