/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* WireGuard's messages as far as the data path sees them, and the limits it enforces
 * (whitepaper sections 5.4 and 6.1). */
#ifndef EBPFVPN_WIRE_H
#define EBPFVPN_WIRE_H

#include <linux/types.h>

enum message_type {
	MESSAGE_INITIATION = 1,
	MESSAGE_RESPONSE = 2,
	MESSAGE_COOKIE = 3,
	MESSAGE_DATA = 4,
};

struct message_data {
	__u32 type; /* little endian: one byte and three reserved ones, which are zero */
	__u32 receiver;
	__u64 counter;
};

#define MESSAGE_HEADER sizeof(struct message_data)
#define MESSAGE_OVERHEAD (MESSAGE_HEADER + 16)
#define PADDING 16

/* 2^64 - 2^13 - 1 */
#define REJECT_AFTER_MESSAGES (~0ULL - (1ULL << 13))

#endif
