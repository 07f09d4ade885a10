/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Programs that the daemon runs: they change entries in place, where a map update from user
 * space would replace the whole entry and lose what the data path changed meanwhile (or, for
 * keys, leave the old bytes in memory). */
#ifndef EBPFVPN_CONTROL_H
#define EBPFVPN_CONTROL_H

#include "light.h"
#include "maps.h"

SEC("syscall")
int set_peer(struct set_peer *to)
{
	__u32 number = to->peer;
	struct peer *peer = bpf_map_lookup_elem(&peers, &number);

	if (!peer)
		return -1;
	if (to->fields & SET_NEXT)
		peer->next = to->next;
	if (to->fields & SET_CURRENT) {
		peer->expires = to->expires;
		peer->current = to->current;
	}
	if (to->fields & SET_USABLE) {
		/* What the daemon has sent by the segmenter comes first. */
		if (to->usable)
			peer->heavy_until = bpf_ktime_get_boot_ns() + HEAVY_FOR;
		peer->usable = to->usable;
	}
	if (to->fields & SET_MAX_INNER)
		peer->max_inner = to->max_inner;
	if (to->fields & SET_TIMESTAMP)
		__builtin_memcpy(peer->timestamp, to->timestamp, TIMESTAMP_LENGTH);
	if (to->fields & SET_FLOW_PORTS)
		peer->flow_ports = to->flow_ports;
	return 0;
}

SEC("syscall")
int wipe_keys(struct wipe_keys *which)
{
	__u32 index = which->local_index;
	struct session_keys *both = bpf_map_lookup_elem(&keys, &index);

	if (!both)
		return -1;
	__builtin_memset(both, 0, sizeof(*both));
	return 0;
}

#endif
