/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The outer headers and the message's, as they are written. */
#ifndef EBPFVPN_HEADERS_H
#define EBPFVPN_HEADERS_H

#include <linux/in.h>

#include "aead.h"
#include "outgoing.h"

#define TTL 64

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & MASK32) + (sum >> 32);
	sum = (sum & MASK32) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline void write_ipv4(struct iphdr *ip, const struct outgoing *o, __u32 length)
{
	const __u32 *word = (const void *)ip;
	__u64 sum = 0;
	int i;

	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = o->ecn;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->id = bpf_htons((__u16)o->counter);
	ip->frag_off = 0;
	ip->ttl = TTL;
	ip->protocol = IPPROTO_UDP;
	ip->check = 0;
	ip->saddr = HIGH(o->local[1]);
	ip->daddr = HIGH(o->remote[1]);
#pragma unroll
	for (i = 0; i < sizeof(*ip) / 4; i++)
		sum += word[i];
	ip->check = ~fold(sum);
}

static __always_inline void write_ipv6(struct ipv6hdr *ip, const struct outgoing *o, __u32 length)
{
	*(__be32 *)ip = bpf_htonl(6U << 28 | (__u32)o->ecn << 20);
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = IPPROTO_UDP;
	ip->hop_limit = TTL;
	__builtin_memcpy(&ip->saddr, o->local, ADDRESS_LENGTH);
	__builtin_memcpy(&ip->daddr, o->remote, ADDRESS_LENGTH);
}

/* Of the words of an address. The prefix ::ffff of the mapped form counts as zero. */
static __always_inline __u64 address_sum(const __u64 address[2])
{
	return LOW(address[0]) + (__u64)HIGH(address[0]) + LOW(address[1]) + HIGH(address[1]);
}

/* Writes all that stands before the ciphertext but the UDP checksum, and sums it up. */
static __always_inline int write_headers(
	packet_t *packet, const struct session *session, struct outgoing *o)
{
	__u32 length = sizeof(struct udphdr) + MESSAGE_OVERHEAD + o->padded;
	void *ip = packet_data(packet) + ETH_HLEN;
	struct config *c = tunnel_config();
	struct message_data *message;
	struct udphdr *udp;

	if (!c || ip + sizeof(struct iphdr) + sizeof(*udp) + sizeof(*message) > packet_end(packet))
		return -1;
	udp = ip + sizeof(struct iphdr);
	if (o->is_v4) {
		write_ipv4(ip, o, length);
	} else {
		udp = ip + sizeof(struct ipv6hdr);
		if ((void *)(udp + 1) + sizeof(*message) > packet_end(packet))
			return -1;
		write_ipv6(ip, o, length);
	}
	udp->source = o->local_port;
	udp->dest = o->remote_port;
	udp->len = bpf_htons(length);
	udp->check = 0;
	message = (void *)(udp + 1);
	message->type = MESSAGE_DATA;
	message->receiver = session->remote_index;
	message->counter = o->counter;

	o->sum = address_sum(o->local) + address_sum(o->remote) + bpf_htons(IPPROTO_UDP) +
		 2ULL * udp->len + udp->source + udp->dest + MESSAGE_DATA + message->receiver +
		 LOW(o->counter) + HIGH(o->counter);
	return 0;
}

#endif
