"""CPUs that seal on one session never use a counter twice, nor one past the limit."""

from __future__ import annotations

import struct

import pytest

from rows.at_once import at_once
from rows.packets import ipv4
from rows.tunnel import INNER_HERE, INNER_THERE, PEER, Tunnel, Verdict, marked, retval

FRAME = marked(PEER, ipv4(INNER_HERE[4], INNER_THERE[4], bytes(100)))
COUNTER_AT = 14 + 20 + 8 + 8
EACH = 3000


def seal_on_two_cpus(tunnel: Tunnel, hook: str) -> list[list[int]]:
    """The counters that each CPU was given."""
    tunnel.set_route(4)
    program, sent = tunnel.loaded.programs[hook], retval(hook, Verdict.GO)
    counters: list[list[int]] = [[], []]

    def seal(mine: list[int]) -> None:
        for _ in range(EACH):
            result = program.test_run(FRAME)
            if result.retval == sent:
                mine.append(struct.unpack_from("<Q", result.data, COUNTER_AT)[0])

    at_once([lambda mine=mine: seal(mine) for mine in counters])  # type: ignore[misc]
    return counters


@pytest.mark.parametrize("hook", ["seal_xdp", "seal_tc"])
def test_counters_are_unique_without_gaps(tunnel: Tunnel, hook: str) -> None:
    start = 2**32 - EACH
    tunnel.change_session(send_counter=start)
    one, other = seal_on_two_cpus(tunnel, hook)
    assert sorted(one + other) == list(range(start, start + 2 * EACH))
    assert one == sorted(one)
    assert other == sorted(other)
    assert tunnel.session().send_counter == start + 2 * EACH
    assert tunnel.peer().tx_packets == 2 * EACH
    assert tunnel.counted() == {}


@pytest.mark.parametrize("hook", ["seal_xdp", "seal_tc"])
def test_no_counter_past_the_limit(tunnel: Tunnel, hook: str) -> None:
    limit = EACH
    tunnel.change_session(send_limit=limit)
    one, other = seal_on_two_cpus(tunnel, hook)
    assert sorted(one + other) == list(range(limit))
    assert tunnel.counted() == {"expired_send": 2 * EACH - limit}
    # At most one is added in vain per CPU.
    assert limit <= tunnel.session().send_counter <= limit + 2
