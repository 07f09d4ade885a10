/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Sealing: from an inner packet on the segmenter to a message on its way to the peer. */
#ifndef EBPFVPN_SEAL_H
#define EBPFVPN_SEAL_H

#include <linux/in.h>
#include <linux/udp.h>

#include "aead.h"
#include "inner.h"
#include "send_counter.h"
#include "traffic.h"
#include "tunnel.h"
#include "wire.h"

#define AF_INET 2
#define AF_INET6 10
#define TTL 64

#ifdef HOOK_XDP
/* What XDP cannot do is done in tc, a little further on the same way. */
#define seal_in_tc() pass(pass_seal_in_tc)
#endif

/* One packet on its way through this file. */
struct outgoing {
	/* where it goes */
	__u64 remote[2];
	__u64 local[2];
	__be16 remote_port;
	__u16 is_v4;
	__u32 ifindex;
	/* what it is */
	__u32 peer;
	__u32 length; /* of the inner packet; 0: a keepalive */
	__u32 padded;
	__u8 ecn;
	__u8 too_long; /* for the way */
	__u8 reserved[2];
	__u64 counter;
	__u64 sum; /* unfolded Internet checksum of what is written so far */
};

static __always_inline int read_endpoint(struct outgoing *o)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &o->peer);

	if (!e)
		return -1;
	bpf_spin_lock(&e->lock);
	o->ifindex = e->ifindex;
	o->remote_port = e->remote_port;
	copy16(o->remote, e->remote);
	copy16(o->local, e->local);
	bpf_spin_unlock(&e->lock);
	o->is_v4 = o->remote[0] == 0 && LOW(o->remote[1]) == bpf_htonl(0xffff);
	return o->remote_port ? 0 : -1;
}

/* Padding to 16 bytes, but not past the MTU (whitepaper section 5.4.6). */
static __always_inline __u32 padded_length(__u32 length, __u32 mtu)
{
	__u32 padded = (length + PADDING - 1) & ~(PADDING - 1);

	return padded > mtu && length <= mtu ? mtu : padded;
}

static __always_inline __u32 headers_length(const struct outgoing *o)
{
	return (o->is_v4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) + sizeof(struct udphdr) +
	       MESSAGE_HEADER;
}

#ifndef HOOK_XDP
#define IP_DIFFERENCE (sizeof(struct ipv6hdr) - sizeof(struct iphdr))

/* Makes room before the inner packet, and the packet one of the outer IP version. Not by
 * BPF_F_ADJ_ROOM_ENCAP: a packet marked as encapsulated keeps the mark over a veth, and no tc
 * program can change its tail any more, so that the receiver could not strip it. */
static __always_inline int push_headers(packet_t *packet, const struct outgoing *o)
{
	int was_v4 = packet->protocol == bpf_htons(ETH_P_IP);
	__u32 room = headers_length(o);

	if (was_v4 && !o->is_v4)
		return bpf_skb_change_proto(packet, bpf_htons(ETH_P_IPV6), 0) ||
		       bpf_skb_adjust_room(packet, room - IP_DIFFERENCE, BPF_ADJ_ROOM_MAC, 0);
	if (!was_v4 && o->is_v4)
		return bpf_skb_adjust_room(packet, room + IP_DIFFERENCE, BPF_ADJ_ROOM_MAC, 0) ||
		       bpf_skb_change_proto(packet, bpf_htons(ETH_P_IP), 0);
	return bpf_skb_adjust_room(packet, room, BPF_ADJ_ROOM_MAC, 0);
}

/* Moves the rest of the packet down, from offset `from` to `to`. */
static __noinline int move_down(packet_t *packet, __u32 from, __u32 to)
{
	__u32 rest = packet->len - from;
	__u64 some[8];
	__u64 last;
	int i;

	for (i = 0; i < MAX_BLOCKS + 2 && rest > sizeof(some); i++) {
		if (packet_load(packet, from, some, sizeof(some)) ||
			packet_store(packet, to, some, sizeof(some)))
			return -1;
		from += sizeof(some);
		to += sizeof(some);
		rest -= sizeof(some);
	}
	last = bounded(rest, sizeof(some));
	return packet_load(packet, from, some, last) || packet_store(packet, to, some, last);
}

