// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The XDP programs of a tunnel. */
#define HOOK_XDP

#include "open.h"
#include "seal.h"

/* Tail-called by `dispatch` on underlay devices. */
SEC("xdp")
int open_xdp(struct xdp_md *packet)
{
	return open_packet(packet);
}

/* On the segmenter's inner end. */
SEC("xdp")
int seal_xdp(struct xdp_md *packet)
{
	return seal_packet(packet, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
