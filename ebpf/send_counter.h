/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The counter of sent packets, which is the nonce: each is used once, whichever CPU takes it. */
#ifndef EBPFVPN_SEND_COUNTER_H
#define EBPFVPN_SEND_COUNTER_H

#include "layout.h"

#define NO_COUNTER (~0ULL)

/* The next counter, or NO_COUNTER. Both checks leave room: REJECT_AFTER_MESSAGES is 2^13 short of
 * the end, and what is added past the limit is at most one per CPU. */
static __always_inline __u64 take_counter(struct session *session)
{
	__u64 counter;

	if (*(volatile __u64 *)&session->send_counter >= session->send_limit)
		return NO_COUNTER;
	counter = __sync_fetch_and_add(&session->send_counter, 1);
	return counter >= session->send_limit ? NO_COUNTER : counter;
}

#endif
