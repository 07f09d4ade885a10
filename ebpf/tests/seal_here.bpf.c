// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Sealing without the segmenter, from the frame on: on a TUN a packet has no Ethernet header, but a
 * test run takes its first bytes for one. */
#include "../seal_here.h"

SEC("tc")
int seal_frame_here(struct __sk_buff *packet)
{
	struct config *c = tunnel_config();
	__u32 number = 5; /* PEER of tests/rows/tunnel.py */
	struct peer *peer = bpf_map_lookup_elem(&peers, &number);

	if (!c || !peer || bpf_skb_pull_data(packet, packet->len))
		return TC_ACT_UNSPEC;
	return seal_here(packet, c, peer, bpf_ktime_get_boot_ns());
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
