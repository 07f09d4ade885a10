/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Handing messages to other CPUs, by a CPU map. The CPU that takes the interrupts of a device with
 * one receive queue would open everything that comes by it, while others have nothing to do.
 *
 * Waking another CPU costs more than opening a message, so only what comes in numbers is handed
 * over, and what comes at short intervals after it: what is opened at once while others of its flow
 * wait elsewhere would overtake them. */
#ifndef EBPFVPN_CPUMAP_H
#define EBPFVPN_CPUMAP_H

#include "outer.h"
#include "tunnel.h"

/* A device is busy when so many bytes have come in so many nanoseconds, and remains so for a time
 * in which every queue runs empty. */
#define BUSY_BYTES 65536
#define BUSY_WITHIN 1000000
#define BUSY_FOR 10000000
/* In a shorter message the cipher is the lesser part: it does not make a device busy. */
#define LONG_MESSAGE 512
#define NO_CPU 0xffffffff

/* Set by the daemon before loading; none: nothing is handed over. */
const volatile struct cpu_list cpu_list SEC(".rodata.cpus") = {};

static __always_inline int is_busy(struct spread *device, __u32 length)
{
	__u64 now;

	if (length >= LONG_MESSAGE)
		device->bytes += length;
	if (device->bytes < BUSY_BYTES && !device->busy_until)
		return 0;
	now = bpf_ktime_get_boot_ns();
	if (device->bytes >= BUSY_BYTES) {
		if (now - device->since < BUSY_WITHIN)
			device->busy_until = now + BUSY_FOR;
		device->since = now;
		device->bytes = 0;
	}
	if (now < device->busy_until)
		return 1;
	device->busy_until = 0;
	return 0;
}

/* One and the same for all of a flow. Ports in a row (those of a peer) go to CPUs in a row. */
static __noinline __u32 flow_cpu(packet_t *packet, const struct outer *outer)
{
	__u32 others = cpu_list.count - 1;
	__u64 remote[2], local[2];
	__u64 at;
	__u32 cpu;

	if (others >= MOST_CPUS || outer_addresses(packet, outer, remote, local))
		return NO_CPU;
	at = ((remote[1] >> 32) + bpf_ntohs(outer->remote_port)) % others;
	asm volatile("" : "+r"(at)); /* the compiler knows that it is less, the verifier does not */
	cpu = cpu_list.cpus[at % MOST_CPUS];
	/* The others are the first but for this one, in whose place the last is. */
	return cpu == bpf_get_smp_processor_id() ? cpu_list.cpus[others] : cpu;
}

/* Whether the message is on its way to another CPU, where `open_cpu` opens it. */
static __always_inline int hand_over(packet_t *packet, const struct outer *outer)
{
	__u32 ifindex = packet->ingress_ifindex;
	struct spread *device;

	if (cpu_list.count < 2)
		return 0;
	device = bpf_map_lookup_elem(&spread, &ifindex);
	if (!device || !is_busy(device, outer->length))
		return 0;
	if (bpf_redirect_map(&cpus, flow_cpu(packet, outer), XDP_PASS) != XDP_REDIRECT)
		return 0;
	count(pass_to_cpu);
	return 1;
}

/* Whether it is still to be opened: who waits until nothing is opened any more would not know of
 * what is on its way to another CPU. */
static __always_inline int is_taken_over(packet_t *packet)
{
	__u32 ifindex = packet->ingress_ifindex;

	if (!bpf_map_lookup_elem(&spread, &ifindex))
		return 0;
	count(pass_from_cpu);
	return 1;
}

#endif
