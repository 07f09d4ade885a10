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
	__u64 stream[CHACHA20_BLOCK / 8]; /* for what is not a whole block of text */
	__u32 block;
	__u32 offset; /* in the packet, of the next byte */
};

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
	__u64 *text = packet_at(packet, a->offset, CHACHA20_BLOCK);

	if (!text)
		return -1;
	if (direction == OPEN)
		aead_authenticate(a, text);
	chacha20_xor(text, key, a->nonce, a->block);
	a->block++;
	a->offset += CHACHA20_BLOCK;
	if (direction == SEAL)
		aead_authenticate(a, text);
	return 0;
}

static __always_inline int aead_blocks(packet_t *packet, struct aead *a,
	const struct chacha20_key *key, __u32 count, enum direction direction)
{
	__u32 i;

	/* Linux 6.1 only sees an end to it where a known number is counted up to another. */
	for (i = 0; i < BLOCKS_AT_ONCE && i < count; i++) {
		if (aead_block(packet, a, key, direction))
			return -1;
	}
	return 0;
}

#define TAIL_BLOCK 16

/* The last 1 to 63 bytes, in blocks of Poly1305's. What is left of these goes through a copy. */
static __always_inline int aead_tail(
	packet_t *packet, struct aead *a, __u64 length, enum direction direction)
{
	__u64 part[TAIL_BLOCK / 8] = {}, *text;
	__u32 i;

	for (i = 0; i < CHACHA20_BLOCK / 8 && length >= TAIL_BLOCK; i += 2) {
		text = packet_at(packet, a->offset, TAIL_BLOCK);
		if (!text)
			return -1;
		if (direction == OPEN)
			poly1305_block(&a->poly, text[0], text[1]);
		text[0] ^= a->stream[i];
		text[1] ^= a->stream[i + 1];
		if (direction == SEAL)
			poly1305_block(&a->poly, text[0], text[1]);
		a->offset += TAIL_BLOCK;
		length -= TAIL_BLOCK;
	}
	if (!length || i >= CHACHA20_BLOCK / 8)
		return 0;
	length = bounded(length, TAIL_BLOCK);
	if (packet_load(packet, a->offset, part, length))
		return -1;
	if (direction == OPEN)
		poly1305_block(&a->poly, part[0], part[1]);
	part[0] ^= a->stream[i];
	part[1] ^= a->stream[i + 1];
	if (packet_store(packet, a->offset, part, length))
		return -1;
	if (direction == OPEN)
		return 0;
	part[0] = part[1] = 0;
	if (packet_load(packet, a->offset, part, length))
		return -1;
	poly1305_block(&a->poly, part[0], part[1]);
	return 0;
}

#define AEAD_GLOBAL __attribute__((noinline)) int

AEAD_GLOBAL aead_stream(struct aead *a, const struct chacha20_key *key)
{
	if (!a || !key)
		return -1;
	__builtin_memset(a->stream, 0, sizeof(a->stream));
	chacha20_xor(a->stream, key, a->nonce, a->block);
	a->block++;
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

AEAD_GLOBAL aead_seal_tail(packet_t *packet, struct aead *a, __u64 length)
{
	return a ? aead_tail(packet, a, length, SEAL) : -1;
}

AEAD_GLOBAL aead_open_tail(packet_t *packet, struct aead *a, __u64 length)
{
	return a ? aead_tail(packet, a, length, OPEN) : -1;
}

/* Encrypts or decrypts `length` bytes at `offset` and gives the tag of the ciphertext (OPEN: for
 * the caller to compare). The ciphertext's unfolded Internet checksum is added to *sum, if that is
 * not NULL.
 * Returns -1 where the packet is shorter than it claims. */
static __always_inline int aead_crypt(packet_t *packet, __u32 offset, __u32 length,
	const struct chacha20_key *key, __u64 counter, enum direction direction, __u64 tag[2],
	__u64 *sum)
{
	struct aead a = {.nonce = counter, .offset = offset};
	__u32 blocks = length / CHACHA20_BLOCK, i;
	__u64 rest;

	if (aead_stream(&a, key))
		return -1;
	poly1305_init(&a.poly, a.stream[0], a.stream[1]);
	a.pad[0] = a.stream[2];
	a.pad[1] = a.stream[3];
	for (i = 0; i < MAX_BLOCKS && i < blocks; i += BLOCKS_AT_ONCE) {
		if (direction == SEAL ? aead_seal_blocks(packet, &a, key, blocks - i)
				      : aead_open_blocks(packet, &a, key, blocks - i))
			return -1;
	}
	rest = length % CHACHA20_BLOCK;
	if (rest) {
		if (aead_stream(&a, key))
			return -1;
		if (direction == SEAL ? aead_seal_tail(packet, &a, rest)
				      : aead_open_tail(packet, &a, rest))
			return -1;
	}
	if (sum)
		*sum += a.poly.sum;
	poly1305_block(&a.poly, 0, length);
	poly1305_finish(&a.poly, a.pad[0], a.pad[1], &tag[0], &tag[1]);
	return 0;
}

#endif
