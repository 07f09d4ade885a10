"""Several source ports for one peer, chosen by inner flow."""

from __future__ import annotations

import struct

import pytest

from ebpfvpn.kernel.layout import EVENT_ROAMED
from rows import packets
from rows.packets import ethernet, ipv4, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    LOOPBACK,
    OUR_ADDRESS,
    PEER,
    PEER_ADDRESS,
    PEER_PORT,
    PORT,
    REMOTE_INDEX,
    SEND_KEY,
    Tunnel,
    Verdict,
    marked,
    message,
    outer,
    retval,
)

FLOW = 11
"""Where the hash stands in a marked frame."""


def flow(frame: bytes, value: int) -> bytes:
    return frame[:FLOW] + bytes([value]) + frame[FLOW + 1 :]


@pytest.mark.parametrize("hook", ["seal_xdp", "seal_tc"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 64])
def test_each_flow_has_a_port(tunnel: Tunnel, hook: str, count: int) -> None:
    tunnel.set_route(4)
    tunnel.change_peer(flow_ports=count)
    inner = ipv4(INNER_HERE[4], INNER_THERE[4], bytes(44))
    for counter in range(256):
        result = tunnel.run(hook, flow(marked(PEER, inner), counter))
        assert result.retval == retval(hook, Verdict.GO)
        text = packets.data_message(SEND_KEY, REMOTE_INDEX, counter, inner)
        port = PORT + counter % (count or 1)
        datagram = packets.udp(OUR_ADDRESS[4], port, PEER_ADDRESS[4], PEER_PORT, text)
        expected = ipv4(OUR_ADDRESS[4], PEER_ADDRESS[4], datagram, identification=counter)
        assert result.data[14:] == expected


def steered(tunnel: Tunnel, port: int) -> int:
    """The flow's hash, for a UDP packet from this port. The kernel looks for an IP header behind
    the 14 bytes that it takes for Ethernet (see test_steer.py): one is put there that begins in the
    addresses of ours."""
    rest = struct.pack("!HBBH4s4sHHHH", 0, 64, packets.UDP, 0, bytes(4), bytes(4), port, 9, 8, 0)
    result = tunnel.run("steer", ipv4("8.0.69.0", INNER_THERE[4], rest))
    assert result.retval == retval("steer", Verdict.GO)
    return result.data[FLOW]


def test_packets_of_a_flow_have_one_hash(tunnel: Tunnel) -> None:
    assert {steered(tunnel, port) for port in range(1000, 1100)} == {0}
    tunnel.change_peer(flow_ports=2)
    hashes = [steered(tunnel, port) for port in range(1000, 1100)]
    assert hashes == [steered(tunnel, port) for port in range(1000, 1100)]
    assert 20 < sum(value % 2 for value in hashes) < 80


@pytest.mark.parametrize("hook", ["open_xdp", "open_tc"])
def test_flow_ports_of_the_peer_are_one_endpoint(tunnel: Tunnel, hook: str) -> None:
    tunnel.change_peer(flow_ports=4)
    counters = iter(range(100))

    def arrive(port: int, source: str = PEER_ADDRESS[4]) -> list[tuple[int, int, int]]:
        text = message(next(counters), pad(ipv4(INNER_THERE[4], INNER_HERE[4], bytes(20))))
        result = tunnel.run(hook, ethernet(outer(text, source=source, source_port=port)))
        assert result.retval == retval(hook, Verdict.GO)
        return tunnel.events()

    moved = [(EVENT_ROAMED, PEER, 0)]
    for port in range(PEER_PORT, PEER_PORT + 4):
        assert arrive(port) == []
    assert tunnel.endpoint() == (PEER_ADDRESS[4], PEER_PORT, OUR_ADDRESS[4], LOOPBACK)
    # It has another address: the ports are the same.
    assert arrive(PEER_PORT + 2, "198.51.100.7") == moved
    assert tunnel.endpoint() == ("198.51.100.7", PEER_PORT, OUR_ADDRESS[4], LOOPBACK)
    for port in (PEER_PORT + 4, PEER_PORT - 1, 65535, 1):
        assert arrive(port, "198.51.100.7") == moved
        assert tunnel.endpoint()[1] == port
