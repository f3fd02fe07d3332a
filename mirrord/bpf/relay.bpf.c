// SPDX-License-Identifier: GPL-2.0 OR MIT
// Compiled with -mcpu=v2, see packet.h.
/*
 * What changes a copy on its way: cuts it, encapsulates it, gives it to several interfaces. A mirror clones frames to an interface of
 * its own (which stays down), at whose egress this program is, and owns the clone: nothing that happens here concerns the original.
 *
 *	clone -> cut to the snap length -> outer header -> bpf_redirect_neigh -> the kernel finds the next host, and sends
 *	                                -> clone to each device
 *
 * mirrord makes the outer header (fluxcap_headers::tunnel) and keeps interface, source and MTU up to date; only what differs from frame to
 * frame goes in here. The stack cuts giants (GSO) into packets later: BPF_F_ADJ_ROOM_ENCAP_* tell it which bytes are headers.
 * It knows two layers of headers and no more, so a giant that is in a tunnel of this host already goes by the cutter, a pair of interfaces (veth)
 * without offloads: the kernel cuts what it sends there, makes its checksums, and each packet comes to `packet` at the other end.
 *
 * Everything about the copy is counted here, and the mirror is told nothing of it.
 */
#include <stddef.h>
#include <linux/pkt_cls.h>
#include "mirror.h"
#include "clone.h"
#include "relay.h"
#include "relay_sums.h"

/* Whether this is the first copy in a second. */
static __always_inline int may_ask(struct way *way)
{
	__u64 now = bpf_ktime_get_boot_ns(), asked = way->asked;

	return now - asked >= SECOND && __sync_val_compare_and_swap(&way->asked, asked, now) == asked;
}

/*
 * What follows is many functions, none of which is inlined: see packet_parse(). They have what they work on in the_copy(), and return 0 when all is
 * well.
 */

/* What is to be known before anything is changed. */
__attribute__((noinline)) int look(struct __sk_buff *skb)
{
	struct copy *copy = the_copy();
	struct packet *packet;

	if (!copy)
		return -1;
	packet = &copy->packet;
	copy->shrink = 0;
	copy->segment = 0;
	packet_parse(skb, packet);
	copy->hash = packet_flow_hash(skb, packet);
	if (!skb->gso_size || !packet->family)
		return 0;
	copy->segment = packet->l4 - packet->l3 + skb->gso_size;
	copy->is_tcp = packet->proto == PROTO_TCP;
	if (!copy->is_tcp)
		copy->segment += UDP_LEN;
	else if (!bpf_skb_load_bytes(skb, packet->l4 + 12, copy->start, 1))
		copy->segment += (copy->start[0] >> 4) * 4;
	return 0;
}

/* Takes addresses and tags into `copy` and the tags off the frame; the outermost one may be held apart. */
__attribute__((noinline)) int take_head(struct __sk_buff *skb)
{
	struct copy *copy = the_copy();
	__be16 *tag;

	if (!copy || bpf_skb_load_bytes(skb, 0, copy->bytes, 12))
		return -1;
	copy->head = ETHERNET;
	tag = copy->packet.raw.tag;
#pragma unroll
	for (int i = 0; i < MAX_TAGS; i++) {
		if (skb->vlan_present) {
			tag[0] = skb->vlan_proto;
			tag[1] = bpf_htons(skb->vlan_tci);
		} else if (bpf_skb_load_bytes(skb, 12, tag, sizeof(copy->packet.raw.tag))) {
			return -1;
		} else if (tag[0] != (__be16)skb->protocol || (tag[0] != bpf_htons(0x8100) && tag[0] != bpf_htons(0x88a8))) {
			/* Not a tag, or none that the kernel would take off. */
			break;
		}
		__builtin_memcpy(copy->bytes + 12 + i * TAG_LEN, tag, sizeof(copy->packet.raw.tag));
		copy->head += TAG_LEN;
		if (bpf_skb_vlan_pop(skb))
			return -1;
	}
	copy->rest = skb->len - ETHERNET;
	return skb->vlan_present ? -1 : bpf_skb_load_bytes(skb, 12, &copy->type, sizeof(copy->type));
}

/* Puts back the tags that take_head() has taken off. */
__attribute__((noinline)) int restore_tags(struct __sk_buff *skb)
{
	struct copy *copy = the_copy();

	if (!copy)
		return -1;
#pragma unroll
	for (int i = MAX_TAGS - 1; i >= 0; i--) {
		const __be16 *tag = (const __be16 *)(const void *)(copy->bytes + 12 + i * TAG_LEN);

		if (copy->head >= (__u32)(ETHERNET + (i + 1) * TAG_LEN) && bpf_skb_vlan_push(skb, tag[0], bpf_ntohs(tag[1])))
			return -1;
	}
	return 0;
}

