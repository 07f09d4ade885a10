/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* The filter of the daemon's UDP sockets: what the data path left for it must be a handshake
 * message, or a data message of a live session (from fragments, say). */
#ifndef EBPFVPN_ACCEPT_H
#define EBPFVPN_ACCEPT_H

#include <linux/udp.h>

#include "tunnel.h"
#include "wire.h"

#define INITIATION_LENGTH 148
#define RESPONSE_LENGTH 92
#define COOKIE_LENGTH 64

#define SOCKET_ACCEPT 0xffff /* bytes */
#define SOCKET_REFUSE 0

/* Counted apart from what `open` drops: the kernel counts these as dropped by the socket, with what
 * its queue had no room for, and the daemon subtracts them (losses.py). */
static __always_inline int refuse(void)
{
	count(socket_refused);
	return SOCKET_REFUSE;
}

SEC("socket")
int accept_message(struct __sk_buff *skb)
{
	__u32 length = skb->len - sizeof(struct udphdr);
	struct {
		__u32 type;
		__u32 receiver;
	} head;

	if (bpf_skb_load_bytes(skb, sizeof(struct udphdr), &head, sizeof(head)))
		return refuse();
	if ((head.type == MESSAGE_INITIATION && length == INITIATION_LENGTH) ||
		(head.type == MESSAGE_RESPONSE && length == RESPONSE_LENGTH) ||
		(head.type == MESSAGE_COOKIE && length == COOKIE_LENGTH))
		return SOCKET_ACCEPT;
	if (head.type != MESSAGE_DATA || length < MESSAGE_OVERHEAD)
		return refuse();
	if (!bpf_map_lookup_elem(&sessions, &head.receiver))
		return refuse();
	return SOCKET_ACCEPT;
}

#endif
