/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the programs of an XDP mirror and its program at a tracepoint share beside mirror.h. The kernel tells the tracepoint of all copies of a queue
 * that were not sent, those among them that the program of the output has ended.
 */
#ifndef FLUXCAP_UNSENT_H
#define FLUXCAP_UNSENT_H

#include "mirror.h"

/* Copies that the program of each output has ended since the output's queue was last handed over. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_DEVICES);
	__type(key, __u32);
	__type(value, __u32);
} unsent SEC(".maps");

#endif
