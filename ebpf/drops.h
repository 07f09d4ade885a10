/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* A counter per reason why a packet was dropped, or (pass_*) handed on to the daemon instead.
 * This list is the only one: the daemon reads the names from the object's BTF. */
#ifndef EBPFVPN_DROPS_H
#define EBPFVPN_DROPS_H

#include <linux/types.h>

struct drops {
	/* open */
	__u64 malformed_message; /* too short for its type, or of a type that does not exist */
	__u64 unknown_index; /* no session has this receiver index */
	__u64 expired_receive; /* past REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES */
	__u64 replayed; /* the counter was seen already */
	__u64 too_old; /* the counter is behind the replay window */
	__u64 bad_tag; /* authentication failed */
	__u64 malformed_inner; /* authenticated, but no IP packet of the length it claims */
	__u64 source_not_allowed; /* inner source outside the peer's allowed-ips */
	__u64 ecn; /* congestion marked outside, not ECN-capable inside (RFC 6040) */
	/* seal */
	__u64 no_session; /* the session went away between steer and seal */
	__u64 expired_send; /* past REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES */
	__u64 no_endpoint; /* no address to send to */
	__u64 no_route; /* no way to that address, nor a device by which the peer was heard */
	__u64 malformed_frame; /* on the segmenter, but not one of ours */
	/* the filter of the daemon's UDP sockets */
	__u64 socket_refused; /* no well-formed handshake message, no data of a live session */
	/* any */
	__u64 helper_failed; /* the kernel refused to grow, shrink or redirect a packet */
	/* not dropped but handed on */
	__u64 pass_no_peer; /* outside all allowed-ips: the daemon answers with ICMP */
	__u64 pass_no_usable_session; /* the daemon queues it and shakes hands */
	__u64 pass_too_big; /* does not fit the path: the daemon answers with ICMP */
	__u64 pass_fragment; /* outer fragment: reassembled, comes back through the daemon */
	__u64 pass_aggregate; /* several messages in one packet: comes back through the daemon */
	__u64 pass_seal_in_tc; /* cannot be sealed in XDP: sealed in tc */
	__u64 pass_to_cpu; /* opened by another CPU */
	__u64 pass_from_cpu; /* arrived there: what is missing waits, or was lost in the queue */
	__u64 pass_too_long; /* sealed, but longer than the way takes: the daemon has it fragmented
			      */
};

#endif
