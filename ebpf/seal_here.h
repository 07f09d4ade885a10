/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Sealing where a packet is sent, without the segmenter. */
#ifndef EBPFVPN_SEAL_HERE_H
#define EBPFVPN_SEAL_HERE_H

#include "inner_checksum.h"
#include "seal.h"

static __always_inline int to_segmenter(__u32 segmenter, struct peer *peer, __u64 now)
{
	make_heavy(peer, now); /* nothing overtakes it */
	return bpf_redirect(segmenter, 0);
}

/* Takes a frame of steer's, to be sealed on this CPU or by the segmenter: its outer end, not 0. */
static __always_inline int seal_here(
	struct __sk_buff *skb, __u32 segmenter, struct peer *peer, __u64 now)
{
	int done, verdict;

	/* A tunnel inside the tunnel may have left a checksum to the device that is further in; the
	 * kernel does not let its length be changed. */
	if (bpf_skb_pull_data(skb, skb->len) || bpf_skb_change_tail(skb, skb->len, 0))
		return to_segmenter(segmenter, peer, now);
	done = complete_checksum(skb);
	if (done == -2)
		return drop(helper_failed);
	if (done)
		return to_segmenter(segmenter, peer, now);
	verdict = seal_packet(skb, segmenter);
	/* A sender does not hear of what is lost on the segmenter: TCP would slow down. */
	return verdict == TC_ACT_SHOT ? TC_ACT_STOLEN : verdict;
}

#endif
