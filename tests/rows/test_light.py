"""Which traffic is light, so that `steer` seals it itself. (How, is test_seal_here.py's: what comes
out here is nonsense, for a test run takes an inner packet's first bytes for Ethernet.)"""

from __future__ import annotations

import pytest

from rows.packets import ipv4
from rows.tunnel import (
    HEAVY_FOR,
    INNER_THERE,
    NEVER,
    Tunnel,
    Verdict,
    now,
    retval,
    sk_buff,
)

PACKET = ipv4("8.0.0.1", INNER_THERE[4], bytes(100))
"""See test_steer.py."""
PASSED = 2_000_000_000
"""Nanoseconds since the last look."""
LIGHT_PACKETS = 64 * 2000
"""In that time."""


def is_light(tunnel: Tunnel, *, gso_size: int = 0) -> bool:
    tunnel.set_route(4)
    ctx = sk_buff(gso_size=gso_size, gso_segments=2 if gso_size else 0)
    result = tunnel.run("steer", PACKET, ctx)
    assert result.retval == retval("steer", Verdict.GO)
    sealed: int = tunnel.session().send_counter
    tunnel.change_session(send_counter=0)
    return sealed == 1


@pytest.mark.parametrize("in_threads", [0, 1])
def test_one_packet_is_light(tunnel: Tunnel, in_threads: int) -> None:
    tunnel.configure(seals_in_threads=in_threads)
    tunnel.change_peer(heavy_until=0)
    assert is_light(tunnel)
    assert tunnel.peer().heavy_until == 0


def test_what_is_cut_is_heavy_and_so_is_what_follows(tunnel: Tunnel) -> None:
    tunnel.change_peer(heavy_until=0)
    before = now()
    assert not is_light(tunnel, gso_size=50)
    until = tunnel.peer().heavy_until
    assert before + HEAVY_FOR <= until <= now() + HEAVY_FOR
    tunnel.change_peer(heavy_until=NEVER)
    assert not is_light(tunnel)
    tunnel.change_peer(heavy_until=now())
    assert is_light(tunnel)


@pytest.mark.parametrize(("in_threads", "many_are_light"), [(1, False), (0, True)])
def test_many_packets_are_heavy_where_threads_seal(
    tunnel: Tunnel, in_threads: int, many_are_light: bool
) -> None:
    tunnel.configure(seals_in_threads=in_threads)
    for packets, light in ((LIGHT_PACKETS, True), (LIGHT_PACKETS * 1.1, many_are_light)):
        tunnel.change_peer(
            heavy_until=0, looked=now() - PASSED, packets_then=7, tx_packets=7 + int(packets)
        )
        assert is_light(tunnel) == light
        heavy_until = tunnel.peer().heavy_until
        assert heavy_until == 0 if light else now() < heavy_until


def test_looks_once_a_millisecond(tunnel: Tunnel) -> None:
    tunnel.configure(seals_in_threads=1)

    def after(nanoseconds: int) -> bool:
        """Many packets after the last look."""
        tunnel.change_peer(
            heavy_until=0, tx_packets=10**9, packets_then=0, looked=now() - nanoseconds
        )
        return is_light(tunnel)

    assert not after(1_000_000)
    assert any(after(0) for _ in range(1000))  # the test may be slow
