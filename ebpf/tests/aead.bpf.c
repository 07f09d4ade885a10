// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* The AEAD by itself, on text of any length up to a jumbo frame's, which is more than a test run
 * may pass as a packet: the text comes from and goes to a map. */
#include "../aead.h"

#define HEADER 14

struct aead_job {
	__u8 key[KEY_LENGTH];
	__u64 counter;
	__u32 length;
	__u32 open;
	__u64 tag[2];
	__u64 sum;
	__u8 text[9216];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct aead_job);
} aead_job SEC(".maps");

static __always_inline int copy_text(struct __sk_buff *skb, struct aead_job *job, int out)
{
	__u32 done = 0, length = job->length, n;
	int i;

	for (i = 0; i < 9216 / 64 && done < length && done <= 9216 - 64; i++) {
		n = length - done < 64 ? length - done : 64;
		n = bounded(n, 64);
		if (out ? bpf_skb_load_bytes(skb, HEADER + done, job->text + done, n)
			: bpf_skb_store_bytes(skb, HEADER + done, job->text + done, n, 0))
			return -1;
		done += 64;
	}
	return 0;
}

static __always_inline int run(struct __sk_buff *skb, enum direction direction)
{
	__u32 zero = 0;
	struct aead_job *job = bpf_map_lookup_elem(&aead_job, &zero);

	if (!job || job->length > 9216)
		return 1;
	if (bpf_skb_change_tail(skb, HEADER + job->length, 0))
		return 2;
	if (bpf_skb_pull_data(skb, HEADER + job->length))
		return 3;
	if (copy_text(skb, job, 0))
		return 4;
	if (aead_crypt(skb, HEADER, job->length, (void *)job->key, job->counter, direction,
		    job->tag, &job->sum))
		return 5;
	if (copy_text(skb, job, 1))
		return 6;
	return 0;
}

SEC("tc")
int aead_seal(struct __sk_buff *skb)
{
	return run(skb, SEAL);
}

SEC("tc")
int aead_open(struct __sk_buff *skb)
{
	return run(skb, OPEN);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
