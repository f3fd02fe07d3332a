// SPDX-License-Identifier: GPL-2.0 OR MIT
// Compiled with -mcpu=v2, see packet.h.
/*
 * A mirror at traffic control: copies what an interface receives (`ingress`) and sends (`egress`) to other interfaces, or into the
 * buffer to user space.
 *
 *	marked? -> parse -> own tunnel? -> rules -> [pcap-filter] -> sample -> expired? fuse? rate? -> target
 *
 * The frame always goes on as if the program were not there, whatever became of the copy: every path returns NEXT. The frame itself is
 * changed in one thing only, a bit of its mark, for the time in which it is cloned.
 *
 * The pcap-filter is a program of its own, which mirrord makes. It is called, and calls what comes next, by tail calls, which keep nothing
 * of what was found out before.
 */
#include "mirror.h"
#include "buffer.h"
#include "clone.h"

/* TCX_NEXT, which is TC_ACT_UNSPEC: the next program decides. */
#define NEXT -1

/* What dev_queue_xmit() says of a frame that a program dropped (linux/netdevice.h). */
#define NET_XMIT_DROP 1

/* Programs to call. mirrord/src/program.rs has the same numbers. */
enum {
	STAGE_FILTER,			/* by direction: the pcap-filter, which ends by calling one of the others */
	STAGE_SELECTED = 2,		/* by direction: what it accepts */
	STAGE_REJECTED = 4,		/* what it does not accept */
	STAGES,
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, STAGES);
	__type(key, __u32);
	__type(value, __u32);
} stages SEC(".maps");

const volatile __u32 filtered = 0;	/* there is a pcap-filter */

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Gives a copy to the relay, which counts what becomes of it and may drop it. An interface without its relay is down, and says NET_XMIT_CN. */
static __always_inline void to_relay(struct __sk_buff *skb, struct counters *count)
{
	__u32 mark_before = skb->mark;
	const struct device *helper = find(&devices, 0);
	long result;

	if (!helper)
		return;		/* cannot be: it has an entry */
	skb->mark = mark_before | mark;
	result = bpf_clone_redirect(skb, helper->ifindex, 0);
	skb->mark = mark_before;
	if (!result || result == NET_XMIT_DROP)
		return;
	count_drop(count, result == -12 ? DROP_NO_MEMORY : DROP_REDIRECT_FAILED);
	count_output(0, 1);
	add_errors(1);
}

/* Clones a frame to one device, and counts that. Returns how many copies failed. */
static __always_inline __u32 to_device(struct __sk_buff *skb, struct counters *count, __u32 length, const __u32 n)
{
	int reason = clone(skb, n);

	count_output(n, reason >= 0);
	if (reason < 0) {
		COUNT(mirrored);
		count->mirrored_bytes += length;
		return 0;
	}
	count_drop(count, reason);
	return 1;
}

static __always_inline void to_devices(struct __sk_buff *skb, struct counters *count, __u32 length)
{
	__u32 mark_before = skb->mark, failed = 0;

	count->copied += device_count - 1;
	skb->mark = mark_before | mark;
	/* No loop: the verifier would follow it beyond its end, as a CPU might in advance. */
#pragma unroll
	for (__u32 n = 0; n < MAX_DEVICES; n++) {
		if (n >= device_count)
			break;
		failed += to_device(skb, count, length, n);
	}
	skb->mark = mark_before;
	add_errors(failed);
}

static __always_inline void to_user_space(struct __sk_buff *skb, struct counters *count, __u32 direction)
{
	struct event *event = new_event();

	if (!event)
		return;		/* cannot be: it has an entry */
	event->ifindex = skb->ifindex;
	event->direction = direction;
	if (skb->vlan_present) {
		event->tpid = bpf_ntohs(skb->vlan_proto);
		event->tci = skb->vlan_tci;
	}
	if (skb->gso_size)
		event->flags |= EVENT_GSO;
	/* There is no way to ask whether the checksum is still to be made; a verified one is not. */
	if (bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0)
		event->flags |= EVENT_NO_CSUM;
	to_buffer(skb, count, event, skb->len);
}

/* A frame that rules and filter have selected. */
static __always_inline int copy(struct __sk_buff *skb, struct counters *count, __u32 direction)
{
	__u32 length = skb->len + (skb->vlan_present ? 4 : 0);

	if (!may_copy(skb, count, length, device_count ? device_count : 1))
		return NEXT;
	if (relayed)
		to_relay(skb, count);
	else if (device_count)
		to_devices(skb, count, length);
	else
		to_user_space(skb, count, direction);
	return NEXT;
}

static __always_inline int pass(struct __sk_buff *skb, __u32 direction)
{
	struct counters *count = own_counters();
	struct packet *packet = the_packet();

	if (!count || !packet)
		return NEXT;	/* cannot be: they have entries */
	COUNT(seen);
	if (direction == DIRECTION_OUT)
		COUNT(seen_out);
	if (goes_round(skb->mark)) {
		COUNT(drops[DROP_LOOP_GUARD]);
		return NEXT;
	}
	packet_parse(skb, packet);
	if (own_tunnel(packet)) {
		COUNT(drops[DROP_LOOP_GUARD]);
		return NEXT;
	}
	if (!rules_select(packet, direction)) {
		COUNT(not_selected);
		return NEXT;
	}
	if (!filtered)
		return copy(skb, count, direction);
	bpf_tail_call(skb, &stages, STAGE_FILTER + direction);
	COUNT(drops[DROP_FILTER_FAILED]);
	return NEXT;
}

SEC("classifier")
int ingress(struct __sk_buff *skb)
{
	return pass(skb, DIRECTION_IN);
}

SEC("classifier")
int egress(struct __sk_buff *skb)
{
	return pass(skb, DIRECTION_OUT);
}

static __always_inline int selected(struct __sk_buff *skb, __u32 direction)
{
	struct counters *count = own_counters();

	return count ? copy(skb, count, direction) : NEXT;
}

SEC("classifier")
int selected_in(struct __sk_buff *skb)
{
	return selected(skb, DIRECTION_IN);
}

SEC("classifier")
int selected_out(struct __sk_buff *skb)
{
	return selected(skb, DIRECTION_OUT);
}

SEC("classifier")
int rejected(struct __sk_buff *skb)
{
	struct counters *count = own_counters();

	(void)skb;
	if (count)
		COUNT(not_selected);
	return NEXT;
}
