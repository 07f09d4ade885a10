/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Why a packet was dropped (DROP_*) or handed to the daemon instead (PASS_*). The daemon shows
 * the names without their prefix, in lower case; it reads them from this map's BTF. */
#ifndef EBPFVPN_DROPS_H
#define EBPFVPN_DROPS_H

enum drop_reason {
	/* open */
	DROP_MALFORMED_MESSAGE, /* a data message too short to be one, or of a reserved type */
	DROP_UNKNOWN_INDEX, /* no session has this receiver index */
	DROP_EXPIRED_RECEIVE, /* the session is past REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES */
	DROP_REPLAYED, /* the counter was seen already */
	DROP_TOO_OLD, /* the counter is behind the window */
	DROP_BAD_TAG, /* authentication failed */
	DROP_MALFORMED_INNER, /* authenticated, but no IP packet of the length it claims */
	DROP_SOURCE_NOT_ALLOWED, /* inner source outside the peer's allowed-ips */
	DROP_ECN, /* congestion marked outside, not ECN-capable inside (RFC 6040) */
	DROP_FORGED_MARK, /* came from outside with the mark of our own frames */
	/* seal */
	DROP_NO_SESSION, /* the session went away between steer and seal */
	DROP_EXPIRED_SEND, /* past REJECT_AFTER_TIME or REJECT_AFTER_MESSAGES */
	DROP_NO_ENDPOINT, /* no address to send to */
	DROP_MALFORMED_FRAME, /* on the segmenter, but not one of ours */
	/* any */
	DROP_HELPER_FAILED, /* the kernel refused to grow, shrink or redirect a packet */
	/* not drops: handed on */
	PASS_NO_PEER, /* no allowed-ips entry: the daemon answers with ICMP */
	PASS_NO_USABLE_SESSION, /* the daemon queues it and shakes hands */
	PASS_TOO_BIG, /* does not fit the path: the daemon answers with ICMP */
	PASS_FRAGMENT, /* outer fragment: reassembled, comes back through the daemon */
	PASS_AGGREGATE, /* several messages in one packet: comes back through the daemon */
	DROP_REASONS,
};

#endif
