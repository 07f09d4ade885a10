// SPDX-License-Identifier: GPL-2.0-only OR MIT
/* Recorded frames for programs that change them: each run of `next_frame` makes the packet anew
 * from the next one of its CPU, so that a test run can be repeated; then it calls the program
 * that is measured, if there is one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define FRAMES 16384
#define LONGEST 1528

struct recorded_frame {
	__u32 length;
	__u32 reserved;
	__u8 bytes[LONGEST];
};

struct recorded_turn {
	__u32 next; /* frame */
	__u32 step;
	__s32 moved; /* bytes that the program put before the packet */
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAMES);
	__type(key, __u32);
	__type(value, struct recorded_frame);
} recorded_frames SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct recorded_turn);
} recorded_turns SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} measured SEC(".maps");

SEC("xdp")
int next_frame(struct xdp_md *packet)
{
	__u32 zero = 0, at, length, before = bpf_xdp_get_buff_len(packet);
	struct recorded_turn *turn = bpf_map_lookup_elem(&recorded_turns, &zero);
	struct recorded_frame *frame;

	if (!turn)
		return XDP_ABORTED;
	at = turn->next & (FRAMES - 1);
	turn->next += turn->step;
	frame = bpf_map_lookup_elem(&recorded_frames, &at);
	if (!frame)
		return XDP_ABORTED;
	length = frame->length;
	if (!length || length > LONGEST)
		return XDP_ABORTED;
	if (before != length) {
		before -= turn->moved;
		if (bpf_xdp_adjust_head(packet, turn->moved) ||
			bpf_xdp_adjust_tail(packet, (int)(length - before)))
			return XDP_ABORTED;
	}
	if (bpf_xdp_store_bytes(packet, 0, frame->bytes, length))
		return XDP_ABORTED;
	bpf_tail_call(packet, &measured, 0);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
