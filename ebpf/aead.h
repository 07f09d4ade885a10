/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* ChaCha20-Poly1305 (RFC 8439 section 2.8) without additional data over a part of a packet, in
 * place and in one pass.
 *
 * The work on blocks is in global functions: the verifier walks through each of them once, and
 * not once per block of the longest packet; and their stack is free again for the next. */
#ifndef EBPFVPN_AEAD_H
#define EBPFVPN_AEAD_H

#include "chacha20.h"
#include "packet.h"
#include "poly1305.h"

#define TAG_LENGTH 16
/* An inner packet of a jumbo frame: 9001 less IPv4, UDP, message header and tag. */
#define MAX_INNER 8921
#define MAX_BLOCKS (MAX_INNER / CHACHA20_BLOCK)

/* Of a call: with one block, the calls were a twentieth of the time; with 32 little more is won. */
#define BLOCKS_AT_ONCE 8

enum direction { SEAL, OPEN };

struct aead {
	struct poly1305 poly;
	__u64 nonce;
	__u64 pad[2]; /* second half of Poly1305's one-time key */
	__u32 block;
	__u32 offset; /* in the packet, of the next byte */
};

static __always_inline void aead_init(
	struct aead *a, const struct chacha20_key *key, __u64 counter, __u32 offset)
{
	__u64 once[CHACHA20_BLOCK / 8] = {};

	chacha20_xor(once, key, counter, 0);
	poly1305_init(&a->poly, once[0], once[1]);
	a->pad[0] = once[2];
	a->pad[1] = once[3];
	a->nonce = counter;
	a->block = 1;
	a->offset = offset;
}

/* Four blocks of Poly1305 are one of ChaCha20. */
static __always_inline void aead_authenticate(struct aead *a, const __u64 *text)
{
	struct poly1305 poly = a->poly;
	int i;

#pragma unroll
	for (i = 0; i < CHACHA20_BLOCK / 8; i += 2)
		poly1305_block(&poly, text[i], text[i + 1]);
	a->poly = poly;
}

/* Cipher and authenticator one after the other, not interleaved: neither leaves the other room in
 * ten registers, and what is spilled must fit the stack. */
static __always_inline int aead_block(
	packet_t *packet, struct aead *a, const struct chacha20_key *key, enum direction direction)
{
	__u32 offset = a->offset;
	__u64 *text;

	if (offset > 0x7fff)
		return -1;
	text = packet_data(packet) + offset;
	if ((void *)text + CHACHA20_BLOCK > packet_end(packet))
		return -1;
	if (direction == OPEN)
		aead_authenticate(a, text);
	chacha20_xor(text, key, a->nonce, a->block);
	if (direction == SEAL)
		aead_authenticate(a, text);
	a->block++;
	a->offset = offset + CHACHA20_BLOCK;
	return 0;
}

static __always_inline int aead_blocks(packet_t *packet, struct aead *a,
	const struct chacha20_key *key, __u32 count, enum direction direction)
{
	__u32 i;

	for (i = 0; i < BLOCKS_AT_ONCE && i < count; i++) {
		if (aead_block(packet, a, key, direction))
			return -1;
	}
	return 0;
}

/* The last 1 to 63 bytes, through a copy: there need not be a whole block in the packet. */
static __always_inline int aead_tail_xor(
	packet_t *packet, struct aead *a, const struct chacha20_key *key, __u64 length)
{
	__u64 text[CHACHA20_BLOCK / 8] = {};

	length = bounded(length, CHACHA20_BLOCK);
	if (packet_load(packet, a->offset, text, length))
		return -1;
	chacha20_xor(text, key, a->nonce, a->block);
	return packet_store(packet, a->offset, text, length) ? -1 : 0;
}

static __always_inline int aead_tail_poly(packet_t *packet, struct aead *a, __u64 length)
{
	__u64 text[CHACHA20_BLOCK / 8] = {};
	int i;

	length = bounded(length, CHACHA20_BLOCK);
	if (packet_load(packet, a->offset, text, length))
		return -1;
	for (i = 0; i < CHACHA20_BLOCK / 8 && i * 8 < length; i += 2)
		poly1305_block(&a->poly, text[i], text[i + 1]);
	return 0;
}

#define AEAD_GLOBAL __attribute__((noinline)) int

AEAD_GLOBAL aead_start(struct aead *a, const struct chacha20_key *key, __u64 counter, __u32 offset)
{
	if (!a || !key)
		return -1;
	aead_init(a, key, counter, offset);
	return 0;
}

AEAD_GLOBAL aead_seal_blocks(
	packet_t *packet, struct aead *a, const struct chacha20_key *key, __u32 count)
{
	return a && key ? aead_blocks(packet, a, key, count, SEAL) : -1;
}

AEAD_GLOBAL aead_open_blocks(
	packet_t *packet, struct aead *a, const struct chacha20_key *key, __u32 count)
{
	return a && key ? aead_blocks(packet, a, key, count, OPEN) : -1;
}

AEAD_GLOBAL aead_xor(packet_t *packet, struct aead *a, const struct chacha20_key *key, __u64 length)
{
	return a && key ? aead_tail_xor(packet, a, key, length) : -1;
}

AEAD_GLOBAL aead_poly(packet_t *packet, struct aead *a, __u64 length)
{
	return a ? aead_tail_poly(packet, a, length) : -1;
}

/* Encrypts or decrypts `length` bytes at `offset` and gives the tag of the ciphertext (OPEN: for
 * the caller to compare). *sum, if not NULL: the unfolded Internet checksum of the ciphertext.
 * Returns -1 where the packet is shorter than it claims. */
static __always_inline int aead_crypt(packet_t *packet, __u32 offset, __u32 length,
	const struct chacha20_key *key, __u64 counter, enum direction direction, __u64 tag[2],
	__u64 *sum)
{
	struct aead a = {};
	__u32 blocks = length / CHACHA20_BLOCK, i;
	__u64 rest;

	if (aead_start(&a, key, counter, offset))
		return -1;
	for (i = 0; i < MAX_BLOCKS && i < blocks; i += BLOCKS_AT_ONCE) {
		if (direction == SEAL ? aead_seal_blocks(packet, &a, key, blocks - i)
				      : aead_open_blocks(packet, &a, key, blocks - i))
			return -1;
	}
	rest = length % CHACHA20_BLOCK;
	if (rest) {
		if (direction == OPEN && aead_poly(packet, &a, rest))
			return -1;
		if (aead_xor(packet, &a, key, rest))
			return -1;
		if (direction == SEAL && aead_poly(packet, &a, rest))
			return -1;
	}
	if (sum)
		*sum = a.poly.sum;
	poly1305_block(&a.poly, 0, length);
	poly1305_finish(&a.poly, a.pad[0], a.pad[1], &tag[0], &tag[1]);
	return 0;
}

#endif
