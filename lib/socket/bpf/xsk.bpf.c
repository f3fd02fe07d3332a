// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Hands frames to AF_XDP sockets, each receive queue's to the socket of that queue (Documentation/networking/af_xdp.rst). Frames of
 * a queue without a socket go on to the host, and are counted.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define QUEUES 256		/* lib/socket/src/xsk/program.rs has the same number */

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} passed SEC(".maps");

SEC("xdp")
int capture(struct xdp_md *ctx)
{
	int rc = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
	__u32 zero = 0;
	__u64 *count;

	if (rc == XDP_REDIRECT)
		return rc;
	count = bpf_map_lookup_elem(&passed, &zero);
	if (count)
		(*count)++;
	return XDP_PASS;
}
