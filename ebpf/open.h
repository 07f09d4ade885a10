/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Opening: from the arriving data message to an inner packet that bears our mark. */
#ifndef EBPFVPN_OPEN_H
#define EBPFVPN_OPEN_H

#include "aead.h"
#ifdef HOOK_XDP
#include "cpumap.h"
#endif
#include "inner.h"
#include "outer.h"
#include "replay.h"
#include "traffic.h"
#include "tunnel.h"

/* The device the message came in by. */
static __always_inline __u32 arrival_ifindex(packet_t *packet, const struct config *c)
{
#ifdef HOOK_XDP
	return packet->ingress_ifindex;
#else
	/* Reinjected by the daemon, which names the real one in the source MAC. */
	if (packet->ifindex == c->outer_ifindex) {
		struct marked_header *header = packet_data(packet);

		if ((void *)(header + 1) <= packet_end(packet))
			return header->to;
	}
	return packet->ifindex;
#endif
}

/* An authenticated packet moves the peer's endpoint (whitepaper section 2.1). Of a peer's flow
 * ports the first one is its endpoint's. */
static __noinline int roam(
	packet_t *packet, const struct outer *outer, __u32 peer, __u32 flow_ports)
{
	struct config *c = tunnel_config();
	struct endpoint *known = bpf_map_lookup_elem(&endpoints, &peer);
	__u64 remote[2], local[2];
	__be16 port = outer->remote_port;
	__u32 ifindex;

	if (!c || !known || outer_addresses(packet, outer, remote, local))
		return -1;
	if ((__u32)bpf_ntohs(port) - bpf_ntohs(known->remote_port) < flow_ports)
		port = known->remote_port;
	ifindex = arrival_ifindex(packet, c);
	/* Read without the lock: what is torn by a writer differs, and is then set again. */
	if (known->remote_port == port && known->ifindex == ifindex &&
		equal16(known->remote, remote) && equal16(known->local, local))
		return 0;
	bpf_spin_lock(&known->lock);
	known->ifindex = ifindex;
	known->remote_port = port;
	copy16(known->remote, remote);
	copy16(known->local, local);
	bpf_spin_unlock(&known->lock);
	tell_daemon(EVENT_ROAMED, peer, 0);
	return 0;
}

/* The responder's new session is in use from its first authenticated packet on. */
static __always_inline void confirm(
	struct peer *peer, const struct session *session, __u32 local_index)
{
	if (*(volatile __u32 *)&peer->next != local_index)
		return;
	if (__sync_val_compare_and_swap(&peer->next, local_index, 0) != local_index)
		return;
	peer->expires = session->expires;
	peer->current = local_index;
	tell_daemon(EVENT_CONFIRMED, session->peer, local_index);
}

#ifndef HOOK_XDP
static __always_inline int is_tagged(const packet_t *packet)
{
	return packet->vlan_present || packet->protocol == bpf_htons(ETH_P_8021Q) ||
	       packet->protocol == bpf_htons(ETH_P_8021AD);
}

/* Takes VLAN tags away: the kernel keeps the first one apart, others stand in the packet. */
static __always_inline int untag(packet_t *packet, __u32 *inner)
{
	__u32 had = packet->len;
	int i;

	for (i = 0; i < VLAN_TAGS + 1 && is_tagged(packet); i++) {
		if (bpf_skb_vlan_pop(packet))
			return -1;
	}
	*inner -= had - packet->len;
	return 0;
}
#endif

