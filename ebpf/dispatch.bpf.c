// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* One per underlay device, pinned apart from the tunnels: a device has room for one XDP program,
 * so this one hands UDP packets to the tunnel that listens on their port. */
#define HOOK_XDP

#include "outer.h"

#define PORTS 65536

struct dispatch {
	__u8 mark[MAC_LENGTH];
	__u16 reserved;
	__u64 forged_mark; /* arrivals dropped because they bore the mark of our own frames */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dispatch);
	PINNED;
} dispatch_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PORTS);
	__type(key, __u32);
	__type(value, __u32);
	PINNED;
} ports SEC(".maps");

SEC("xdp")
int dispatch(struct xdp_md *packet)
{
	struct ethhdr *eth = packet_data(packet);
	struct dispatch *d;
	struct outer outer;
	__u32 zero = 0;

	if ((void *)(eth + 1) > packet_end(packet))
		return XDP_PASS;
	d = bpf_map_lookup_elem(&dispatch_config, &zero);
	if (!d)
		return XDP_PASS;
	if (!__builtin_memcmp(eth->h_dest, d->mark, MAC_LENGTH)) {
		__sync_fetch_and_add(&d->forged_mark, 1);
		return XDP_DROP;
	}
	if (parse_outer(packet, &outer) == PARSED_UDP)
		bpf_tail_call(packet, &ports, bpf_ntohs(outer.local_port));
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
