/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * A clone of a frame to a device, for programs at traffic control.
 */
#pragma once

#include "mirror.h"

/* Clones a frame to the device of this number; -1, or the reason (enum drop) why that cannot be. */
__attribute__((noinline)) int clone(struct __sk_buff *skb, __u32 n)
{
	const struct device *device = find(&devices, n);
	long result;

	if (!device || !device->ifindex)
		return DROP_NO_INTERFACE;
	/* A queueing discipline would only say that it has dropped something. */
	if (device->down)
		return DROP_LINK_DOWN;
	result = bpf_clone_redirect(skb, device->ifindex, 0);
	if (!result)
		return -1;
	if (result > 0)
		return DROP_CONGESTED;
	switch (-result) {
	case 12:	/* ENOMEM */
		return DROP_NO_MEMORY;
	case 100:	/* ENETDOWN */
		return DROP_LINK_DOWN;
	case 19:	/* ENODEV */
	case 22:	/* EINVAL: no interface has this index any more */
		return DROP_NO_INTERFACE;
	default:
		return DROP_CLONE_FAILED;
	}
}
