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
	RULES_ALL,		/* and of all */
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
 * The sets. What is below is written so that a loader without CAP_PERFMON may load it: the verifier then also follows what a CPU might do
 * in advance, in which it takes numbers for unknown. So there are no loops, no pointers are moved, and few ways part.
 */
struct rule_class {
	__u64 rules[RULE_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rule_class);
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

/* Two words of 32 bits as they follow each other in memory, and the opposite. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static __always_inline __u64 pair(__u32 first, __u32 second)
{
	return (__u64)first << 32 | second;
}

static __always_inline __u32 first_half(__u64 word)
{
	return word >> 32;
}

static __always_inline __u32 second_half(__u64 word)
{
	return word;
}
#else
static __always_inline __u64 pair(__u32 first, __u32 second)
{
	return first | (__u64)second << 32;
}

static __always_inline __u32 first_half(__u64 word)
{
	return word;
}

static __always_inline __u32 second_half(__u64 word)
{
	return word >> 32;
}
#endif

static __always_inline __u32
class_of_address(void *v4, void *v6, const struct packet *packet, const union address *address, __u32 otherwise)
{
	const __u32 *class = 0;

	/* Keys as struct key4 and struct key6 have them, in words of 8 bytes. */
	if (packet->family == 4) {
		__u64 key = pair(32, address->v4);

		class = bpf_map_lookup_elem(v4, &key);
	} else if (packet->family == 6) {
		__u64 key[3] = {
			pair(128, first_half(address->v6[0])),
			pair(second_half(address->v6[0]), first_half(address->v6[1])),
			pair(second_half(address->v6[1]), 0),
		};

		class = bpf_map_lookup_elem(v6, key);
	}
	return class ? *class : otherwise;
}