/* Takes the outer headers, padding and tag away and puts the mark before the inner packet. */
static __always_inline int strip(
	packet_t *packet, const struct config *c, __u32 inner, __u32 length, __be16 ethertype)
{
	struct marked_header *header;
	__s32 excess;

#ifdef HOOK_XDP
	if (bpf_xdp_adjust_head(packet, inner - sizeof(*header)))
		return drop(helper_failed);
	excess = packet_length(packet) - sizeof(*header) - length;
	if (excess > 0 && bpf_xdp_adjust_tail(packet, -excess))
		return drop(helper_failed);
#else
	if (untag(packet, &inner))
		return drop(helper_failed);
	packet->mark = 0; /* was the outer packet's */
	excess = inner - sizeof(*header);
	if (bpf_skb_adjust_room(packet, -excess, BPF_ADJ_ROOM_MAC, 0))
		return drop(helper_failed);
	/* Refused where the sender's inner packet was a tunnel's and came over veth, which keeps
	 * that in mind; the stack cuts what is behind the packet too. */
	bpf_skb_change_tail(packet, sizeof(*header) + length, 0);
	/* It is authenticated: GRO need not look at the inner checksum again. */
	bpf_csum_level(packet, BPF_CSUM_LEVEL_INC);
#endif
	header = packet_data(packet);
	if ((void *)(header + 1) > packet_end(packet))
		return drop(helper_failed);
	__builtin_memcpy(header->mark, c->mark, MAC_LENGTH);
	header->to = c->tun_ifindex;
	header->keepalive = 0;
	header->flow = 0;
	header->ethertype = ethertype;
#ifdef HOOK_XDP
	return XDP_PASS;
#else
	return bpf_redirect(c->inner_ifindex, 0);
#endif
}

/* What is authenticated but may be no IP packet, or not this peer's to send. inner: offset;
 * most: bytes of it with padding. */
static __noinline int deliver_inner(
	packet_t *packet, const struct outer *outer, __u32 peer, __u32 inner, __u32 most)
{
	struct config *c = tunnel_config();
	void *ip = packet_data(packet) + inner, *end = packet_end(packet);
	__u32 length = inner_length(ip, end, most);
	__be16 ethertype;
	__u32 *allowed;
	__u8 ecn, old;

	if (!length || !c)
		return drop(malformed_inner);
	allowed = inner_peer(ip, end, 1);
	if (!allowed || *allowed != peer)
		return drop(source_not_allowed);
	if (ip + sizeof(struct iphdr) > end)
		return drop(malformed_inner);
	old = inner_ecn(ip);
	ecn = ecn_combine(old, outer->ecn);
	if (ecn == ECN_DROP)
		return drop(ecn);
	if (ecn != old)
		inner_set_ecn(ip, ecn);
	ethertype = *(__u8 *)ip >> 4 == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return strip(packet, c, inner, length, ethertype);
}

/* Counts by peer what is not the newest, and drops it unless it is new. Nobody decrypts what is
 * dropped at the first look at the window: it may be forged. */
static __noinline int out_of_order(
	const struct session *session, enum replay_verdict verdict, __u64 counter)
{
	__u64 highest = *(volatile __u64 *)&session->receive_highest;
	__u64 behind = highest > counter ? highest - counter - 1 : 0;
	__u32 number = session->peer;
	struct peer *peer = bpf_map_lookup_elem(&peers, &number);

	if (!peer)
		return drop(unknown_index);
	if (verdict == REPLAY_SEEN) {
		__sync_fetch_and_add(&peer->replayed, 1);
		return drop(replayed);
	}
	traffic_behind(peer, behind);
	if (verdict == REPLAY_NEW)
		return VERDICT_PASS;
	__sync_fetch_and_add(&peer->late, 1);
	return drop(too_old);
}

/* A data message of a session of ours: `message` is its header. */
static __always_inline int open_message(packet_t *packet, const struct outer *outer,
	struct session *session, __u32 index, __u64 counter)
{
	__u32 inner = outer->message + MESSAGE_HEADER;
	__u32 length = outer->length - MESSAGE_OVERHEAD;
	struct session_keys *both = bpf_map_lookup_elem(&keys, &index);
	__u64 *window = bpf_map_lookup_elem(&windows, &index);
	__u64 now = bpf_ktime_get_boot_ns();
	__u32 number = session->peer;
	enum replay_verdict verdict;
	__u64 tag[2], *theirs;
	struct peer *peer;

