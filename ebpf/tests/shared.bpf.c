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
/* Half way the ring of any window begins anew. */
#define FIRST_RECEIVED ((1ULL << 32) - COUNTERS / 2)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct session);
} session SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, WINDOW_BYTES);
} windows SEC(".maps");

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

static struct session *get_session(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&session, &zero);
}

static void note(__u64 counter)
{
	__u32 zero = 0;
	struct taken *all = bpf_map_lookup_elem(&taken, &zero);

	if (all)
		__sync_fetch_and_add(&all->times[counter % COUNTERS], 1);
}

static void receive(__u64 counter)
{
	__u32 zero = 0;
	struct session *s = get_session();
	__u64 *ring = bpf_map_lookup_elem(&windows, &zero);

	if (s && ring &&
		replay_accept(ring, &s->receive_highest, FIRST_RECEIVED + counter) == REPLAY_NEW)
		note(counter);
}

static long receive_one(__u32 i, void *unused)
{
	receive(i);
	return 0;
}

/* As far out of order as the window lets (it is a power of two), each CPU in its own way. */
static long receive_shuffled_one(__u32 i, void *unused)
{
	__u32 within = window_geometry.size - 1;

	receive((i & ~within) | ((i * 40503 + bpf_get_smp_processor_id() * 7919) & within));
	return 0;
}

static long send_one(__u32 i, void *unused)
{
	struct session *s = get_session();
	__u64 counter = s ? take_counter(s) : NO_COUNTER;

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
int receive_shuffled(struct __sk_buff *skb)
{
	bpf_loop(COUNTERS, receive_shuffled_one, NULL, 0);
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