static __always_inline __u32 class_of_port(void *table, const struct packet *packet, __u16 port, __u32 plain, __u32 later, __u32 cut)
{
	const struct port_page *page;

	switch (packet->kind) {
	case PACKET_PORTS:
		page = find(table, port / PORT_PAGE);
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
	const __u16 *class = find(&rule_tables, at);

	return class ? *class : 0;
}

static __always_inline __u32 class_of_flags(const struct packet *packet, __u32 otherwise, __u32 later)
{
	if (packet->has_tcp_flags)
		return class_of_small(SMALL_FLAGS + packet->tcp_flags);
	return packet->kind == PACKET_LATER && packet->proto == PROTO_TCP ? later : otherwise;
}

/* The set of rules with this number, or 0. */
static __always_inline const struct rule_class *rule_class(__u32 id)
{
	return find(&rule_classes, id);
}

/* The sets of one frame, by condition; a second one for VLANs. Where no rule has a condition, it is the set of all. */
struct rule_sets {
	const struct rule_class *source, *destination, *sport, *dport, *protocol, *flags, *vlan, *second_vlan, *direction;
};

/* Finds them. False: one is missing, which cannot be. */
static __always_inline int rules_classify(const struct packet *packet, __u32 direction, struct rule_sets *sets)
{
	__u32 used = rule_settings[RULES_USED], in, out;
	const struct rule_class *all = rule_class(rule_settings[RULES_ALL]);

	if (!all)
		return 0;
	sets->source = used & USED_SOURCE ? rule_class(class_of_address(&rule_source4, &rule_source6, packet, &packet->source,
									rule_settings[CLASS_SOURCE]))
					  : all;
	sets->destination = used & USED_DESTINATION
				    ? rule_class(class_of_address(&rule_destination4, &rule_destination6, packet,
								  &packet->destination, rule_settings[CLASS_DESTINATION]))
				    : all;
	sets->sport = used & USED_SPORT
			      ? rule_class(class_of_port(&rule_sport, packet, packet->sport, rule_settings[CLASS_SPORT],
							 rule_settings[CLASS_SPORT + 1], rule_settings[CLASS_SPORT + 2]))
			      : all;
	sets->dport = used & USED_DPORT
			      ? rule_class(class_of_port(&rule_dport, packet, packet->dport, rule_settings[CLASS_DPORT],
							 rule_settings[CLASS_DPORT + 1], rule_settings[CLASS_DPORT + 2]))
			      : all;
	sets->protocol = used & USED_PROTOCOL
				 ? rule_class(class_of_small(SMALL_PROTOCOLS + (packet->family ? packet->proto : 256)))
				 : all;
	sets->flags = used & USED_FLAGS ? rule_class(class_of_flags(packet, rule_settings[CLASS_FLAGS], rule_settings[CLASS_FLAGS_LATER]))
					: all;
	/* Both are read first, or the compiler would choose a place to read from. */
	in = rule_settings[CLASS_DIRECTION];
	out = rule_settings[CLASS_DIRECTION + 1];
	sets->direction = used & USED_DIRECTION ? rule_class(direction == DIRECTION_IN ? in : out) : all;
	sets->vlan = all;
	sets->second_vlan = all;
	if (used & USED_VLAN) {
		sets->vlan = rule_class(class_of_small(SMALL_VLANS + (packet->tags ? packet->vid[0] & 0xfff : 4096)));
		/* One of the two has to match. */
		sets->second_vlan = packet->tags > 1 ? rule_class(class_of_small(SMALL_VLANS + (packet->vid[1] & 0xfff))) : sets->vlan;
	}
	return sets->source && sets->destination && sets->sport && sets->dport && sets->protocol && sets->flags && sets->vlan &&
	       sets->second_vlan && sets->direction;
}

/* The place of the lowest bit; there is one. Counts the bits below it, without branches. */
static __always_inline __u32 lowest_bit(__u64 word)
{
	__u64 below = (word & -word) - 1;

	below -= below >> 1 & 0x5555555555555555ull;
	below = (below & 0x3333333333333333ull) + (below >> 2 & 0x3333333333333333ull);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0full;
	return below * 0x0101010101010101ull >> 56;
}

/* Looks at one word of the sets. The compiler leaves some loops with these exits as they are, so this is none. */
#define RULE_WORD(i)                                                                                                              \
	do {                                                                                                                      \
		if (words <= (i))                                                                                                 \
			return rule_settings[RULES_DEFAULT];                                                                      \
		left = sets.source->rules[i] & sets.destination->rules[i] & sets.sport->rules[i] & sets.dport->rules[i] &         \
		       sets.protocol->rules[i] & sets.flags->rules[i] & (sets.vlan->rules[i] | sets.second_vlan->rules[i]) &     \
		       sets.direction->rules[i];                                                                                  \
		accepts = accept->rules[i];                                                                                       \
		base = (i) * 64;                                                                                                  \
		if (left)                                                                                                         \
			goto found;                                                                                               \
	} while (0)

/*
 * Whether the frame is selected. Counts it for the rule that decided. A function of its own, which the verifier looks at once (Linux
 * 5.12), and not again for every way through the headers.
 */
__attribute__((noinline)) int rules_select(const struct packet *packet, __u32 direction)
{
	__u32 words = rule_settings[RULES_WORDS], base, rule;
	__u64 left, accepts, *frames;
	const struct rule_class *accept;
	struct rule_sets sets;

	if (!words)
		return rule_settings[RULES_DEFAULT];
	accept = rule_class(rule_settings[RULES_ACCEPT]);
	if (!packet || !accept || !rules_classify(packet, direction, &sets))
		return 0;
	RULE_WORD(0);
	RULE_WORD(1);
	RULE_WORD(2);
	RULE_WORD(3);
	RULE_WORD(4);
	RULE_WORD(5);
	RULE_WORD(6);
	RULE_WORD(7);
	RULE_WORD(8);
	RULE_WORD(9);
	RULE_WORD(10);
	RULE_WORD(11);
	RULE_WORD(12);
	RULE_WORD(13);
	RULE_WORD(14);
	RULE_WORD(15);
	return rule_settings[RULES_DEFAULT];
found:
	rule = lowest_bit(left);
	base += rule;
	frames = find(&rule_frames, base);
	if (frames)
		(*frames)++;
	return accepts >> rule & 1;
}

#undef RULE_WORD