	if (!both || !window)
		return drop(unknown_index);
	if (now >= session->expires || counter >= REJECT_AFTER_MESSAGES)
		return drop(expired_receive);
	verdict = replay_check(window, session->receive_highest, counter);
	if (verdict == REPLAY_NEW) {
		if (aead_crypt(packet, inner, length, (struct chacha20_key *)both->receive, counter,
			    OPEN, tag, NULL))
			return drop(malformed_message);
		theirs = packet_at(packet, inner + length, TAG_LENGTH);
		if (!theirs)
			return drop(malformed_message);
		if ((tag[0] ^ theirs[0]) | (tag[1] ^ theirs[1]))
			return drop(bad_tag);
		verdict = replay_accept(window, &session->receive_highest, counter);
	}
	if (verdict != REPLAY_NEW)
		return out_of_order(session, verdict, counter);
	if (*(volatile __u64 *)&session->receive_highest - 1 > counter)
		out_of_order(session, REPLAY_NEW, counter);

	peer = bpf_map_lookup_elem(&peers, &number);
	if (!peer)
		return drop(unknown_index);
	confirm(peer, session, index);
	roam(packet, outer, number, peer->flow_ports);
	traffic_received(peer, outer->length, length > 0, now);
	if (!length)
		return VERDICT_DROP; /* a keepalive has done all it is for */
	return deliver_inner(packet, outer, number, inner, length);
}

/* Makes the whole packet directly writable. */
static __always_inline int linearize(packet_t *packet)
{
#ifdef HOOK_XDP
	return 0;
#else
	return bpf_skb_pull_data(packet, packet->len);
#endif
}

static __always_inline enum parsed parse_arrival(packet_t *packet, struct outer *outer)
{
	enum parsed parsed = parse_outer(packet, outer);

#ifndef HOOK_XDP
	/* Headers that a driver left in fragments. */
	if (parsed == PARSED_SHORT &&
		!bpf_skb_pull_data(packet, packet->len < 128 ? packet->len : 128))
		parsed = parse_outer(packet, outer);
#endif
	return parsed;
}

/* A packet that was not made linear yet may have its message elsewhere. */
static __always_inline int load_message(
	packet_t *packet, const struct outer *outer, struct message_data *message)
{
	struct message_data *here = packet_at(packet, outer->message, sizeof(*here));

	if (!here)
		return packet_load(packet, outer->message, message, sizeof(*message));
	*message = *here;
	return 0;
}

/* Data messages of this tunnel are opened; everything else is passed, and the filter of the
 * daemon's socket (accept.h) counts what is wrong with it. `here`: by this CPU in any case. */
static __always_inline int open_packet(packet_t *packet, int here)
{
	struct message_data message;
	struct session *session;
	struct config *c = tunnel_config();
	struct outer outer;

	if (!c || parse_arrival(packet, &outer) != PARSED_UDP || outer.local_port != c->listen_port)
		return VERDICT_PASS;
#ifndef HOOK_XDP
	if (c->fwmark)
		packet->mark = c->fwmark; /* as mark_message, if it goes to the daemon */
#endif
	if (outer.is_fragment)
		return pass(pass_fragment);
#ifndef HOOK_XDP
	if (packet->gso_size)
		return pass(pass_aggregate);
	if (!c->inner_ifindex) /* it is being made anew: the message comes back when it is there */
		return VERDICT_PASS;
#endif
	if (outer.length < MESSAGE_OVERHEAD || outer.length > MAX_INNER + MESSAGE_OVERHEAD ||
		load_message(packet, &outer, &message) || message.type != MESSAGE_DATA)
		return VERDICT_PASS;
	session = bpf_map_lookup_elem(&sessions, &message.receiver);
	if (!session)
		return VERDICT_PASS;
#ifdef HOOK_XDP
	if (!here && hand_over(packet, &outer))
		return XDP_REDIRECT;
#endif
	if (linearize(packet))
		return drop(helper_failed);
	return open_message(packet, &outer, session, message.receiver, message.counter);
}

#endif
