/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Which frames are selected, by rules of which the first that matches decides.
 *
 * No rule is ever looked at by itself. Each condition is a table from a value of the frame to a class, and each class is
 * the set of rules whose condition holds for that value, one bit a rule. The sets of all conditions are intersected; the
 * lowest bit that is left is the rule. So the number of networks and ports does not matter, and that of rules hardly.
 *
 *	source 10.1.2.3 --LPM trie--> class 4 = 0 1 1 0 1 1 ...
 *	port 443 ---------array-----> class 9 = 1 1 0 0 1 0 ...
 *	TCP --------------array-----> class 2 = 1 1 1 1 1 1 ...
 *	                                        0 1 0 0 1 0 ... -> rule 1
 *
 * mirrord/src/rules.rs makes the tables, and tells all that is special in rule_settings.
 */
#pragma once

#include "packet.h"

#define MAX_RULES 1024
#define RULE_WORDS (MAX_RULES / 64)
#define PORT_PAGE 256

enum {
	DIRECTION_IN,
	DIRECTION_OUT,
};

/* Places in rule_settings. Those with CLASS in the name are classes for what is in no table. */
enum {
	RULES_WORDS,		/* words of the sets that are in use; 0: there are no rules */
	RULES_DEFAULT,		/* whether a frame is selected that matches none */
	RULES_USED,		/* conditions that some rule has, by bit */
	CLASS_SOURCE,		/* addresses that no network holds, and frames without addresses */
	CLASS_DESTINATION,
	CLASS_SPORT,		/* the first of three, in the order of the kinds PLAIN, LATER and CUT */
	CLASS_DPORT = CLASS_SPORT + 3,
	CLASS_FLAGS = CLASS_DPORT + 3,	/* no TCP, or no flags */
	CLASS_FLAGS_LATER,	/* later fragments of TCP */
	CLASS_DIRECTION,	/* the first of two, by direction */
	RULES_ACCEPT = CLASS_DIRECTION + 2,	/* the class that is the set of rules that accept */
	RULE_SETTINGS,
};

enum {
	USED_SOURCE = 1,
	USED_DESTINATION = 2,
	USED_SPORT = 4,
	USED_DPORT = 8,
	USED_PROTOCOL = 16,
	USED_FLAGS = 32,
	USED_VLAN = 64,
	USED_DIRECTION = 128,
};

const volatile __u32 rule_settings[RULE_SETTINGS] = { [RULES_DEFAULT] = 1 };
/*
 * The sets, each of as many words as are in use, one after another. Everything here is found by number rather than by moving a pointer: a
 * loader without CAP_PERFMON may not have a pointer moved by one distance here and by another there.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} rule_classes SEC(".maps");

/* Classes of what has few values, and where each kind begins. */
enum {
	SMALL_PROTOCOLS,			/* the last one: not IP */
	SMALL_FLAGS = SMALL_PROTOCOLS + 257,
	SMALL_VLANS = SMALL_FLAGS + 256,	/* by VLAN identifier; the last one: no tag */
	SMALL = SMALL_VLANS + 4097,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SMALL);
	__type(key, __u32);
	__type(value, __u16);
} rule_tables SEC(".maps");

/* Frames by the rule that decided. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_RULES);
	__type(key, __u32);
	__type(value, __u64);
} rule_frames SEC(".maps");

/* Classes of ports, a page for each upper half of the number. */
struct port_page {
	__u16 class[PORT_PAGE];
};

struct ports {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port_page);
};

struct ports rule_sport SEC(".maps");
struct ports rule_dport SEC(".maps");

struct key4 {
	__u32 bits;
	__u32 address;
};

struct key6 {
	__u32 bits;
	__u32 address[4];
};

struct networks4 {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct key4);
	__type(value, __u32);
};

struct networks6 {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct key6);
	__type(value, __u32);
};

struct networks4 rule_source4 SEC(".maps");
struct networks4 rule_destination4 SEC(".maps");
struct networks6 rule_source6 SEC(".maps");
struct networks6 rule_destination6 SEC(".maps");

static __always_inline __u32
class_of_address(void *v4, void *v6, const struct packet *packet, const union address *address, __u32 otherwise)
{
	const __u32 *class = 0;

	if (packet->family == 4) {
		struct key4 key = { .bits = 32, .address = address->v4 };

		class = bpf_map_lookup_elem(v4, &key);
	} else if (packet->family == 6) {
		struct key6 key = { .bits = 128 };

		__builtin_memcpy(key.address, address->v6, sizeof(key.address));
		class = bpf_map_lookup_elem(v6, &key);
	}
	return class ? *class : otherwise;
}

static __always_inline __u32 class_of_port(void *table, const struct packet *packet, __u16 port, __u32 plain, __u32 later, __u32 cut)
{
	const struct port_page *page;
	__u32 at = port / PORT_PAGE;

	switch (packet->kind) {
	case PACKET_PORTS:
		page = bpf_map_lookup_elem(table, &at);
		return page ? page->class[port % PORT_PAGE] : 0;
	case PACKET_LATER:
		return later;
	case PACKET_CUT:
		return cut;
	default:
		return plain;
	}
}

static __always_inline __u32 class_of_small(__u32 at)
{
	const __u16 *class = bpf_map_lookup_elem(&rule_tables, &at);

	return class ? *class : 0;
}

