/* The AEAD of ebpf/, compiled for this machine: what the same code costs without the BPF machine.
 * In place of ebpf/packet.h, whose helpers only BPF programs can call. */
#define EBPFVPN_PACKET_H

#include <string.h>
#include <time.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

typedef struct {
	__u8 *data;
	__u8 *data_end;
} packet_t;

#define packet_data(packet) ((void *)(packet)->data)
#define packet_end(packet) ((void *)(packet)->data_end)
#define packet_load(packet, offset, to, length) (memcpy(to, (packet)->data + (offset), length), 0)
#define packet_store(packet, offset, from, length)                                                 \
	(memcpy((packet)->data + (offset), from, length), 0)

static inline __u64 bounded(__u64 length, __u64 most)
{
	return (length - 1) % most + 1;
}

static inline void *packet_at(packet_t *packet, __u32 offset, __u32 length)
{
	void *at = packet->data + offset;

	return at + length > packet_end(packet) ? NULL : at;
}

#include "aead.h"

/* Seals or opens `text` in place, `repeat` times; returns the nanoseconds that took, or -1. */
long long aead_native(__u8 *text, __u32 length, const struct chacha20_key *key, __u64 counter,
	int open, int repeat, __u64 tag[2])
{
	packet_t packet = {text, text + length};
	struct timespec before, after;
	__u64 sum;
	int i, failed = 0;

	clock_gettime(CLOCK_MONOTONIC, &before);
	for (i = 0; i < repeat; i++)
		failed |= open ? aead_crypt(&packet, 0, length, key, counter, OPEN, tag, &sum)
			       : aead_crypt(&packet, 0, length, key, counter, SEAL, tag, &sum);
	clock_gettime(CLOCK_MONOTONIC, &after);
	if (failed)
		return -1;
	return (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
}
