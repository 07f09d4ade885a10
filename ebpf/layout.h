/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What lies in a tunnel's maps (maps.h). Programs of another version may go on with the same maps,
 * so whoever changes any of this (or the frames between the programs) raises LAYOUT in
 * daemon/ebpfvpn/kernel/layout.py. Times are nanoseconds of CLOCK_BOOTTIME; 0 is "never".
 * Numbers are in host order unless their type is __be16 or __be32. Addresses are 16 bytes, IPv4 in
 * its mapped form ::ffff:a.b.c.d. The daemon's view of the same structures is
 * daemon/ebpfvpn/kernel/layout.py.
 */
#ifndef EBPFVPN_LAYOUT_H
#define EBPFVPN_LAYOUT_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define ADDRESS_LENGTH 16
#define KEY_LENGTH 32
#define MAC_LENGTH 6
#define TIMESTAMP_LENGTH 12 /* TAI64N */

/* What the tunnel is: one entry, written by the daemon. */
struct config {
	__u8 mark[MAC_LENGTH]; /* destination MAC of our own frames between our own programs */
	__be16 listen_port;
	__u32 tun_ifindex;
	__u32 outer_ifindex; /* the segmenter's end that `steer` sends to; `deliver` is on it too */
	__u32 inner_ifindex; /* the segmenter's end where `seal` is; tc `open` sends to it */
	__u32 mtu; /* of the TUN: padding stops there */
	__u32 fwmark;
	__u32 seals_in_threads; /* the segmenter: beside the sender, not in its time */
};

/* By peer number. The daemon writes public_key and flags; the rest changes under the programs. */
struct peer {
	__u8 public_key[KEY_LENGTH];
	__u32 current; /* local index of the session that seals; 0: none */
	__u32 next; /* the responder's new session, until its first authenticated packet; 0: none */
	__u32 usable; /* `steer` may take the kernel path: first packets have been sent in order */
	__u32 max_inner; /* longest inner packet that fits the path; 0: no limit known */
	__u64 expires; /* of the current session */
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 last_sent; /* any sealed packet */
	__u64 last_data_sent; /* one that is no keepalive */
	__u64 unanswered_since; /* first data sent after the last authenticated packet; 0: none */
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 last_received; /* any authenticated packet */
	__u64 last_data_received;
	__u64 unacknowledged_since; /* first data received after the last packet sent; 0: none */
	__u8 timestamp[TIMESTAMP_LENGTH]; /* greatest of its initiations, for the next daemon */
	__u32 flow_ports; /* source ports of what is sealed, and of what the peer seals */
	__u64 replayed; /* dropped: seen already */
	__u64 late; /* dropped: behind the replay window */
	__u64 max_lateness; /* packets behind the newest, of what was accepted and what was late */
	__u64 heavy_until; /* light.h: until then every packet goes by the segmenter */
	__u64 looked; /* when it was asked whether there are many, */
	__u64 packets_then; /* and tx_packets at that time */
};

/* By local index. No secrets here. */
struct session {
	__u32 peer;
	__u32 remote_index;
	__u64 created;
	__u64 expires; /* nothing is sealed or opened from then on */
	__u64 send_counter; /* the next one to use; belongs to the programs alone */
	__u64 send_limit; /* counters below it may be used */
	__u64 rekey_at; /* the daemon is told, once, when this counter is used */
	__u64 receive_highest; /* highest authenticated counter, plus one */
	__u32 initiator;
	__u32 reserved;
};

/* By local index: the one map with secrets. */
struct session_keys {
	__u8 send[KEY_LENGTH];
	__u8 receive[KEY_LENGTH];
};

/* The replay window (replay.h) of every session; an entry of `windows` is its ring. What is
 * defined here is set anew before loading. */
struct window_geometry {
	__u32 size; /* counters, the newest included */
	__u32 order; /* the ring has 2^order words */
};

#define WINDOW_SIZE 8192
#define WINDOW_ORDER 9
#define WINDOW_BYTES (sizeof(__u64) << WINDOW_ORDER)

/* The CPUs that open messages (cpumap.h): set anew before loading. */
#define MOST_CPUS 8

struct cpu_list {
	__u32 count;
	__u32 cpus[MOST_CPUS];
};

/* By ifindex, of devices whose messages other CPUs may open: what came lately. */
struct spread {
	__u64 since; /* from then on bytes are counted */
	__u64 bytes; /* in long messages */
	__u64 busy_until; /* 0: it is not */
};

/* By peer number: where the peer was last heard, and at which of our addresses. */
struct endpoint {
	struct bpf_spin_lock lock; /* it is written whole */
	__u32 ifindex;
	__u8 remote[ADDRESS_LENGTH];
	__u8 local[ADDRESS_LENGTH]; /* all zero: the kernel's choice */
	__be16 remote_port; /* 0: no endpoint known */
	__u16 reserved[3];
};

/* The way to an endpoint, resolved by the daemon. None: `seal` in tc asks the kernel's FIB. */
struct route_key {
	__u8 remote[ADDRESS_LENGTH];
	__u8 local[ADDRESS_LENGTH];
};

enum route_flags {
	ROUTE_NEIGHBOUR = 1, /* both MAC addresses are known */
	ROUTE_XDP = 2, /* the device takes frames by XDP_REDIRECT */
};

struct route {
	__u32 ifindex;
	__u32 mtu; /* of an outer IP packet */
	__u32 flags;
	__u8 source_mac[MAC_LENGTH];
	__u8 destination_mac[MAC_LENGTH];
	__u8 gateway[ADDRESS_LENGTH]; /* next hop, mapped form; equal to remote when on link */
};

struct allowed_ip4 {
	__u32 prefix_length;
	__u8 address[4];
};

struct allowed_ip6 {
	__u32 prefix_length;
	__u8 address[16];
};

/* What the programs tell the daemon. */
enum event_type {
	EVENT_CONFIRMED = 1, /* `next` became `current` by its first authenticated packet */
	EVENT_ROAMED = 2, /* an authenticated packet came from a new endpoint */
	EVENT_MESSAGES_USED = 3, /* the session has sealed as many as call for a new one */
};

struct event {
	__u32 type;
	__u32 peer;
	__u32 local_index;
	__u32 reserved;
};

/* Contexts of the syscall programs in control.h, which the daemon runs to change in place what
 * the other programs change too. */
enum set_peer_fields {
	SET_CURRENT = 1, /* and expires */
	SET_NEXT = 2,
	SET_USABLE = 4,
	SET_MAX_INNER = 8,
	SET_TIMESTAMP = 16,
	SET_FLOW_PORTS = 32,
};

struct set_peer {
	__u32 peer;
	__u32 fields; /* enum set_peer_fields */
	__u32 current;
	__u32 next;
	__u32 usable;
	__u32 max_inner;
	__u64 expires;
	__u8 timestamp[TIMESTAMP_LENGTH];
	__u32 flow_ports;
};

struct wipe_keys {
	__u32 local_index;
};

/* A map that libbpf pins by its name. */
#define PINNED __uint(pinning, LIBBPF_PIN_BY_NAME)

#endif
