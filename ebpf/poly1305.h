/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Poly1305 (RFC 8439 section 2.5) in radix 2^32 with deferred carries.
 *
 * The BPF machine multiplies 64 by 64 bits to the low 64 bits, so limbs are 32 bits wide. r is
 * clamped: each limb is below 2^28, and r1..r3 are multiples of 4, so that r_i * 2^(32*4) =
 * r_i/4 * 5 modulo 2^130 - 5: s_i = r_i * 5/4 < 2^28.33.
 *
 * Carries are not rippled. After a multiplication each limb keeps the low half of its sum and
 * adds the high half of its neighbour's, all at once. With h0 < 2^33.85 and h1..h3 < 2^33.55,
 * h4 <= 4, the largest sum is h0*r0 + (h1+h2+h3)*s < 2^63.9; its high half is below 2^31.9, so
 * after the next 32 bits of message the bounds hold again, and no sum overflows. */
#ifndef EBPFVPN_POLY1305_H
#define EBPFVPN_POLY1305_H

#include <linux/types.h>

struct poly1305 {
	__u64 h0, h1, h2, h3;
	__u64 sum; /* of all 32-bit words taken in: the Internet checksum's, for free */
	__u32 h4, r0, r1, r2, r3;
	__u32 reserved;
};

#define MASK32 0xffffffffULL

/* key: the first 16 bytes of the one-time key, r. */
static __always_inline void poly1305_init(struct poly1305 *p, __u64 low, __u64 high)
{
	p->h0 = p->h1 = p->h2 = p->h3 = p->h4 = 0;
	p->r0 = low & 0x0fffffff;
	p->r1 = (low >> 32) & 0x0ffffffc;
	p->r2 = high & 0x0ffffffc;
	p->r3 = (high >> 32) & 0x0ffffffc;
	p->sum = 0;
	p->reserved = 0;
}

/* Takes in one whole block of 16 bytes. */
static __always_inline void poly1305_block(struct poly1305 *p, __u64 low, __u64 high)
{
	__u64 m1 = low >> 32, m3 = high >> 32;
	__u64 r0 = p->r0, r1 = p->r1, r2 = p->r2, r3 = p->r3;
	__u64 s1 = r1 + (r1 >> 2), s2 = r2 + (r2 >> 2), s3 = r3 + (r3 >> 2);
	__u64 h0, h1, h2, h3, h4, d0, d1, d2, d3;

	low &= MASK32;
	high &= MASK32;
	p->sum += low + m1 + high + m3;
	h0 = p->h0 + low;
	h1 = p->h1 + m1;
	h2 = p->h2 + high;
	h3 = p->h3 + m3;
	h4 = (__u64)p->h4 + 1;

	d0 = h0 * r0 + h1 * s3 + h2 * s2 + h3 * s1;
	d1 = h0 * r1 + h1 * r0 + h2 * s3 + h3 * s2 + h4 * s1;
	d2 = h0 * r2 + h1 * r1 + h2 * r0 + h3 * s3 + h4 * s2;
	d3 = h0 * r3 + h1 * r2 + h2 * r1 + h3 * r0 + h4 * s3;
	h4 = h4 * r0 + (d3 >> 32);

	p->h0 = (d0 & MASK32) + (h4 >> 2) * 5;
	p->h1 = (d1 & MASK32) + (d0 >> 32);
	p->h2 = (d2 & MASK32) + (d1 >> 32);
	p->h3 = (d3 & MASK32) + (d2 >> 32);
	p->h4 = h4 & 3;
}

/* The tag, with the second half of the one-time key, s. */
static __always_inline void poly1305_finish(
	struct poly1305 *p, __u64 low, __u64 high, __u64 *tag_low, __u64 *tag_high)
{
	__u64 h0 = p->h0, h1 = p->h1, h2 = p->h2, h3 = p->h3, h4 = p->h4;
	__u64 g0, g1, g2, g3, use_g;

	/* Two rounds of rippled carries: the first leaves at most a carry of one. */
#define CARRY                                                                                      \
	h1 += h0 >> 32, h0 &= MASK32;                                                              \
	h2 += h1 >> 32, h1 &= MASK32;                                                              \
	h3 += h2 >> 32, h2 &= MASK32;                                                              \
	h4 += h3 >> 32, h3 &= MASK32;                                                              \
	h0 += (h4 >> 2) * 5, h4 &= 3
	CARRY;
	CARRY;
#undef CARRY
	h1 += h0 >> 32, h0 &= MASK32;
	h2 += h1 >> 32, h1 &= MASK32;
	h3 += h2 >> 32, h2 &= MASK32;
	h4 += h3 >> 32, h3 &= MASK32;

	/* g = h + 5 - 2^130: taken instead of h when h >= 2^130 - 5, without a branch. */
	g0 = h0 + 5;
	g1 = h1 + (g0 >> 32);
	g2 = h2 + (g1 >> 32);
	g3 = h3 + (g2 >> 32);
	use_g = -(((h4 + (g3 >> 32)) >> 2) & 1);
	h0 ^= (h0 ^ g0) & use_g & MASK32;
	h1 ^= (h1 ^ g1) & use_g & MASK32;
	h2 ^= (h2 ^ g2) & use_g & MASK32;
	h3 ^= (h3 ^ g3) & use_g & MASK32;

	h0 += low & MASK32;
	h1 += (low >> 32) + (h0 >> 32);
	h2 += (high & MASK32) + (h1 >> 32);
	h3 += (high >> 32) + (h2 >> 32);
	*tag_low = (h0 & MASK32) | h1 << 32;
	*tag_high = (h2 & MASK32) | h3 << 32;
}

#endif
