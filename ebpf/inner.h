/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The inner packet: its length, its peer by allowed-ips, its ECN field. */
#ifndef EBPFVPN_INNER_H
#define EBPFVPN_INNER_H

#include <linux/ip.h>
#include <linux/ipv6.h>

#include "ecn.h"
#include "maps.h"

/* Length of the IP packet at `ip` by its own header, 0 where that makes no sense. `end`: of what
 * may be read; `most`: bytes there are. */
static __always_inline __u32 inner_length(void *ip, void *end, __u32 most)
{
	struct iphdr *v4 = ip;
	struct ipv6hdr *v6 = ip;
	__u32 length;

	if ((void *)(v4 + 1) > end)
		return 0;
	if (v4->version == 4) {
		length = bpf_ntohs(v4->tot_len);
		return v4->ihl < 5 || length < v4->ihl * 4 || length > most ? 0 : length;
	}
	if (v4->version != 6 || (void *)(v6 + 1) > end)
		return 0;
	length = bpf_ntohs(v6->payload_len) + sizeof(*v6);
	return length > most ? 0 : length;
}

/* The number of the peer whose allowed-ips hold the source (or destination) address; NULL: none.
 * The packet was found sound by inner_length. */
static __always_inline __u32 *inner_peer(void *ip, void *end, int by_source)
{
	struct iphdr *v4 = ip;
	struct ipv6hdr *v6 = ip;

	if ((void *)(v4 + 1) > end)
		return NULL;
	if (v4->version == 4) {
		struct allowed_ip4 key = {.prefix_length = 32};
		__u32 address = by_source ? v4->saddr : v4->daddr;

		__builtin_memcpy(key.address, &address, sizeof(key.address));
		return bpf_map_lookup_elem(&allowed_ips4, &key);
	}
	if ((void *)(v6 + 1) <= end) {
		struct allowed_ip6 key = {.prefix_length = 128};

		__builtin_memcpy(
			key.address, by_source ? &v6->saddr : &v6->daddr, sizeof(key.address));
		return bpf_map_lookup_elem(&allowed_ips6, &key);
	}
	return NULL;
}

static __always_inline __u8 inner_ecn(void *ip)
{
	__u8 *byte = ip;

	return byte[0] >> 4 == 4 ? byte[1] & ECN_MASK : byte[1] >> 4 & ECN_MASK;
}

static __always_inline void inner_set_ecn(void *ip, __u8 ecn)
{
	__u8 *byte = ip;

	if (byte[0] >> 4 == 4) {
		struct iphdr *v4 = ip;
		__u32 sum = (__u16)~v4->check;

		/* RFC 1624, equation 3; the TOS byte is the low half of its 16-bit word. */
		sum += (__u16)~bpf_htons(v4->tos);
		v4->tos = (v4->tos & ~ECN_MASK) | ecn;
		sum += bpf_htons(v4->tos);
		sum = (sum & 0xffff) + (sum >> 16);
		sum = (sum & 0xffff) + (sum >> 16);
		v4->check = ~sum;
	} else {
		byte[1] = (byte[1] & ~(ECN_MASK << 4)) | ecn << 4;
	}
}

#endif
