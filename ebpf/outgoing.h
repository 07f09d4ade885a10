/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* A packet between `steer` and the wire: where it goes and what it is. */
#ifndef EBPFVPN_OUTGOING_H
#define EBPFVPN_OUTGOING_H

#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include "tunnel.h"
#include "wire.h"

struct outgoing {
	/* where it goes */
	__u64 remote[2];
	__u64 local[2];
	__be16 remote_port;
	__be16 local_port;
	__u32 ifindex;
	/* what it is */
	__u32 peer;
	__u32 length; /* of the inner packet; 0: a keepalive */
	__u32 padded;
	__u8 ecn;
	__u8 too_long; /* for the way */
	__u8 flow;
	__u8 is_v4;
	__u64 counter;
	__u64 sum; /* unfolded Internet checksum of what is written so far */
};

/* Padding to 16 bytes, but not past the MTU (whitepaper section 5.4.6). */
static __always_inline __u32 padded_length(__u32 length, __u32 mtu)
{
	__u32 padded = (length + PADDING - 1) & ~(PADDING - 1);

	return padded > mtu && length <= mtu ? mtu : padded;
}

static __always_inline __u32 headers_length(const struct outgoing *o)
{
	return (o->is_v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + sizeof(struct udphdr) +
	       MESSAGE_HEADER;
}

#endif
