// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The tc programs of a tunnel, its socket filter, and what the daemon calls. */
#include "accept.h"
#include "control.h"
#include "deliver.h"
#include "open.h"
#include "seal.h"
#include "steer.h"

/* tc ingress of underlay devices without XDP, and of the segmenter's outer end, where the daemon
 * reinjects. */
SEC("tc")
int open_tc(struct __sk_buff *packet)
{
	return open_packet(packet, 1);
}

/* tc ingress of the segmenter's inner end: what seal_xdp passed. */
SEC("tc")
int seal_tc(struct __sk_buff *packet)
{
	if (bpf_skb_pull_data(packet, packet->len))
		return drop(helper_failed);
	return seal_packet(packet, 0);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
