/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* ChaCha20's block function (RFC 8439 section 2.3) with WireGuard's nonce: 32 bits of zero, then
 * the 64-bit packet counter. Little-endian machines only, as all that run BPF and WireGuard at
 * speed are. */
#ifndef EBPFVPN_CHACHA20_H
#define EBPFVPN_CHACHA20_H

#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define CHACHA20_BLOCK 64

struct chacha20_key {
	__u64 words[4];
};

#define ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))

#define QUARTER_ROUND(a, b, c, d)                                                                  \
	a += b;                                                                                    \
	d ^= a;                                                                                    \
	d = ROTATE(d, 16);                                                                         \
	c += d;                                                                                    \
	b ^= c;                                                                                    \
	b = ROTATE(b, 12);                                                                         \
	a += b;                                                                                    \
	d ^= a;                                                                                    \
	d = ROTATE(d, 8);                                                                          \
	c += d;                                                                                    \
	b ^= c;                                                                                    \
	b = ROTATE(b, 7)

#define LOW(x) ((__u32)(x))
#define HIGH(x) ((__u32)((x) >> 32))
#define PAIR(low, high) ((__u64)(low) | (__u64)(high) << 32)

/* XORs text with the keystream of one block. */
static __always_inline void chacha20_xor(
	__u64 text[CHACHA20_BLOCK / 8], const struct chacha20_key *key, __u64 nonce, __u32 block)
{
	__u32 a0 = 0x61707865, a1 = 0x3320646e, a2 = 0x79622d32, a3 = 0x6b206574;
	__u32 b0 = LOW(key->words[0]), b1 = HIGH(key->words[0]);
	__u32 b2 = LOW(key->words[1]), b3 = HIGH(key->words[1]);
	__u32 c0 = LOW(key->words[2]), c1 = HIGH(key->words[2]);
	__u32 c2 = LOW(key->words[3]), c3 = HIGH(key->words[3]);
	__u32 d0 = block, d1 = 0, d2 = LOW(nonce), d3 = HIGH(nonce);
	int i;

	for (i = 0; i < 10; i++) {
		QUARTER_ROUND(a0, b0, c0, d0);
		QUARTER_ROUND(a1, b1, c1, d1);
		QUARTER_ROUND(a2, b2, c2, d2);
		QUARTER_ROUND(a3, b3, c3, d3);
		QUARTER_ROUND(a0, b1, c2, d3);
		QUARTER_ROUND(a1, b2, c3, d0);
		QUARTER_ROUND(a2, b3, c0, d1);
		QUARTER_ROUND(a3, b0, c1, d2);
	}

	/* Else the compiler reads the text before the rounds and keeps all of it on the stack. */
	asm volatile("" ::: "memory");
	text[0] ^= PAIR(a0 + 0x61707865, a1 + 0x3320646e);
	text[1] ^= PAIR(a2 + 0x79622d32, a3 + 0x6b206574);
	text[2] ^= PAIR(b0 + LOW(key->words[0]), b1 + HIGH(key->words[0]));
	text[3] ^= PAIR(b2 + LOW(key->words[1]), b3 + HIGH(key->words[1]));
	text[4] ^= PAIR(c0 + LOW(key->words[2]), c1 + HIGH(key->words[2]));
	text[5] ^= PAIR(c2 + LOW(key->words[3]), c3 + HIGH(key->words[3]));
	text[6] ^= PAIR(d0 + block, d1);
	text[7] ^= PAIR(d2 + LOW(nonce), d3 + HIGH(nonce));
}

#endif