/* bpf_skb_change_tail refuses packets of a tunnel inside the tunnel. Room can be made before them;
 * then the packet is moved. */
static __always_inline int grow_tail(packet_t *packet, __u32 had, __u32 wanted)
{
	if (!bpf_skb_change_tail(packet, wanted, 0) || had >= wanted)
		return 0;
	if (bpf_skb_adjust_room(packet, wanted - had, BPF_ADJ_ROOM_MAC, 0) ||
		bpf_skb_pull_data(packet, packet->len))
		return -1;
	return move_down(packet, ETH_HLEN + wanted - had, ETH_HLEN);
}
#endif

/* Bytes behind the inner packet need not be zero by themselves. */
static __always_inline int clear_padding(packet_t *packet, const struct outgoing *o)
{
	__u64 zero[2] = {}, padding = (o->padded - o->length) % PADDING;

	return padding &&
	       packet_store(packet, ETH_HLEN + o->length, zero, bounded(padding, PADDING));
}

#define GROWN (-2) /* no verdict of XDP's or tc's */

/* Makes room for headers before the inner packet, padding and tag behind it: GROWN, or the
 * verdict. */
static __noinline int grow(packet_t *packet, const struct outgoing *o)
{
	__u32 wanted = ETH_HLEN + o->padded + TAG_LENGTH, had = packet_length(packet);

#ifdef HOOK_XDP
	if (wanted != had && bpf_xdp_adjust_tail(packet, wanted - had))
		return seal_in_tc();
#else
	if (grow_tail(packet, had, wanted))
		return drop(helper_failed);
#endif
	if (clear_padding(packet, o))
		return drop(helper_failed);
#ifdef HOOK_XDP
	if (bpf_xdp_adjust_head(packet, -(int)headers_length(o)))
		return seal_in_tc();
#else
	if (push_headers(packet, o) || bpf_skb_pull_data(packet, packet->len))
		return drop(helper_failed);
#endif
	return GROWN;
}

static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & MASK32) + (sum >> 32);
	sum = (sum & MASK32) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline void write_ipv4(struct iphdr *ip, const struct outgoing *o, __u32 length)
{
	const __u32 *word = (const void *)ip;
	__u64 sum = 0;
	int i;

	ip->version = 4;
	ip->ihl = sizeof(*ip) / 4;
	ip->tos = o->ecn;
	ip->tot_len = bpf_htons(sizeof(*ip) + length);
	ip->id = bpf_htons((__u16)o->counter);
	ip->frag_off = 0;
	ip->ttl = TTL;
	ip->protocol = IPPROTO_UDP;
	ip->check = 0;
	ip->saddr = HIGH(o->local[1]);
	ip->daddr = HIGH(o->remote[1]);
#pragma unroll
	for (i = 0; i < sizeof(*ip) / 4; i++)
		sum += word[i];
	ip->check = ~fold(sum);
}

static __always_inline void write_ipv6(struct ipv6hdr *ip, const struct outgoing *o, __u32 length)
{
	*(__be32 *)ip = bpf_htonl(6U << 28 | (__u32)o->ecn << 20);
	ip->payload_len = bpf_htons(length);
	ip->nexthdr = IPPROTO_UDP;
	ip->hop_limit = TTL;
	__builtin_memcpy(&ip->saddr, o->local, ADDRESS_LENGTH);
	__builtin_memcpy(&ip->daddr, o->remote, ADDRESS_LENGTH);
}

/* Of the words of an address. The prefix ::ffff of the mapped form counts as zero. */
static __always_inline __u64 address_sum(const __u64 address[2])
{
	return LOW(address[0]) + (__u64)HIGH(address[0]) + LOW(address[1]) + HIGH(address[1]);
}

