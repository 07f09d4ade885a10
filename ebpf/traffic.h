/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What a peer's packets leave behind for the daemon's timers and for `show`. */
#ifndef EBPFVPN_TRAFFIC_H
#define EBPFVPN_TRAFFIC_H

#include "maps.h"

/* Should be called after a packet was sealed. bytes: of the message. */
static __always_inline void traffic_sent(struct peer *peer, __u32 bytes, int is_data, __u64 now)
{
	__sync_fetch_and_add(&peer->tx_packets, 1);
	__sync_fetch_and_add(&peer->tx_bytes, bytes);
	peer->last_sent = now;
	if (peer->unacknowledged_since)
		peer->unacknowledged_since = 0;
	if (!is_data)
		return;
	peer->last_data_sent = now;
	if (!peer->unanswered_since)
		peer->unanswered_since = now;
}

/* Should be called after a packet was authenticated. */
static __always_inline void traffic_received(struct peer *peer, __u32 bytes, int is_data, __u64 now)
{
	__sync_fetch_and_add(&peer->rx_packets, 1);
	__sync_fetch_and_add(&peer->rx_bytes, bytes);
	peer->last_received = now;
	if (peer->unanswered_since)
		peer->unanswered_since = 0;
	if (!is_data)
		return;
	peer->last_data_received = now;
	if (!peer->unacknowledged_since)
		peer->unacknowledged_since = now;
}

/* A lost exchange means that another CPU raised the maximum. */
#define LATENESS_TRIES 40

/* Should be called after a packet was accepted that is not the newest, or was found late. behind:
 * by how many packets. */
static __always_inline void traffic_behind(struct peer *peer, __u64 behind)
{
	__u64 old = *(volatile __u64 *)&peer->max_lateness, seen;
	int i;

	for (i = 0; i < LATENESS_TRIES && old < behind; i++) {
		seen = __sync_val_compare_and_swap(&peer->max_lateness, old, behind);
		if (seen == old)
			return;
		old = seen;
	}
}

static __always_inline void tell_daemon(enum event_type type, __u32 peer, __u32 local_index)
{
	struct event event = {.type = type, .peer = peer, .local_index = local_index};

	/* A full ring loses the event; the daemon also looks at the maps by itself. */
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
}

#endif
