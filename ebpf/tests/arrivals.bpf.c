// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Filter of a UDP socket: counts what arrives, by CPU and flow, and drops it. A flow's number is
 * its source port, less FIRST_PORT. */
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FIRST_PORT 1000
#define FLOWS 4

struct arrivals {
	__u64 by_flow[FLOWS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arrivals);
} arrived SEC(".maps");

SEC("socket")
int count_and_drop(struct __sk_buff *skb)
{
	__u32 zero = 0, flow;
	struct arrivals *arrivals = bpf_map_lookup_elem(&arrived, &zero);
	__be16 port;

	if (!arrivals || bpf_skb_load_bytes(skb, 0, &port, sizeof(port)))
		return 0;
	flow = bpf_ntohs(port) - FIRST_PORT;
	if (flow < FLOWS)
		arrivals->by_flow[flow]++;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
