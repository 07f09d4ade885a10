/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Sealing: from an inner packet in a frame of ours to a message on its way to the peer. */
#ifndef EBPFVPN_SEAL_H
#define EBPFVPN_SEAL_H

#include "aead.h"
#include "grow.h"
#include "headers.h"
#include "inner.h"
#include "light.h"
#include "outgoing.h"
#include "send_counter.h"
#include "traffic.h"

#define AF_INET 2
#define AF_INET6 10

static __always_inline int read_endpoint(struct outgoing *o)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &o->peer);

	if (!e)
		return -1;
	/* Without the lock: where a writer is at it, remote and local may be no pair that `routes`
	 * knows, or the port an older one. A message is lost in the moment in which a peer moves.
	 */
	o->ifindex = e->ifindex;
	o->remote_port = e->remote_port;
	copy16(o->remote, e->remote);
	copy16(o->local, e->local);
	o->is_v4 = o->remote[0] == 0 && LOW(o->remote[1]) == bpf_htonl(0xffff);
	return o->remote_port ? 0 : -1;
}

/* Appends the tag and fills the UDP checksum. */
static __noinline int append_tag(packet_t *packet, const struct outgoing *o, const __u64 tag[2])
{
	__u32 at = ETH_HLEN + headers_length(o);
	struct udphdr *udp = packet_at(packet, at - MESSAGE_HEADER - sizeof(*udp), sizeof(*udp));
	__u64 *end = packet_at(packet, at + o->padded, TAG_LENGTH);
	__u16 check;

	if (!udp || !end)
		return -1;
	copy16(end, tag);
	check = ~fold(o->sum + LOW(tag[0]) + HIGH(tag[0]) + LOW(tag[1]) + HIGH(tag[1]));
	udp->check = check ? check : 0xffff; /* zero means none, which IPv6 receivers drop */
	return 0;
}

static __always_inline int encrypt(
	packet_t *packet, const struct session_keys *both, struct outgoing *o)
{
	__u64 tag[2];

	if (aead_crypt(packet, ETH_HLEN + headers_length(o), o->padded,
		    (const struct chacha20_key *)both->send, o->counter, SEAL, tag, &o->sum))
		return -1;
	return append_tag(packet, o, tag);
}

static __always_inline struct route *find_route(const struct outgoing *o)
{
	struct route_key key;

	copy16(key.remote, o->remote);
	copy16(key.local, o->local);
	return bpf_map_lookup_elem(&routes, &key);
}

/* Past the kernel's own routing. */
static __always_inline int send_to_neighbour(packet_t *packet, const struct route *route)
{
	struct ethhdr *eth = packet_data(packet);
	__u8 *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > packet_end(packet))
		return drop(helper_failed);
	__builtin_memcpy(eth->h_dest, route->destination_mac, MAC_LENGTH);
	__builtin_memcpy(eth->h_source, route->source_mac, MAC_LENGTH);
	eth->h_proto = *ip >> 4 == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return bpf_redirect(route->ifindex, 0);
}

#ifndef HOOK_XDP
static __always_inline void set_mark(packet_t *packet)
{
	struct config *c = tunnel_config();

	packet->mark = c ? c->fwmark : 0;
}

static __always_inline int send_away(
	packet_t *packet, const struct outgoing *o, const struct route *route)
{
	struct bpf_redir_neigh next_hop = {};
	__u32 ifindex = o->ifindex;

	/* The kernel knows how to reach a neighbour that is not resolved yet; without a route
	 * from the daemon it also looks that up, by the mark. */
	if (!route)
		return bpf_redirect_neigh(ifindex, NULL, 0, 0);
	ifindex = route->ifindex;
	if (o->is_v4) {
		next_hop.nh_family = AF_INET;
		__builtin_memcpy(&next_hop.ipv4_nh, route->gateway + 12, 4);
	} else {
		next_hop.nh_family = AF_INET6;
		__builtin_memcpy(next_hop.ipv6_nh, route->gateway, ADDRESS_LENGTH);
	}
	return bpf_redirect_neigh(ifindex, &next_hop, sizeof(next_hop), 0);
}
#endif

