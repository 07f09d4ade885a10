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

#define refuse(reason)                                                                             \
	({                                                                                         \
		count(reason);                                                                     \
		SOCKET_REFUSE;                                                                     \
	})

SEC("socket")
int accept_message(struct __sk_buff *skb)
{
	__u32 length = skb->len - sizeof(struct udphdr);
	struct {
		__u32 type;
		__u32 receiver;
	} head;

	if (bpf_skb_load_bytes(skb, sizeof(struct udphdr), &head, sizeof(head)))
		return refuse(malformed_message);
	if ((head.type == MESSAGE_INITIATION && length == INITIATION_LENGTH) ||
		(head.type == MESSAGE_RESPONSE && length == RESPONSE_LENGTH) ||
		(head.type == MESSAGE_COOKIE && length == COOKIE_LENGTH))
		return SOCKET_ACCEPT;
	if (head.type != MESSAGE_DATA || length < MESSAGE_OVERHEAD)
		return refuse(malformed_message);
	if (!bpf_map_lookup_elem(&sessions, &head.receiver))
		return refuse(unknown_index);
	return SOCKET_ACCEPT;
}

#endif
