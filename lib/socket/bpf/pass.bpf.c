// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Passes every frame on. A veth whose other end has a native XDP program takes the frames that XDP programs redirect to it (live
 * frames), and does so without GRO, which would have the host of a sensor join frames before that sees them.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Frames in several pieces too: a driver then takes any MTU. Linux 5.18. */
SEC("xdp.frags")
int fluxcap_pass(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

/* The same for kernels that know frames in one piece only. */
SEC("xdp")
int fluxcap_pass_1(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}
