"""Dispatching: to the tunnel that listens on the packet's port, and no forged marks."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from rows import packets
from rows.packets import ethernet, ipv4, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    MARK,
    PORT,
    TUN,
    Tunnel,
    Verdict,
    marked,
    message,
    outer,
    retval,
)

INNER = ipv4(INNER_THERE[4], INNER_HERE[4], b"dispatched")
FORGED = struct.Struct("=6sHQ")


@pytest.fixture
def tunnel(tunnel: Tunnel) -> Iterator[Tunnel]:
    """Listening on PORT."""
    number = PORT.to_bytes(4, "little")
    ports = tunnel.loaded.maps["ports"]
    ports.update(number, tunnel.loaded.programs["open_xdp"].fd.to_bytes(4, "little"))
    tunnel.loaded.maps["dispatch_config"].update(bytes(4), FORGED.pack(MARK, 0, 0))
    yield tunnel
    ports.delete(number)


def forged(tunnel: Tunnel) -> int:
    entry = tunnel.loaded.maps["dispatch_config"].lookup(bytes(4))
    assert entry is not None
    return int(FORGED.unpack(entry)[2])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("tags", [(), ((packets.VLAN, 5),)], ids=["untagged", "tagged"])
def test_to_the_tunnel_of_the_port(
    tunnel: Tunnel, version: int, tags: tuple[tuple[int, int], ...]
) -> None:
    arriving = outer(message(0, pad(INNER)), version)
    frame = ethernet(arriving, tags=tags, ethertype=packets.ETHERTYPE[version])
    result = tunnel.run("dispatch", frame)
    assert (result.retval, result.data) == (retval("dispatch", Verdict.GO), marked(TUN, INNER))


def test_the_tunnel_may_drop(tunnel: Tunnel) -> None:
    frame = ethernet(outer(message(0, pad(INNER))[:-1] + b"\0"))
    assert tunnel.run("dispatch", frame).retval == retval("dispatch", Verdict.DROP)
    assert tunnel.counted() == {"bad_tag": 1}


@pytest.mark.parametrize(
    "frame",
    [
        ethernet(outer(message(0, pad(INNER)), port=PORT + 1)),
        ethernet(outer(message(0, pad(INNER)), port=0)),
        ethernet(outer(message(0, pad(INNER)), port=65535)),
        ethernet(ipv4("192.0.2.2", "192.0.2.1", bytes(64), protocol=packets.TCP)),
        ethernet(bytes(46), ethertype=0x0806),
        ethernet(outer(message(0, pad(INNER)))[:24]),
    ],
    ids=["another port", "port 0", "port 65535", "TCP", "ARP", "cut short"],
)
def test_others_pass(tunnel: Tunnel, frame: bytes) -> None:
    result = tunnel.run("dispatch", frame)
    assert (result.retval, result.data) == (retval("dispatch", Verdict.PASS), frame)
    assert tunnel.session().receive_highest == 0


@pytest.mark.parametrize(
    "frame",
    [marked(TUN, INNER), marked(TUN, outer(message(0, pad(INNER)))), marked(TUN, bytes(46),
     ethertype=0x0806)],
    ids=["an inner packet", "a message", "ARP"],
)  # fmt: skip
def test_forged_mark(tunnel: Tunnel, frame: bytes) -> None:
    for times in (1, 2):
        assert tunnel.run("dispatch", frame).retval == retval("dispatch", Verdict.DROP)
        assert forged(tunnel) == times
    assert tunnel.session().receive_highest == 0


def test_two_tunnels_on_one_device(tunnel: Tunnel) -> None:
    # Here both ports lead to the same tunnel, which takes only its own.
    second = (PORT + 1).to_bytes(4, "little")
    ports = tunnel.loaded.maps["ports"]
    ports.update(second, tunnel.loaded.programs["open_xdp"].fd.to_bytes(4, "little"))
    try:
        frame = ethernet(outer(message(0, pad(INNER)), port=PORT + 1))
        result = tunnel.run("dispatch", frame)
        assert (result.retval, result.data) == (retval("dispatch", Verdict.PASS), frame)
    finally:
        ports.delete(second)
