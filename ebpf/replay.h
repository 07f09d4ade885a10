/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The replay window: RFC 6479's ring of bitmap words, shared by all CPUs without a lock.
 *
 * Counter c belongs to bit c mod 32 of word (c / 32) mod N, where N is the number of words. Each
 * word holds its bits in the low half and, in the high half, its epoch: how often the ring has gone
 * round, c / 32 / N. So a word is taken over for newer counters and a bit is set in one
 * compare-and-exchange: a counter is accepted by exactly one CPU, and a jump ahead clears
 * nothing. The epoch is cut to 32 bits, so a jump of 2^36 N counters at once (2^38 with the
 * smallest window), which takes a sender that skips them on purpose, may be refused as too old;
 * nothing is accepted twice. */
#ifndef EBPFVPN_REPLAY_H
#define EBPFVPN_REPLAY_H

#include "layout.h"

#define WINDOW_WORD_BITS 32

/* Set by the daemon before loading. To the verifier these are constants, so it can tell that every
 * word lies within the ring. */
const volatile struct window_geometry window_geometry SEC(".rodata.window") = {
	.size = WINDOW_SIZE,
	.order = WINDOW_ORDER,
};

enum replay_verdict { REPLAY_NEW, REPLAY_SEEN, REPLAY_TOO_OLD };

/* A lost exchange means that another CPU set one of 32 bits or moved the epoch on. */
#define REPLAY_TRIES 40

static __always_inline __u32 replay_epoch(__u64 counter)
{
	return counter / WINDOW_WORD_BITS >> window_geometry.order;
}

static __always_inline __u64 *replay_word(__u64 *ring, __u64 counter)
{
	return &ring[counter / WINDOW_WORD_BITS & ((1ULL << window_geometry.order) - 1)];
}

static __always_inline enum replay_verdict replay_word_verdict(__u64 word, __u64 counter)
{
	__s32 behind = (__u32)(word >> 32) - replay_epoch(counter);

	if (behind > 0)
		return REPLAY_TOO_OLD;
	if (behind == 0 && word >> (counter % WINDOW_WORD_BITS) & 1)
		return REPLAY_SEEN;
	return REPLAY_NEW;
}

/* Whether a message is worth the decryption. `highest`: highest accepted counter plus one. */
static __always_inline enum replay_verdict replay_check(__u64 *ring, __u64 highest, __u64 counter)
{
	/* A sum would run over with the last counters. */
	if (counter < highest && highest - counter > window_geometry.size)
		return REPLAY_TOO_OLD;
	return replay_word_verdict(*(volatile __u64 *)replay_word(ring, counter), counter);
}

/* After authentication: marks the counter as seen. */
static __always_inline enum replay_verdict replay_accept(__u64 *ring, __u64 *highest, __u64 counter)
{
	__u64 *word = replay_word(ring, counter);
	__u64 epoch = (__u64)replay_epoch(counter) << 32;
	__u64 bit = 1ULL << (counter % WINDOW_WORD_BITS);
	enum replay_verdict verdict = REPLAY_TOO_OLD;
	__u64 old, seen;
	int i;

	old = *(volatile __u64 *)word;
	for (i = 0; i < REPLAY_TRIES; i++) {
		verdict = replay_check(ring, *(volatile __u64 *)highest, counter);
		if (verdict != REPLAY_NEW)
			return verdict;
		verdict = replay_word_verdict(old, counter);
		if (verdict != REPLAY_NEW)
			return verdict;
		seen = __sync_val_compare_and_swap(
			word, old, old >> 32 == epoch >> 32 ? old | bit : epoch | bit);
		if (seen == old)
			break;
		old = seen;
	}
	if (i == REPLAY_TRIES)
		return REPLAY_TOO_OLD;

	old = *(volatile __u64 *)highest;
	for (i = 0; i < REPLAY_TRIES && old <= counter; i++) {
		seen = __sync_val_compare_and_swap(highest, old, counter + 1);
		if (seen == old)
			break;
		old = seen;
	}
	return REPLAY_NEW;
}

#endif
