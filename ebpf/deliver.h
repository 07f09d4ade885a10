/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* tc ingress, after GRO: inner packets that `open` has marked go up through the TUN. Without this
 * program the stack drops them as somebody else's, by their destination MAC. */
#ifndef EBPFVPN_DELIVER_H
#define EBPFVPN_DELIVER_H

#include <linux/if_packet.h>

#include "outer.h"
#include "tunnel.h"

/* After bpf_xdp_adjust_tail, generic XDP leaves the packet's end ETH_HLEN bytes too far behind (up
 * to Linux 6.18 at least), and TCP appends the next packet's data there. Every change of the length
 * sets it right. */
static __always_inline void mend_tail(struct __sk_buff *skb)
{
	if (packet_data(skb) + skb->len != packet_end(skb))
		return;
	bpf_skb_change_tail(skb, skb->len + 1, 0);
	bpf_skb_change_tail(skb, skb->len - 1, 0);
}

/* A message for the daemon gets the mark that what we send bears: by it the reverse path is looked
 * up where a default route leads into the tunnel. */
static __always_inline void mark_message(struct __sk_buff *skb, const struct config *c)
{
	struct outer outer;

	if (c->fwmark && parse_outer(skb, &outer) == PARSED_UDP &&
		outer.local_port == c->listen_port)
		skb->mark = c->fwmark;
}

static __always_inline int deliver_packet(struct __sk_buff *skb, int after_generic_xdp)
{
	struct marked_header *header = packet_data(skb);
	struct config *c = tunnel_config();

	if ((void *)(header + 1) > packet_end(skb) || !c)
		return TC_ACT_UNSPEC;
	if (!has_mark(header, c) || header->to != c->tun_ifindex) {
		mark_message(skb, c);
		return TC_ACT_UNSPEC;
	}
	if (bpf_skb_change_type(skb, PACKET_HOST))
		return drop(helper_failed);
	/* A sender on this machine leaves CHECKSUM_PARTIAL with an offset into the headers that
	 * are gone; forwarded, the packet would be lost. Taking bytes away before the offset makes
	 * the kernel forget it. What GRO merged has an offset of its own, and where it verified the
	 * checksum there is none. */
	if (!skb->gso_size && bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) < 0 &&
		(bpf_skb_adjust_room(skb, 4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET) ||
			bpf_skb_adjust_room(
				skb, -4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_NO_CSUM_RESET)))
		return drop(helper_failed);
	if (after_generic_xdp)
		mend_tail(skb);
	return bpf_redirect(c->tun_ifindex, BPF_F_INGRESS);
}

SEC("tc")
int deliver(struct __sk_buff *skb)
{
	return deliver_packet(skb, 0);
}

SEC("tc")
int deliver_generic(struct __sk_buff *skb)
{
	return deliver_packet(skb, 1);
}

#endif
