// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Sealing without the segmenter, from the frame on: on a TUN a packet has no Ethernet header, but a
 * test run takes its first bytes for one. */
#include "../seal_here.h"

/* As in tests/rows/tunnel.py. Constants, for the stack is full. */
#define RECEIVER 5
#define OUTER 7002
#define NOW (1ULL << 62)

static __noinline struct peer *receiver(void)
{
	__u32 number = RECEIVER;

	return bpf_map_lookup_elem(&peers, &number);
}

SEC("tc")
int seal_frame_here(struct __sk_buff *packet)
{
	struct peer *peer = receiver();

	return peer ? seal_here(packet, OUTER, peer, NOW) : TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
