"""Delivering: what bears the mark and this tunnel's number goes up through the TUN."""

from __future__ import annotations

import pytest

from rows.packets import ethernet, ipv4, ipv6
from rows.tunnel import MARK, TUN, Tunnel, Verdict, marked, retval, sk_buff

INNER = {4: ipv4("10.5.0.9", "10.1.0.1", bytes(100)), 6: ipv6("fd05::9", "fd01::1", bytes(100))}


def run(tunnel: Tunnel, frame: bytes, verdict: Verdict, *, gso_size: int = 0) -> None:
    ctx = sk_buff(gso_size=gso_size, gso_segments=2 if gso_size else 0)
    result = tunnel.run("deliver", frame, ctx)
    assert (result.retval, result.data) == (retval("deliver", verdict), frame)
    assert tunnel.counted() == {}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("gso_size", [0, 50])
def test_goes_up_as_it_is(tunnel: Tunnel, version: int, gso_size: int) -> None:
    run(tunnel, marked(TUN, INNER[version]), Verdict.GO, gso_size=gso_size)


def test_a_header_alone(tunnel: Tunnel) -> None:
    run(tunnel, marked(TUN, ipv4("10.5.0.9", "10.1.0.1")), Verdict.GO)


def test_what_is_another_tunnels_passes(tunnel: Tunnel) -> None:
    run(tunnel, marked(TUN + 1, INNER[4]), Verdict.PASS)


@pytest.mark.parametrize("at", range(6))
def test_another_mark_passes(tunnel: Tunnel, at: int) -> None:
    mark = bytearray(MARK)
    mark[at] ^= 4
    run(tunnel, marked(TUN, INNER[4], mark=bytes(mark)), Verdict.PASS)


def test_what_is_no_frame_of_ours_passes(tunnel: Tunnel) -> None:
    run(tunnel, ethernet(INNER[4]), Verdict.PASS)
    run(tunnel, ethernet(bytes(46), ethertype=0x0806), Verdict.PASS)
