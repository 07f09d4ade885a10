/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What XDP and tc programs call differently, so that open.h and seal.h are written once.
 * HOOK_XDP is defined by the one, not by the other. */
#ifndef EBPFVPN_PACKET_H
#define EBPFVPN_PACKET_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "layout.h"

#ifdef HOOK_XDP
typedef struct xdp_md packet_t;
#define VERDICT_PASS XDP_PASS
#define VERDICT_DROP XDP_DROP
#define packet_load(packet, offset, to, length) bpf_xdp_load_bytes(packet, offset, to, length)
#define packet_store(packet, offset, from, length) bpf_xdp_store_bytes(packet, offset, from, length)
#else
typedef struct __sk_buff packet_t;
#define VERDICT_PASS TC_ACT_UNSPEC
#define VERDICT_DROP TC_ACT_SHOT
#define packet_load(packet, offset, to, length) bpf_skb_load_bytes(packet, offset, to, length)
#define packet_store(packet, offset, from, length)                                                 \
	bpf_skb_store_bytes(packet, offset, from, length, 0)
#endif

#define packet_data(packet) ((void *)(long)(packet)->data)
#define packet_end(packet) ((void *)(long)(packet)->data_end)

static __always_inline __u32 packet_length(packet_t *packet)
{
#ifdef HOOK_XDP
	__u64 length = packet_end(packet) - packet_data(packet);

	/* Else the compiler mixes it with other sums in 32 bits, which pointers may not be. */
	asm volatile("" : "+r"(length));
	return length;
#else
	return packet->len;
#endif
}

/* A length from 1 to `most`, a power of two, so that the verifier sees it too: Linux 6.1's learns
 * nothing from a comparison with zero. */
static __always_inline __u64 bounded(__u64 length, __u64 most)
{
	asm volatile("" : "+r"(length));
	return (length - 1) % most + 1;
}

/* `length` bytes at `offset`, to read and write; NULL where they cannot be had directly. */
static __always_inline void *packet_at(packet_t *packet, __u32 offset, __u32 length)
{
	void *at;

	asm volatile("" : "+r"(offset)); /* what is compared is what is added */
	if (offset > 0x7fff) /* the verifier asks for a bound */
		return NULL;
	at = packet_data(packet) + offset;
	return at + length > packet_end(packet) ? NULL : at;
}

/* Ethernet header of a frame between our own programs: `to` is a peer number or an ifindex. */
struct marked_header {
	__u8 mark[MAC_LENGTH];
	__u32 to;
	__u8 keepalive;
	__u8 flow; /* hash of the inner packet's flow */
	__be16 ethertype;
} __attribute__((packed));

static __always_inline int has_mark(const void *mac, const struct config *c)
{
	const __u16 *m = mac, *mark = (const void *)c->mark;

	return m[0] == mark[0] && m[1] == mark[1] && m[2] == mark[2];
}

/* Two 64-bit words at a time: addresses and keys. */
static __always_inline void copy16(void *to, const void *from)
{
	((__u64 *)to)[0] = ((const __u64 *)from)[0];
	((__u64 *)to)[1] = ((const __u64 *)from)[1];
}

static __always_inline int equal16(const void *a, const void *b)
{
	return ((const __u64 *)a)[0] == ((const __u64 *)b)[0] &&
	       ((const __u64 *)a)[1] == ((const __u64 *)b)[1];
}

#endif
