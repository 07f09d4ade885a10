/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Explicit congestion notification through a tunnel, RFC 6040: the outer header starts with the
 * inner's ECN field (normal mode); on the way out the two are combined (figure 4 there). */
#ifndef EBPFVPN_ECN_H
#define EBPFVPN_ECN_H

#include <linux/types.h>

enum ecn { ECN_NOT_CAPABLE, ECN_CAPABLE_1, ECN_CAPABLE_0, ECN_CONGESTION };

#define ECN_MASK 3
#define ECN_DROP 0xff

/* The inner packet's new ECN field, or ECN_DROP. */
static __always_inline __u8 ecn_combine(__u8 inner, __u8 outer)
{
	if (inner == ECN_NOT_CAPABLE)
		return outer == ECN_CONGESTION ? ECN_DROP : inner;
	if (outer == ECN_CONGESTION)
		return ECN_CONGESTION;
	if (inner == ECN_CAPABLE_0 && outer == ECN_CAPABLE_1)
		return ECN_CAPABLE_1;
	return inner;
}

#endif
