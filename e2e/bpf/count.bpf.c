// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The far end of a tunnel of the bench: counts IPv4 packets and drops them. Everything else, such as ARP, goes to the stack.
 */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define ETHER_TYPE 12		/* where it stands in a frame */
#define IPV4 0x0800

#define TC_DROP 2
#define TC_PASS 0

/* In words: packets, bytes of their frames. e2e/src/bench/tunnel/bed.rs has the same in Rust. */
struct counts {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} counts SEC(".maps");

static __always_inline int count(__u16 ether_type, __u32 len)
{
	__u32 zero = 0;
	struct counts *c = bpf_map_lookup_elem(&counts, &zero);

	if (ether_type != bpf_htons(IPV4) || !c)
		return 0;
	c->packets++;
	c->bytes += len;
	return 1;
}

SEC("xdp")
int count_xdp(struct xdp_md *ctx)
{
	__u16 ether_type;

	if (bpf_xdp_load_bytes(ctx, ETHER_TYPE, &ether_type, sizeof(ether_type)))
		return XDP_PASS;
	return count(ether_type, ctx->data_end - ctx->data) ? XDP_DROP : XDP_PASS;
}

SEC("classifier")
int count_tc(struct __sk_buff *skb)
{
	return count(skb->protocol, skb->len) ? TC_DROP : TC_PASS;
}
