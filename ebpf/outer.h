/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The outer headers: reading those of an arriving message. */
#ifndef EBPFVPN_OUTER_H
#define EBPFVPN_OUTER_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "packet.h"
#include "wire.h"

#define VLAN_TAGS 2
#define IPV4_FRAGMENT 0x3fff /* more fragments, or an offset */
#define IPV4_OFFSET 0x1fff

struct outer {
	__u32 message; /* offset in the packet */
	__u32 length; /* of the message */
	__be16 remote_port;
	__be16 local_port;
	__u8 ecn;
	__u8 is_fragment;
	__u16 ip; /* offset of the IP header */
};

enum parsed {
	PARSED_UDP,
	PARSED_OTHER, /* not UDP, or a later fragment, or behind IPv6 extension headers */
	PARSED_SHORT, /* ends, as far as it can be read directly, before its headers do */
};

struct vlan_tag {
	__be16 control;
	__be16 ethertype;
};

static __always_inline enum parsed parse_ethernet(packet_t *packet, __u32 *at, __be16 *ethertype)
{
	struct ethhdr *eth = packet_data(packet);
	int i;

	if ((void *)(eth + 1) > packet_end(packet))
		return PARSED_SHORT;
	*ethertype = eth->h_proto;
	*at = sizeof(*eth);
#pragma unroll
	for (i = 0; i < VLAN_TAGS; i++) {
		struct vlan_tag *tag = packet_data(packet) + *at;

		if (*ethertype != bpf_htons(ETH_P_8021Q) && *ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > packet_end(packet))
			return PARSED_SHORT;
		*ethertype = tag->ethertype;
		*at += sizeof(*tag);
	}
	return PARSED_UDP;
}

static __always_inline enum parsed parse_ip(
	packet_t *packet, struct outer *outer, __u32 *at, __be16 ethertype)
{
	outer->ip = *at;
	if (ethertype == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = packet_data(packet) + *at;

		if ((void *)(ip + 1) > packet_end(packet))
			return PARSED_SHORT;
		if (ip->version != 4 || ip->ihl < 5 || ip->protocol != IPPROTO_UDP)
			return PARSED_OTHER;
		if (ip->frag_off & bpf_htons(IPV4_OFFSET))
			return PARSED_OTHER;
		outer->is_fragment = !!(ip->frag_off & bpf_htons(IPV4_FRAGMENT));
		outer->ecn = ip->tos & 3;
		*at += ip->ihl * 4;
		return PARSED_UDP;
	}
	if (ethertype == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = packet_data(packet) + *at;

		if ((void *)(ip + 1) > packet_end(packet))
			return PARSED_SHORT;
		if (ip->version != 6 || ip->nexthdr != IPPROTO_UDP)
			return PARSED_OTHER;
		outer->is_fragment = 0;
		outer->ecn = ip->flow_lbl[0] >> 4 & 3;
		*at += sizeof(*ip);
		return PARSED_UDP;
	}
	return PARSED_OTHER;
}

static __always_inline enum parsed parse_outer(packet_t *packet, struct outer *outer)
{
	enum parsed parsed;
	struct udphdr *udp;
	__be16 ethertype;
	__u32 at;

	parsed = parse_ethernet(packet, &at, &ethertype);
	if (parsed != PARSED_UDP)
		return parsed;
	parsed = parse_ip(packet, outer, &at, ethertype);
	if (parsed != PARSED_UDP)
		return parsed;
	udp = packet_data(packet) + at;
	if ((void *)(udp + 1) > packet_end(packet))
		return PARSED_SHORT;
	outer->remote_port = udp->source;
	outer->local_port = udp->dest;
	outer->message = at + sizeof(*udp);
	outer->length = bpf_ntohs(udp->len) - sizeof(*udp);
	return PARSED_UDP;
}

/* Both addresses of the packet in 16 bytes each. The IP header was parsed before; -1 where it has
 * gone. */
static __always_inline int outer_addresses(
	packet_t *packet, const struct outer *outer, __u64 remote[2], __u64 local[2])
{
	__u8 *ip = packet_at(packet, outer->ip, sizeof(struct iphdr));

	if (!ip)
		return -1;
	if (*ip >> 4 == 4) {
		struct iphdr *v4 = (void *)ip;

		remote[0] = local[0] = 0;
		remote[1] = (__u64)v4->saddr << 32 | bpf_htonl(0xffff);
		local[1] = (__u64)v4->daddr << 32 | bpf_htonl(0xffff);
		return 0;
	}
	if ((void *)ip + sizeof(struct ipv6hdr) > packet_end(packet))
		return -1;
	__builtin_memcpy(remote, ip + 8, ADDRESS_LENGTH);
	__builtin_memcpy(local, ip + 24, ADDRESS_LENGTH);
	return 0;
}

#endif