static __always_inline __u32 class_of_flags(const struct packet *packet)
{
	if (packet->has_tcp_flags)
		return class_of_small(SMALL_FLAGS + packet->tcp_flags);
	if (packet->kind == PACKET_LATER && packet->proto == PROTO_TCP)
		return rule_settings[CLASS_FLAGS_LATER];
	return rule_settings[CLASS_FLAGS];
}

/* The classes of one frame, by condition; a second one for VLANs. */
struct classes {
	__u32 source, destination, sport, dport, protocol, flags, vlan, second_vlan, direction;
};

/* Finds the classes for the conditions that are used. */
static __always_inline void rules_classify(const struct packet *packet, __u32 direction, struct classes *classes)
{
	__u32 used = rule_settings[RULES_USED];

	if (used & USED_SOURCE)
		classes->source = class_of_address(&rule_source4, &rule_source6, packet, &packet->source,
						   rule_settings[CLASS_SOURCE]);
	if (used & USED_DESTINATION)
		classes->destination = class_of_address(&rule_destination4, &rule_destination6, packet, &packet->destination,
							rule_settings[CLASS_DESTINATION]);
	if (used & USED_SPORT)
		classes->sport = class_of_port(&rule_sport, packet, packet->sport, rule_settings[CLASS_SPORT],
					       rule_settings[CLASS_SPORT + 1], rule_settings[CLASS_SPORT + 2]);
	if (used & USED_DPORT)
		classes->dport = class_of_port(&rule_dport, packet, packet->dport, rule_settings[CLASS_DPORT],
					       rule_settings[CLASS_DPORT + 1], rule_settings[CLASS_DPORT + 2]);
	if (used & USED_DIRECTION)
		classes->direction = direction == DIRECTION_IN ? rule_settings[CLASS_DIRECTION]
							       : rule_settings[CLASS_DIRECTION + 1];
	if (used & USED_PROTOCOL)
		classes->protocol = class_of_small(SMALL_PROTOCOLS + (packet->family ? packet->proto : 256));
	if (used & USED_FLAGS)
		classes->flags = class_of_flags(packet);
	if (used & USED_VLAN) {
		classes->vlan = class_of_small(SMALL_VLANS + (packet->tags ? packet->vid[0] & 0xfff : 4096));
		/* One of the two has to match. */
		classes->second_vlan = packet->tags > 1 ? class_of_small(SMALL_VLANS + (packet->vid[1] & 0xfff)) : classes->vlan;
	}
}

/* Leaves the rules of a word that are in a set, too. False: there is no such word, which cannot be. */
static __always_inline int rule_and(__u64 *left, __u32 class, __u32 word)
{
	__u32 at = class * rule_settings[RULES_WORDS] + word;
	const __u64 *set = bpf_map_lookup_elem(&rule_classes, &at);

	if (!set)
		return 0;
	*left &= *set;
	return 1;
}

/* The rules of a word of which all used conditions hold. */
static __always_inline int rules_left(__u64 *left, const struct classes *classes, __u32 word)
{
	__u32 used = rule_settings[RULES_USED];
	__u64 second;

	*left = ~0ull;
	if (used & USED_SOURCE && !rule_and(left, classes->source, word))
		return 0;
	if (used & USED_DESTINATION && !rule_and(left, classes->destination, word))
		return 0;
	if (used & USED_SPORT && !rule_and(left, classes->sport, word))
		return 0;
	if (used & USED_DPORT && !rule_and(left, classes->dport, word))
		return 0;
	if (used & USED_PROTOCOL && !rule_and(left, classes->protocol, word))
		return 0;
	if (used & USED_FLAGS && !rule_and(left, classes->flags, word))
		return 0;
	if (used & USED_DIRECTION && !rule_and(left, classes->direction, word))
		return 0;
	if (used & USED_VLAN) {
		second = *left;
		if (!rule_and(left, classes->vlan, word) || !rule_and(&second, classes->second_vlan, word))
			return 0;
		*left |= second;
	}
	return 1;
}

/* The place of the lowest bit; there is one. */
static __always_inline __u32 lowest_bit(__u64 word)
{
	__u32 at = 0;

	for (__u32 half = 32; half; half /= 2) {
		if (!(word & ((1ull << half) - 1))) {
			word >>= half;
			at += half;
		}
	}
	return at;
}

/* Whether the frame is selected. Counts it for the rule that decided. */
static __always_inline int rules_select(const struct packet *packet, __u32 direction)
{
	__u32 words = rule_settings[RULES_WORDS];
	struct classes classes = {};

	if (!words)
		return rule_settings[RULES_DEFAULT];
	rules_classify(packet, direction, &classes);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < RULE_WORDS && i < words; i++) {
		__u64 *frames, left, accept;
		__u32 rule;

		if (!rules_left(&left, &classes, i))
			return 0;
		if (!left)
			continue;
		rule = lowest_bit(left);
		frames = bpf_map_lookup_elem(&rule_frames, &(__u32){ i * 64 + rule });
		if (frames)
			(*frames)++;
		accept = left;
		return rule_and(&accept, rule_settings[RULES_ACCEPT], i) && accept >> rule & 1;
	}
	return rule_settings[RULES_DEFAULT];
}
