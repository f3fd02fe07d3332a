// SPDX-License-Identifier: GPL-2.0 OR MIT
// Compiled with -mcpu=v2, see packet.h.
/*
 * Counts the copies of an XDP mirror for which a driver had no room: the kernel tells that to nobody but a tracepoint. An object of its own, because
 * it needs the kernel's BTF and CAP_PERFMON; without it such copies count as mirrored.
 */
#include "mirror.h"
#include "unsent.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* As much of the kernel's as is needed; the loader finds the places of the fields. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} __attribute__((preserve_access_index)) possible_net_t;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

/* Which interfaces are meant. Their numbers are those of a network namespace. mirrord/src/xdp/drops.rs has the same in Rust. */
struct places {
	__u32 namespace;	/* number of its inode */
	__u32 input;
	__u32 output[MAX_DEVICES];	/* 0: none */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct places);
} places SEC(".maps");

/* What the kernel or the driver has against the copies; 0: the driver had no room. */
static __always_inline enum drop reason_of(int err)
{
	switch (-err) {
	case 6:		/* ENXIO: a veth whose other end takes none */
	case 95:	/* EOPNOTSUPP */
		return DROP_NOT_TAKEN;
	case 100:	/* ENETDOWN */
		return DROP_LINK_DOWN;
	default:
		return DROP_CONGESTED;
	}
}

/*
 * A queue of copies, at most 16, that was handed to a driver: (from, to, sent, drops, err). The output's program has counted the drops as
 * sent, but for those that it has ended itself.
 */
SEC("tp_btf/xdp_devmap_xmit")
int flushed(__u64 *ctx)
{
	struct net_device *from = (struct net_device *)ctx[0], *to = (struct net_device *)ctx[1];
	__u32 ifindex, place, drops = (__u32)ctx[3];
	struct counters *count;
	struct places *p;
	__u32 *ended;

	if (!drops)
		return 0;
	p = find(&places, 0);
	count = own_counters();
	if (!p || !count || (__u32)from->ifindex != p->input || from->nd_net.net->ns.inum != p->namespace)
		return 0;
	ifindex = to->ifindex;
	for (place = 0; place < MAX_DEVICES; place++) {
		if (p->output[place] != ifindex)
			continue;
		ended = find(&unsent, place);
		if (!ended)
			break;
		/* What another life of mirrord or another queue has left there must not make more copies of them than there were. */
		drops -= *ended < drops ? *ended : drops;
		*ended = 0;
		count->drops[reason_of((int)ctx[4])] += drops;
		count->mirrored -= drops;
		add_output(place, 0, -(__u64)drops);
		add_output(place, 1, drops);
		break;
	}
	return 0;
}