static __always_inline int is_ip(const struct copy *copy)
{
	return copy->type == bpf_htons(TYPE_IPV4) || copy->type == bpf_htons(TYPE_IPV6);
}

/* Leaves out what follows the IP packet, padding of short frames. Not 0: there is no IP packet. */
__attribute__((noinline)) int take_packet(struct __sk_buff *skb)
{
	struct copy *copy = the_copy();
	__u32 claimed;
	__u8 *start;

	if (!copy || !is_ip(copy) || bpf_skb_load_bytes(skb, ETHERNET, copy->start, sizeof(copy->start)))
		return -1;
	start = copy->start;
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

/* How a copy fits, as fit() says it. */
enum {
	FITS,
	TOO_LONG,
	TO_BE_CUT,	/* a giant that gets too large for any length field, or has packets that are too long */
};

/* Decides how much is kept: `rest` becomes that. */
__attribute__((noinline)) int fit(void)
{
	struct copy *copy = the_copy();
	__u32 fixed, least, most, wanted;

	if (!copy)
		return TOO_LONG;
	fixed = copy->header_len + (carries_frames ? copy->head : 0);
	least = carries_frames ? 0 : copy->type == bpf_htons(TYPE_IPV4) ? IPV4_LEN : IPV6_LEN;
	wanted = copy->rest;
	if (copy->mtu < fixed + least)
		return TOO_LONG;
	most = copy->mtu - fixed;
	if (copy->segment) {
		/* Giants are so many packets: where these are too long, each is judged by itself. */
		if (snaplen && copy->segment > snaplen)
			return TO_BE_CUT;
		if (fixed + copy->rest > LONGEST_PACKET)
			return TO_BE_CUT;
		if (copy->segment <= most)
			return FITS;
		if (drop_oversize || !copy->is_tcp || copy->segment - copy->grow > most || copy->segment <= 4 * copy->grow)
			return TO_BE_CUT;
		copy->shrink = 1;
		return FITS;
	}
	if (snaplen) {
		__u32 slice = snaplen < copy->head + least ? least : snaplen - copy->head;

		if (wanted > slice)
			wanted = slice;
	}
	if (wanted > most) {
		if (drop_oversize)
			return TOO_LONG;
		wanted = most;
	}
	copy->rest = wanted;
	return FITS;
}

/*
 * Cuts a frame. The kernel does not cut before the place of a checksum that it has still to make, some 20 bytes into the TCP header: then
 * somewhat more is kept, but never more than there is.
 */
__attribute__((noinline)) int cut(struct __sk_buff *skb, __u32 length)
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
__attribute__((noinline)) int set_protocol(struct __sk_buff *skb)
{
	return bpf_skb_vlan_push(skb, bpf_htons(0x8100), 1) || bpf_skb_vlan_push(skb, bpf_htons(0x8100), 1) ||
	       bpf_skb_vlan_pop(skb) || bpf_skb_vlan_pop(skb);
}

#define IN_TUNNEL 2

/* Makes room for `grow` bytes of headers. `odd` becomes whether the protocol number is still that of the frame. */
__attribute__((noinline)) int make_room(struct __sk_buff *skb, __u32 v6)
{
	__u64 flags = v6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	struct copy *copy = the_copy();
	long result;

	if (!copy)
		return -1;
	copy->odd = 0;
	if (!is_ip(copy) || copy->type != (__be16)skb->protocol) {
		copy->odd = 1;
		return skb->gso_size ? -1 : bpf_skb_change_head(skb, copy->grow, 0);
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
	result = bpf_skb_adjust_room(skb, copy->grow, BPF_ADJ_ROOM_MAC, flags);
	if (result == -EALREADY && !skb->gso_size) {
		/* It is in a tunnel of this host already; what has to be known of its headers is known. */
		copy->odd = IN_TUNNEL;
		result = bpf_skb_adjust_room(skb, copy->grow, BPF_ADJ_ROOM_MAC, 0);
	}
	return result ? -1 : 0;
}

static __always_inline void put16(__u8 *to, __u16 value)
{
	to[0] = value >> 8;
	to[1] = value;
}

/* Copies what all outer headers have in common. */
static __always_inline void begin_outer(struct copy *copy, const struct way *way)
{
	__builtin_memset(copy->outer.ethernet, 0, sizeof(copy->outer.ethernet));
	__builtin_memcpy(copy->outer.header, way->header, sizeof(copy->outer.header));
}

static __always_inline void complete_udp(__u8 *udp, const struct copy *copy, __u32 length)
{
	if (spread_ports)
		put16(udp, FIRST_PORT | copy->hash >> 18);
	put16(udp + 4, length);
	if (names_version)
		udp[UDP_LEN + 1] = copy->type == bpf_htons(TYPE_IPV4) ? 4 : 41;
}

/* Fills in what differs from packet to packet. Two functions: the places are others, and pointers that move by a number are not for everybody. */
__attribute__((noinline)) int complete_v4(__u32 total)
{
	struct copy *copy = the_copy();
	__u8 *ip;
	__u16 sum;

	if (!copy)
		return -1;
	ip = copy->outer.header;
	put16(copy->outer.ethernet + 12, TYPE_IPV4);
	put16(ip + 2, total);
	put16(ip + 4, bpf_get_prandom_u32() | 1);	/* never 0: then some hosts choose one */
	sum = fold(bpf_csum_diff(NULL, 0, (__be32 *)(void *)ip, IPV4_LEN, 0));
	__builtin_memcpy(ip + 10, &sum, sizeof(sum));
	if (!over_gre)
		complete_udp(ip + IPV4_LEN, copy, total - IPV4_LEN);
	return 0;
}

__attribute__((noinline)) int complete_v6(__u32 total)
{
	struct copy *copy = the_copy();
	__u8 *ip;

	if (!copy)
		return -1;
	ip = copy->outer.header;
	put16(copy->outer.ethernet + 12, TYPE_IPV6);
	ip[1] |= copy->hash >> 16 & 0x0f;
	put16(ip + 2, copy->hash);
	put16(ip + 4, total - IPV6_LEN);
	if (!over_gre)
		complete_udp(ip + IPV6_LEN, copy, total - IPV6_LEN);
	return 0;
}

/* Writes all headers into the room that was made. */
__attribute__((noinline)) int write_headers(struct __sk_buff *skb)
{
	struct copy *copy = the_copy();
	__u32 at, tagged;

	if (!copy)
		return -1;
	at = ETHERNET + copy->header_len;
	tagged = copy->head - 2;
	if (bpf_skb_store_bytes(skb, 0, &copy->outer, bounded(at, BOUND), 0))
		return -1;
	if (!carries_frames)
		return 0;
	return bpf_skb_store_bytes(skb, at, copy->bytes, bounded(tagged, BOUND), 0) ||
	       bpf_skb_store_bytes(skb, at + tagged, &copy->type, sizeof(copy->type), 0);
}

/* What encapsulate() says of a frame, as a rule a giant, that has to go by the cutter: plain packets come out. Not the number of a reason. */
#define TO_CUTTER DROPS

/* Encapsulates a frame; -1, or TO_CUTTER, or the reason (enum drop) why that cannot be. */
static __always_inline int encapsulate(struct __sk_buff *skb, struct copy *copy, const struct way *way)
{
	__u32 v6 = way->header[0] >> 4 == 6;
	int fits;

	copy->header_len = way->header_len;
	copy->mtu = way->mtu;
	if (copy->header_len < IPV4_LEN || copy->header_len > MAX_HEADER)
		return DROP_NO_ROUTE;
	begin_outer(copy, way);
	look(skb);
	if (take_head(skb))
		return DROP_ENCAP_FAILED;
	if (!carries_frames && take_packet(skb))
		return DROP_NOT_IP;
	copy->grow = copy->header_len + (carries_frames ? copy->head : 0);
	copy->whole = copy->rest;
	fits = fit();
	if (fits != FITS)
		return fits == TO_BE_CUT ? TO_CUTTER : DROP_OVERSIZE;
	/* Not the same: padding goes without saying. */
	if (ETHERNET + copy->rest < skb->len && cut(skb, ETHERNET + copy->rest))
		return TO_CUTTER;
	if (make_room(skb, v6))
		return TO_CUTTER;
	if (v6 ? complete_v6(skb->len - ETHERNET) : complete_v4(skb->len - ETHERNET))
		return DROP_ENCAP_FAILED;
	if (write_headers(skb))
		return DROP_ENCAP_FAILED;
	if (v6 && !over_gre && copy->odd != IN_TUNNEL && !skb->gso_size && checksum_v6(skb))
		return DROP_ENCAP_FAILED;
	if (copy->odd && set_protocol(skb))
		return DROP_ENCAP_FAILED;
	copy->rest = copy->whole - copy->rest;	/* what was cut off */
	return -1;
}

/*
 * The packets of TCP become shorter, so that they fit with what will be in front of them. There is no flag for that on this way; but room that is
 * made and taken away again may shorten them. Not for datagrams, which the kernel leaves as they are.
 */
__attribute__((noinline)) int shorten(struct __sk_buff *skb)
{
	struct copy *copy = the_copy();
	__u32 by;

	if (!copy || drop_oversize || copy->head != ETHERNET || skb->gso_size + ROOM_FOR_HEADERS <= copy->mtu)
		return 0;
	by = copy->grow;
	if (copy->is_tcp && copy->segment + copy->grow > copy->mtu + by)
		by = copy->segment + copy->grow - copy->mtu;
	if (skb->gso_size < by + ROOM_FOR_HEADERS || bpf_skb_adjust_room(skb, by, BPF_ADJ_ROOM_MAC, 0))
		return 0;
	return bpf_skb_adjust_room(skb, -(__s32)by, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
}

/*
 * Has the kernel cut a giant into packets, each of which comes to `packet` and is counted there: there are as many copies more. Returns -1, or
 * the reason why it cannot be.
 */
static __always_inline int by_cutter(struct __sk_buff *skb, struct counters *count, __u32 cutter)
{
	if (!cutter || restore_tags(skb))
		return skb->gso_size ? DROP_NOT_SEGMENTED : DROP_ENCAP_FAILED;
	if (skb->gso_size && shorten(skb))
		return DROP_ENCAP_FAILED;
	if (bpf_clone_redirect(skb, cutter, 0) < 0)
		return DROP_NOT_SEGMENTED;
	count->copied--;
	return -1;
}

/* Counts a copy that is not sent. */
__attribute__((noinline)) int drop(__u32 reason)
{
	struct counters *count = own_counters();

	count_output(0, 1);
	add_errors(1);
	if (count)
		count_drop(count, reason);
	return TC_ACT_SHOT;
}

/*
 * Sends a copy to the collector. `is_cut`: it comes from the cutter. Whatever is not there ends this at once: a check whose outcome follows from another
 * one the verifier does not believe.
 */
static __always_inline int to_collector(struct __sk_buff *skb, struct counters *count, __u32 length, const int is_cut)
{
	struct copy *copy = the_copy();
	__u32 *in_use = find(&way_in_use, 0);
	struct way *way;
	int reason;

	if (is_cut)
		COUNT(copied);
	if (!in_use)
		return drop(DROP_NO_ROUTE);
	way = find(&ways, *in_use & 1);
	if (!way)
		return drop(DROP_NO_ROUTE);
	if (!copy || !way->ifindex)
		return drop(DROP_NO_ROUTE);
	if (way->silent && !may_ask(way))
		return drop(DROP_UNREACHABLE);
	reason = encapsulate(skb, copy, way);
	if (reason == TO_CUTTER) {
		if (is_cut)
			return drop(skb->gso_size ? DROP_NOT_SEGMENTED : DROP_ENCAP_FAILED);
		reason = by_cutter(skb, count, way->cutter);
		return reason < 0 ? TC_ACT_SHOT : drop(reason);
	}
	if (reason >= 0)
		return drop(reason);
	if (bpf_redirect_neigh(way->ifindex, NULL, 0, 0) != TC_ACT_REDIRECT)
		return drop(DROP_REDIRECT_FAILED);
	count_output(0, 0);
	COUNT(mirrored);
	count->mirrored_bytes += length;
	if (copy->rest)
		COUNT(truncated);
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
			COUNT(drops[DROP_ENCAP_FAILED]);
			add_errors(1);
			return;
		}
	}
	count->copied += device_count - 1;
	/* No loop, see mirror.bpf.c. */
#pragma unroll
	for (__u32 n = 0; n < MAX_DEVICES; n++) {
		int reason;

		if (n >= device_count)
			break;
		reason = clone(skb, n);
		count_output(n, reason >= 0);
		if (reason >= 0) {
			count_drop(count, reason);
			failed++;
			continue;
		}
		COUNT(mirrored);
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
		return to_collector(skb, count, length, 0);
	to_devices(skb, count, length);
	return TC_ACT_SHOT;
}

/* A packet that was part of a giant. Everything else that the host sends into the cutter has no mark, and ends. */
SEC("classifier")
int packet(struct __sk_buff *skb)
{
	struct counters *count = own_counters();
	__u32 length = skb->len + (skb->vlan_present ? TAG_LEN : 0);

	if (!count || !(skb->mark & mark))
		return TC_ACT_SHOT;
	return to_collector(skb, count, length, 1);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
