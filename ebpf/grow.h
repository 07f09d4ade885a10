/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Room in a packet for what sealing adds: headers before it, padding and tag behind it. */
#ifndef EBPFVPN_GROW_H
#define EBPFVPN_GROW_H

#include "aead.h"
#include "outgoing.h"

#ifdef HOOK_XDP
/* What XDP cannot do is done in tc, a little further on the same way. */
#define seal_in_tc() pass(pass_seal_in_tc)
#endif

#ifndef HOOK_XDP
#define IP_DIFFERENCE (sizeof(struct ipv6hdr) - sizeof(struct iphdr))

/* Makes room before the inner packet, and the packet one of the outer IP version. Not by
 * BPF_F_ADJ_ROOM_ENCAP: a packet marked as encapsulated keeps the mark over a veth, and no tc
 * program can change its tail any more, so that the receiver could not strip it. */
static __always_inline int push_headers(packet_t *packet, const struct outgoing *o)
{
	int was_v4 = packet->protocol == bpf_htons(ETH_P_IP);
	__u32 room = headers_length(o);

	if (was_v4 && !o->is_v4)
		return bpf_skb_change_proto(packet, bpf_htons(ETH_P_IPV6), 0) ||
		       bpf_skb_adjust_room(packet, room - IP_DIFFERENCE, BPF_ADJ_ROOM_MAC, 0);
	if (!was_v4 && o->is_v4)
		return bpf_skb_adjust_room(packet, room + IP_DIFFERENCE, BPF_ADJ_ROOM_MAC, 0) ||
		       bpf_skb_change_proto(packet, bpf_htons(ETH_P_IP), 0);
	return bpf_skb_adjust_room(packet, room, BPF_ADJ_ROOM_MAC, 0);
}

/* Moves the rest of the packet down, from offset `from` to `to`. */
static __noinline int move_down(packet_t *packet, __u32 from, __u32 to)
{
	__u32 rest = packet->len - from;
	__u64 some[8];
	__u64 last;
	int i;

	for (i = 0; i < MAX_BLOCKS + 2 && rest > sizeof(some); i++) {
		if (packet_load(packet, from, some, sizeof(some)) ||
			packet_store(packet, to, some, sizeof(some)))
			return -1;
		from += sizeof(some);
		to += sizeof(some);
		rest -= sizeof(some);
	}
	last = bounded(rest, sizeof(some));
	return packet_load(packet, from, some, last) || packet_store(packet, to, some, last);
}

/* bpf_skb_change_tail refuses packets of a tunnel inside the tunnel. Room can be made before them;
 * then the packet is moved. */
static __always_inline int grow_tail(packet_t *packet, __u32 had, __u32 wanted)
{
	if (!bpf_skb_change_tail(packet, wanted, 0) || had >= wanted)
		return 0;
	if (bpf_skb_adjust_room(packet, wanted - had, BPF_ADJ_ROOM_MAC, 0) ||
		bpf_skb_pull_data(packet, packet->len))
		return -1;
	return move_down(packet, ETH_HLEN + wanted - had, ETH_HLEN);
}
#endif

/* Bytes behind the inner packet need not be zero by themselves. What is not padding of these is the
 * tag's place. */
static __always_inline int clear_padding(packet_t *packet, const struct outgoing *o)
{
	__u64 *padding = packet_at(packet, ETH_HLEN + headers_length(o) + o->length, PADDING);

	if (!padding)
		return -1;
	padding[0] = padding[1] = 0;
	return 0;
}

#define GROWN (-2) /* no verdict of XDP's or tc's */

/* Makes room for headers before the inner packet, padding and tag behind it: GROWN, or the
 * verdict. */
static __always_inline int grow(packet_t *packet, const struct outgoing *o)
{
	__u32 wanted = ETH_HLEN + o->padded + TAG_LENGTH, had = packet_length(packet);

#ifdef HOOK_XDP
	if (wanted != had && bpf_xdp_adjust_tail(packet, wanted - had))
		return seal_in_tc();
#else
	if (grow_tail(packet, had, wanted))
		return drop(helper_failed);
#endif
#ifdef HOOK_XDP
	if (bpf_xdp_adjust_head(packet, -(int)headers_length(o)))
		return seal_in_tc();
#else
	if (push_headers(packet, o) || bpf_skb_pull_data(packet, packet->len))
		return drop(helper_failed);
#endif
	if (clear_padding(packet, o))
		return drop(helper_failed);
	return GROWN;
}

#endif
