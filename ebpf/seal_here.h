/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Sealing where a packet is sent, without the segmenter. */
#ifndef EBPFVPN_SEAL_HERE_H
#define EBPFVPN_SEAL_HERE_H

#include "inner_checksum.h"
#include "seal.h"

static __always_inline int to_segmenter(const struct config *c, struct peer *peer, __u64 now)
{
	make_heavy(peer, now); /* nothing overtakes it */
	return bpf_redirect(c->outer_ifindex, 0);
}

/* Takes a linear frame of steer's, to be sealed on this CPU or by the segmenter. */
static __always_inline int seal_here(
	struct __sk_buff *skb, const struct config *c, struct peer *peer, __u64 now)
{
	int done;

	/* A tunnel inside the tunnel may have left a checksum to the device that is further in; the
	 * kernel does not let its length be changed. */
	if (bpf_skb_change_tail(skb, skb->len, 0))
		return to_segmenter(c, peer, now);
	done = complete_checksum(skb);
	if (done == -2)
		return drop(helper_failed);
	if (done)
		return to_segmenter(c, peer, now);
	return seal_packet(skb, c->outer_ifindex);
}

#endif
