// SPDX-License-Identifier: GPL-2.0 OR MIT
// Compiled with -mcpu=v2, see bpf/packet.h.
/* Programs that return what the headers find out about a frame, for tests of these. */
#include "../../bpf/rules.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/*
 * Test runs cannot give a frame a tag that is held apart, and take none without a whole IP header. So they say in cb[0] which tag, as
 * TPID and TCI, and in cb[1] where to cut.
 */
static __always_inline void make_frame(struct __sk_buff *skb)
{
	__u32 tag = skb->cb[0], cut = skb->cb[1];

	if (cut)
		bpf_skb_change_tail(skb, cut, 0);
	if (tag)
		bpf_skb_vlan_push(skb, bpf_htons(tag >> 16), tag & 0xffff);
}

static __always_inline int selected(struct __sk_buff *skb, __u32 direction)
{
	struct packet *packet = the_packet();

	if (!packet)
		return -1;
	make_frame(skb);
	packet_parse(skb, packet);
	return rules_select(packet, direction);
}

SEC("classifier")
int select_in(struct __sk_buff *skb)
{
	return selected(skb, DIRECTION_IN);
}

SEC("classifier")
int select_out(struct __sk_buff *skb)
{
	return selected(skb, DIRECTION_OUT);
}

SEC("classifier")
int flow_hash(struct __sk_buff *skb)
{
	struct packet *packet = the_packet();

	if (!packet)
		return -1;
	make_frame(skb);
	packet_parse(skb, packet);
	return packet_flow_hash(skb, packet);
}

/* Around the translated filter: it calls one of these two. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u32);
} stages SEC(".maps");

SEC("classifier")
int filter(struct __sk_buff *skb)
{
	make_frame(skb);
	bpf_tail_call(skb, &stages, 0);
	return -1;
}

SEC("classifier")
int matched(struct __sk_buff *skb)
{
	(void)skb;
	return 1;
}

SEC("classifier")
int refused(struct __sk_buff *skb)
{
	(void)skb;
	return 0;
}
