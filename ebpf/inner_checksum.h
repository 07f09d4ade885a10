/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The inner packet's TCP or UDP checksum, where the kernel has left it to the device: the field
 * then holds the sum of the pseudo header, and skb->csum_start, which no program can read, says
 * where the device should begin. On the segmenter the kernel fills it; elsewhere we have to. */
#ifndef EBPFVPN_INNER_CHECKSUM_H
#define EBPFVPN_INNER_CHECKSUM_H

#include <linux/in.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "headers.h"
#include "inner.h"
#include "outer.h"

struct transport {
	__u32 at; /* offset in the frame */
	__u32 length;
	__u32 field; /* offset of the checksum in the frame; 0: no device fills such a one */
	__u64 pseudo; /* unfolded sum of the pseudo header */
};

static __always_inline __u64 words_sum(const void *words, int count)
{
	const __u32 *word = words;
	__u64 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < count; i++)
		sum += word[i];
	return sum;
}

/* Of the packet in a frame. -1: what it holds cannot be told. */
static __always_inline int find_transport(struct __sk_buff *skb, struct transport *t)
{
	void *ip = packet_data(skb) + ETH_HLEN, *end = packet_end(skb);
	__u32 length = inner_length(ip, end, skb->len - ETH_HLEN);
	struct ipv6hdr *v6 = ip;
	struct iphdr *v4 = ip;
	__u8 protocol;

	if (!length || (void *)(v4 + 1) > end)
		return -1;
	if (v4->version == 4) {
		if (v4->ihl != 5 || v4->frag_off & bpf_htons(IPV4_FRAGMENT))
			return -1;
		t->at = ETH_HLEN + sizeof(*v4);
		t->pseudo = words_sum(&v4->saddr, 2);
		protocol = v4->protocol;
	} else {
		if ((void *)(v6 + 1) > end)
			return -1;
		t->at = ETH_HLEN + sizeof(*v6);
		t->pseudo = words_sum(&v6->saddr, 8);
		protocol = v6->nexthdr;
	}
	t->length = length - (t->at - ETH_HLEN);
	if (!t->length)
		return -1;
	t->pseudo += bpf_htonl(protocol) + (__u64)bpf_htonl(t->length);
	t->field = 0;
	if (protocol == IPPROTO_TCP)
		t->field = t->at + offsetof(struct tcphdr, check);
	else if (protocol == IPPROTO_UDP)
		t->field = t->at + offsetof(struct udphdr, check);
	else if (protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6)
		return -1;
	return 0;
}

/* The unfolded sum of the segment. */
static __noinline int sum_segment(struct __sk_buff *skb, const struct transport *t, __u64 *sum)
{
	__u32 at = t->at, rest = t->length;
	__u64 some[4], total = 0;
	int i;

	for (i = 0; i < MAX_INNER / sizeof(some) && rest > sizeof(some); i++) {
		if (packet_load(skb, at, some, sizeof(some)))
			return -1;
		total += words_sum(some, sizeof(some) / 4);
		/* So that the verifier sees no difference between one turn and the next. */
		total = (total & MASK32) + (total >> 32);
		at += sizeof(some);
		rest -= sizeof(some);
		asm volatile("" : "+r"(i)); /* or what it counts: Linux 6.1 sees no end */
	}
	__builtin_memset(some, 0, sizeof(some));
	if (packet_load(skb, at, some, bounded(rest, sizeof(some))))
		return -1;
	*sum = total + words_sum(some, sizeof(some) / 4);
	return 0;
}

/* The checksum, if the field says that it is left to the device. A packet that somebody else sent
 * with a wrong one keeps it. */
static __always_inline int fill_checksum(struct __sk_buff *skb, const struct transport *t)
{
	__u64 sum;
	__u16 was, check;

	if (sum_segment(skb, t, &sum) || packet_load(skb, t->field, &was, sizeof(was)))
		return -1;
	if (was != fold(t->pseudo) || fold(t->pseudo + sum) == 0xffff)
		return 0;
	/* The field stands in for the pseudo header in the sum. */
	check = ~fold(sum);
	if (!check)
		check = 0xffff; /* zero means none to UDP, and TCP does not care */
	return packet_store(skb, t->field, &check, sizeof(check));
}

/* Makes the kernel forget that it left a checksum to the device, which else would write into what
 * is encrypted by then: it does so when bytes are taken away past the place where the sum begins.
 * `taken`, a constant: so many. -1: nothing has changed; -2: the packet is broken. */
static __always_inline int forget_checksum(struct __sk_buff *skb, const __u32 taken)
{
	__u8 saved[64];

	if (packet_load(skb, ETH_HLEN, saved, taken) ||
		bpf_skb_adjust_room(skb, -(int)taken, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	if (bpf_skb_adjust_room(skb, taken, BPF_ADJ_ROOM_MAC, 0) ||
		packet_store(skb, ETH_HLEN, saved, taken))
		return -2;
	return 0;
}

/* Should be called with a linear frame of ours. The checksum of what it holds is complete then, and
 * no device will touch it. -1: we cannot say that, and nothing has changed; -2: the packet is
 * broken. */
static __noinline int complete_checksum(struct __sk_buff *skb)
{
	struct transport t;
	int forgotten;

	if (find_transport(skb, &t))
		return -1;
	if (!t.field || bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0)
		return 0; /* a device has found it right when it arrived */
	if (t.at == ETH_HLEN + sizeof(struct iphdr))
		forgotten = forget_checksum(skb, ETH_HLEN + sizeof(struct iphdr) + 2);
	else
		forgotten = forget_checksum(skb, ETH_HLEN + sizeof(struct ipv6hdr) + 2);
	if (forgotten)
		return forgotten;
	return fill_checksum(skb, &t) ? -2 : 0;
}

#endif