#ifndef HOOK_XDP
/* Past this program only the daemon's packet socket sees the frame: for the stack it is somebody
 * else's. */
static __always_inline int send_up(void)
{
	count(pass_too_long);
	return TC_ACT_OK;
}
#endif

/* Whose packet it is, and how long. */
static __always_inline int parse_frame(packet_t *packet, struct outgoing *o)
{
	struct marked_header *header = packet_data(packet);
	struct config *c = tunnel_config();
	void *ip = (void *)(header + 1);
	__u32 length;

	if (!c || ip > packet_end(packet) || !has_mark(header, c))
		return -1;
	o->peer = header->to;
	o->length = o->padded = 0;
	o->ecn = 0;
	o->flow = header->flow;
	o->local_port = c->listen_port;
	if (header->keepalive)
		return 0;
	length = inner_length(ip, packet_end(packet), packet_length(packet) - sizeof(*header));
	if (!length || length > MAX_INNER || ip + sizeof(struct iphdr) > packet_end(packet))
		return -1;
	o->length = length;
	o->padded = padded_length(length, c->mtu);
	o->ecn = inner_ecn(ip);
	return 0;
}

/* segmenter: the device to which a packet goes that cannot be sealed here; 0: it is there. */
static __always_inline int seal_packet(packet_t *packet, __u32 segmenter)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct session_keys *both;
	struct session *session;
	struct route *route;
	struct peer *peer;
	struct outgoing o;
	int verdict;
	__u32 index;

	if (parse_frame(packet, &o))
		return drop(malformed_frame);
	peer = bpf_map_lookup_elem(&peers, &o.peer);
	if (!peer)
		return drop(no_session);
	if (peer->flow_ports > 1)
		o.local_port = bpf_htons(bpf_ntohs(o.local_port) + o.flow % peer->flow_ports);
	index = peer->current;
	session = bpf_map_lookup_elem(&sessions, &index);
	both = bpf_map_lookup_elem(&keys, &index);
	if (!session || !both)
		return drop(no_session);
	if (now >= session->expires)
		return drop(expired_send);
	if (read_endpoint(&o))
		return drop(no_endpoint);
	route = find_route(&o);
#ifdef HOOK_XDP
	if (!route || ~route->flags & (ROUTE_NEIGHBOUR | ROUTE_XDP))
		return seal_in_tc();
#else
	if (!route && !o.ifindex)
		return drop(no_route);
#endif
	o.too_long = route && headers_length(&o) + o.padded + TAG_LENGTH > route->mtu;
#ifdef HOOK_XDP
	if (o.too_long)
		return seal_in_tc();
#else
	/* The inner route is on the packet still: it must not be one that waits for a neighbour. */
	if (segmenter && (o.too_long || !route || ~route->flags & ROUTE_NEIGHBOUR)) {
		make_heavy(peer, now); /* nothing overtakes it */
		return bpf_redirect(segmenter, 0);
	}
#endif
	verdict = grow(packet, &o);
	if (verdict != GROWN)
		return verdict;
	o.counter = take_counter(session);
	if (o.counter == NO_COUNTER)
		return drop(expired_send);
	if (o.counter == session->rekey_at)
		tell_daemon(EVENT_MESSAGES_USED, o.peer, index);
	if (write_headers(packet, session, &o) || encrypt(packet, both, &o))
		return drop(helper_failed);
	traffic_sent(peer, MESSAGE_OVERHEAD + o.padded, o.length > 0, now);
#ifdef HOOK_XDP
	return send_to_neighbour(packet, route);
#else
	if (o.too_long)
		return send_up();
	set_mark(packet);
	return segmenter ? send_to_neighbour(packet, route) : send_away(packet, &o, route);
#endif
}

#endif
