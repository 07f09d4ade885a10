/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* tc egress on the TUN: what has a usable session is sealed or goes to the segmenter, the rest on
 * into the TUN, where the daemon reads it. */
#ifndef EBPFVPN_STEER_H
#define EBPFVPN_STEER_H

#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "inner.h"
#include "light.h"
#include "seal_here.h"
#include "tunnel.h"
#include "wire.h"

/* Behind a packet: for padding and tag, and so that the shortest of IPv6 is longer than what
 * forget_checksum takes away. */
#define ROOM 64
#define IPV6_LEAST_MTU 1280 /* RFC 8200, section 5 */

/* Of a GSO packet: length of each of the packets it will become. */
static __always_inline __u32 segment_length(struct __sk_buff *skb, void *ip, void *end)
{
	__u32 headers = sizeof(struct ipv6hdr);
	struct iphdr *v4 = ip;
	__u8 protocol;
	struct tcphdr *tcp;

	if (!skb->gso_size)
		return skb->len;
	if (ip + sizeof(struct ipv6hdr) > end)
		return skb->gso_size;
	protocol = ((struct ipv6hdr *)ip)->nexthdr;
	if (v4->version == 4) {
		protocol = v4->protocol;
		headers = v4->ihl * 4;
	}
	tcp = ip + headers;
	if (protocol == IPPROTO_UDP)
		headers += sizeof(struct udphdr);
	else if (protocol == IPPROTO_TCP && (void *)(tcp + 1) <= end)
		headers += tcp->doff * 4;
	return headers + skb->gso_size;
}

/* Whether what it will become is too long for the way to the peer. IPv6 packets of its least MTU
 * never are: their sender could do nothing about it, so their messages are fragmented. */
static __always_inline int is_too_big(
	struct __sk_buff *skb, const struct peer *peer, void *ip, void *end)
{
	__u32 most = peer->max_inner;

	if (!most)
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IPV6) && most < IPV6_LEAST_MTU)
		most = IPV6_LEAST_MTU;
	return segment_length(skb, ip, end) > most;
}

/* The frame that `seal` takes. */
static __always_inline int make_frame(
	struct __sk_buff *skb, struct config *c, __u32 peer, __u32 flow_ports)
{
	/* What the sender's socket has, or else of addresses and ports: packets of a flow stay in
	 * order, as they leave by one port. */
	__u8 flow = flow_ports > 1 ? bpf_get_hash_recalc(skb) : 0;
	struct marked_header *header;
	__be16 ethertype = skb->protocol;

	/* A linear packet may have no room behind it, and XDP cannot give it any: seal takes the
	 * length from the inner header, so some may be made here. A tunnel inside the tunnel is
	 * refused that, and sealed in tc. */
	if (!skb->gso_size && (void *)(long)skb->data + skb->len == (void *)(long)skb->data_end)
		bpf_skb_change_tail(skb, skb->len + ROOM, 0);
	if (bpf_skb_change_head(skb, sizeof(*header), 0))
		return -1;
	header = packet_data(skb);
	if ((void *)(header + 1) > packet_end(skb))
		return -1;
	__builtin_memcpy(header->mark, c->mark, MAC_LENGTH);
	header->to = peer;
	header->keepalive = 0;
	header->flow = flow;
	header->ethertype = ethertype;
	return 0;
}

SEC("tc")
int steer(struct __sk_buff *skb)
{
	void *ip = packet_data(skb), *end = packet_end(skb);
	struct config *c = tunnel_config();
	__u64 now = bpf_ktime_get_boot_ns();
	struct peer *peer;
	__u32 *number, segmenter;
	int light;

	if (ip + sizeof(struct ipv6hdr) > end) {
		__u32 head = skb->len < 128 ? skb->len : 128;

		/* Ignored: a packet shorter than that is judged by what can be read. */
		bpf_skb_pull_data(skb, head);
		ip = packet_data(skb);
		end = packet_end(skb);
	}
	if (!c)
		return TC_ACT_SHOT;
	segmenter = *(volatile __u32 *)&c->outer_ifindex;
	if (!segmenter) /* it is being made anew */
		return pass(pass_no_usable_session);
	number = inner_peer(ip, end, 0);
	if (!number)
		return pass(pass_no_peer);
	peer = bpf_map_lookup_elem(&peers, number);
	if (!peer || !peer->usable || !peer->current || now >= peer->expires)
		return pass(pass_no_usable_session);
	if (is_too_big(skb, peer, ip, end))
		return pass(pass_too_big);
	light = is_light(peer, c, skb->gso_size > 0, now);
	if (light)
		bpf_skb_pull_data(skb, skb->len); /* so that room can be made behind it */
	if (make_frame(skb, c, *number, peer->flow_ports))
		return drop(helper_failed);
	return light ? seal_here(skb, segmenter, peer, now) : bpf_redirect(segmenter, 0);
}

#endif