/* Writes all that stands before the ciphertext but the UDP checksum, and sums it up. */
static __noinline int write_headers(
	packet_t *packet, const struct session *session, struct outgoing *o)
{
	__u32 length = sizeof(struct udphdr) + MESSAGE_OVERHEAD + o->padded;
	void *ip = packet_data(packet) + ETH_HLEN;
	struct config *c = tunnel_config();
	struct message_data *message;
	struct udphdr *udp;

	if (!c || ip + sizeof(struct iphdr) + sizeof(*udp) + sizeof(*message) > packet_end(packet))
		return -1;
	udp = ip + sizeof(struct iphdr);
	if (o->is_v4) {
		write_ipv4(ip, o, length);
	} else {
		udp = ip + sizeof(struct ipv6hdr);
		if ((void *)(udp + 1) + sizeof(*message) > packet_end(packet))
			return -1;
		write_ipv6(ip, o, length);
	}
	udp->source = c->listen_port;
	udp->dest = o->remote_port;
	udp->len = bpf_htons(length);
	udp->check = 0;
	message = (void *)(udp + 1);
	message->type = MESSAGE_DATA;
	message->receiver = session->remote_index;
	message->counter = o->counter;

	o->sum = address_sum(o->local) + address_sum(o->remote) + bpf_htons(IPPROTO_UDP) +
		 2ULL * udp->len + udp->source + udp->dest + MESSAGE_DATA + message->receiver +
		 LOW(o->counter) + HIGH(o->counter);
	return 0;
}

/* Encrypts, appends the tag and fills the UDP checksum. */
static __always_inline int encrypt(
	packet_t *packet, const struct session_keys *both, struct outgoing *o)
{
	__u32 at = ETH_HLEN + headers_length(o);
	__u64 tag[2], text_sum;
	__u16 check;

	if (aead_crypt(packet, at, o->padded, (const struct chacha20_key *)both->send, o->counter,
		    SEAL, tag, &text_sum) ||
		packet_store(packet, at + o->padded, tag, sizeof(tag)))
		return -1;
	check = ~fold(o->sum + text_sum + LOW(tag[0]) + HIGH(tag[0]) + LOW(tag[1]) + HIGH(tag[1]));
	if (!check)
		check = 0xffff; /* zero means none, which IPv6 receivers drop */
	at -= MESSAGE_HEADER + sizeof(struct udphdr) - offsetof(struct udphdr, check);
	return packet_store(packet, at, &check, sizeof(check));
}

static __noinline struct route *find_route(const struct outgoing *o)
{
	struct route_key key;

	copy16(key.remote, o->remote);
	copy16(key.local, o->local);
	return bpf_map_lookup_elem(&routes, &key);
}

#ifdef HOOK_XDP
static __always_inline int send_away(
	packet_t *packet, const struct outgoing *o, const struct route *route)
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
#else
static __always_inline int send_away(
	packet_t *packet, const struct outgoing *o, const struct route *route)
{
	struct bpf_redir_neigh next_hop = {};
	struct config *c = tunnel_config();
	__u32 ifindex = o->ifindex;

	/* The kernel knows how to reach a neighbour that is not resolved yet; without a route
	 * from the daemon it also looks that up, by the mark. */
	packet->mark = c ? c->fwmark : 0;
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
static __noinline int parse_frame(packet_t *packet, struct outgoing *o)
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

static __always_inline int seal_packet(packet_t *packet)
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
#endif
	o.too_long = route && headers_length(&o) + o.padded + TAG_LENGTH > route->mtu;
#ifdef HOOK_XDP
	if (o.too_long)
		return seal_in_tc();
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
#ifndef HOOK_XDP
	if (o.too_long)
		return send_up();
#endif
	return send_away(packet, &o, route);
}

#endif
