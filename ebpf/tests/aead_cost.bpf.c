// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* What the AEAD costs: on whatever is in the packet, in place, so that a test run repeats it. The
 * packet is made as long as the job says, which may be more than a test run takes. */
#include "../aead.h"

#define HEADER 14

struct aead_cost_job {
	__u8 key[32];
	__u64 counter;
	__u32 length;
	__u32 reserved;
	__u64 tag[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct aead_cost_job);
} aead_cost_job SEC(".maps");

/* NULL where the packet cannot be made so long. */
static __always_inline struct aead_cost_job *prepare(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct aead_cost_job *job = bpf_map_lookup_elem(&aead_cost_job, &zero);

	if (!job || job->length > MAX_INNER)
		return NULL;
	if (skb->len != HEADER + job->length && bpf_skb_change_tail(skb, HEADER + job->length, 0))
		return NULL;
	return bpf_skb_pull_data(skb, HEADER + job->length) ? NULL : job;
}

static __always_inline int crypt(struct __sk_buff *skb, enum direction direction)
{
	struct aead_cost_job *job = prepare(skb);
	__u64 sum;

	if (!job)
		return 1;
	return aead_crypt(skb, HEADER, job->length, (void *)job->key, job->counter, direction,
		       job->tag, &sum)
		       ? 2
		       : 0;
}

SEC("tc")
int cost_of_seal(struct __sk_buff *skb)
{
	return crypt(skb, SEAL);
}

SEC("tc")
int cost_of_open(struct __sk_buff *skb)
{
	return crypt(skb, OPEN);
}

/* What the other two cost without the AEAD. */
SEC("tc")
int cost_of_nothing(struct __sk_buff *skb)
{
	return prepare(skb) ? 0 : 1;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
