// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Poly1305 by itself, with r and s of the test's choice, which the AEAD draws from its key. Whole
 * blocks only, which is all that the AEAD has. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "../poly1305.h"

#define MAX_JOB_BLOCKS 1024 /* more than a jumbo frame has; a power of two */

struct poly1305_job {
	__u64 key[4]; /* r, s */
	__u64 tag[2];
	__u64 sum;
	__u64 blocks;
	__u64 text[MAX_JOB_BLOCKS][2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct poly1305_job);
} poly1305_job SEC(".maps");

/* Global, so that the verifier walks through it once and not once per block. */
__attribute__((noinline)) int take_block(struct poly1305 *poly, __u32 i)
{
	__u32 zero = 0;
	struct poly1305_job *job = bpf_map_lookup_elem(&poly1305_job, &zero);

	if (!poly || !job)
		return -1;
	i %= MAX_JOB_BLOCKS;
	poly1305_block(poly, job->text[i][0], job->text[i][1]);
	return 0;
}

SEC("tc")
int poly1305_tag(struct __sk_buff *skb)
{
	__u32 zero = 0, i;
	struct poly1305_job *job = bpf_map_lookup_elem(&poly1305_job, &zero);
	struct poly1305 poly = {};

	if (!job)
		return TC_ACT_SHOT;
	poly1305_init(&poly, job->key[0], job->key[1]);
	for (i = 0; i < MAX_JOB_BLOCKS && i < job->blocks; i++) {
		if (take_block(&poly, i))
			return TC_ACT_SHOT;
	}
	job->sum = poly.sum;
	poly1305_finish(&poly, job->key[2], job->key[3], &job->tag[0], &job->tag[1]);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
