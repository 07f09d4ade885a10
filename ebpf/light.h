/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Whether a peer's traffic is light. Then `steer` seals it itself (seal_here.h): nothing is quicker
 * than to do it now, on the sender's CPU. Heavy traffic goes by the segmenter, where GSO packets
 * are cut, and whose threads seal while the sender goes on. */
#ifndef EBPFVPN_LIGHT_H
#define EBPFVPN_LIGHT_H

#include "layout.h"

#define LOOK_EVERY 1000000ULL /* ns */
#define LIGHT_PACKETS                                                                              \
	64 /* in that time: a sender that seals them is busy with it for 80 us or so */
/* Longer than it takes to seal what is in the segmenter's queues, for light traffic overtakes that.
 */
#define HEAVY_FOR 100000000ULL

/* From now on, for a while. */
static __always_inline void make_heavy(struct peer *peer, __u64 now)
{
	/* Not written for each packet: other CPUs read it. */
	if (peer->heavy_until < now + HEAVY_FOR - LOOK_EVERY)
		peer->heavy_until = now + HEAVY_FOR;
}

/* GSO packets make a peer's traffic heavy, and so does the number of packets if the segmenter has
 * threads. What CPUs read of each other in between does no harm. */
static __always_inline int is_light(
	struct peer *peer, const struct config *c, int is_gso, __u64 now)
{
	__u64 passed = now - peer->looked;
	int is_heavy = is_gso;

	if (c->seals_in_threads && passed >= LOOK_EVERY) {
		__u64 packets = *(volatile __u64 *)&peer->tx_packets;

		if ((packets - peer->packets_then) * LOOK_EVERY > passed * LIGHT_PACKETS)
			is_heavy = 1;
		peer->packets_then = packets;
		peer->looked = now;
	}
	if (is_heavy)
		make_heavy(peer, now);
	return !is_heavy && now >= peer->heavy_until;
}

#endif
