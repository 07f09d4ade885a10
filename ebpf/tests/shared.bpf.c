// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* What CPUs share without a lock, the replay window and the send counter, under as many hands at
 * once as a test runs threads: nothing but taking, in a loop, so that they meet all the time. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "../replay.h"
#include "../send_counter.h"

#define COUNTERS 65536 /* powers of two */
#define LAST 16384

struct shared {
	struct window window;
	__u64 highest;
	struct session session;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct shared);
} shared SEC(".maps");

/* Each with one counter left. */
struct last {
	struct session sessions[LAST];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct last);
} last SEC(".maps");

/* How often each counter, or the last one of each session, was taken. */
struct taken {
	__u64 times[COUNTERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct taken);
} taken SEC(".maps");

static struct shared *get_shared(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&shared, &zero);
}

static void note(__u64 counter)
{
	__u32 zero = 0;
	struct taken *all = bpf_map_lookup_elem(&taken, &zero);

	if (all)
		__sync_fetch_and_add(&all->times[counter % COUNTERS], 1);
}

static long receive_one(__u32 i, void *unused)
{
	struct shared *s = get_shared();

	if (s && replay_accept(&s->window, &s->highest, i) == REPLAY_NEW)
		note(i);
	return 0;
}

static long send_one(__u32 i, void *unused)
{
	struct shared *s = get_shared();
	__u64 counter = s ? take_counter(&s->session) : NO_COUNTER;

	if (counter != NO_COUNTER)
		note(counter);
	return 0;
}

static long send_last_one(__u32 i, void *unused)
{
	__u32 zero = 0;
	struct last *l = bpf_map_lookup_elem(&last, &zero);

	if (l && take_counter(&l->sessions[i % LAST]) != NO_COUNTER)
		note(i);
	return 0;
}

SEC("tc")
int receive_all(struct __sk_buff *skb)
{
	bpf_loop(COUNTERS, receive_one, NULL, 0);
	return TC_ACT_OK;
}

SEC("tc")
int send_all(struct __sk_buff *skb)
{
	bpf_loop(COUNTERS, send_one, NULL, 0);
	return TC_ACT_OK;
}

SEC("tc")
int send_last(struct __sk_buff *skb)
{
	bpf_loop(LAST, send_last_one, NULL, 0);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
