/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* What every program of a tunnel does with its maps: read the configuration, count. */
#ifndef EBPFVPN_TUNNEL_H
#define EBPFVPN_TUNNEL_H

#include "maps.h"
#include "packet.h"

static __always_inline struct drops *drop_counters(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&drops, &zero);
}

/* reason: a field of struct drops. */
#define count(reason)                                                                              \
	({                                                                                         \
		struct drops *counters = drop_counters();                                          \
                                                                                                   \
		if (counters)                                                                      \
			counters->reason++;                                                        \
	})

#define drop(reason)                                                                               \
	({                                                                                         \
		count(reason);                                                                     \
		VERDICT_DROP;                                                                      \
	})

#define pass(reason)                                                                               \
	({                                                                                         \
		count(reason);                                                                     \
		VERDICT_PASS;                                                                      \
	})

static __always_inline struct config *tunnel_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

#endif
