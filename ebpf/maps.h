/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* Every map of a tunnel. Each is pinned by its name in /sys/fs/bpf/ebpfvpn/NAME/, shared by the
 * XDP and the tc programs, and readable by field name:
 * `bpftool map dump pinned /sys/fs/bpf/ebpfvpn/wg0/sessions`. */
#ifndef EBPFVPN_MAPS_H
#define EBPFVPN_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "drops.h"
#include "layout.h"

#define MAX_PEERS 131072
#define MAX_ALLOWED_IPS 1048576
/* Previous, current and next of each peer. */
#define MAX_SESSIONS (3 * MAX_PEERS)
#define MAX_SPREAD 64 /* devices */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
	PINNED;
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PEERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct peer);
	PINNED;
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct session);
	PINNED;
} sessions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct session_keys);
	PINNED;
} keys SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SESSIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, WINDOW_BYTES); /* raw: a size set before loading has no type */
	PINNED;
} windows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PEERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct endpoint);
	PINNED;
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PEERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, struct route);
	PINNED;
} routes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ALLOWED_IPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allowed_ip4);
	__type(value, __u32); /* peer number */
	PINNED;
} allowed_ips4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ALLOWED_IPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allowed_ip6);
	__type(value, __u32); /* peer number */
	PINNED;
} allowed_ips6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct drops);
	PINNED;
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 262144);
	PINNED;
} events SEC(".maps");

#ifdef HOOK_XDP
struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 1); /* set before loading: all CPUs */
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
	PINNED;
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SPREAD);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct spread);
	PINNED;
} spread SEC(".maps");
#endif

#endif
