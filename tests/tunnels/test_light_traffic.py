"""Light traffic is sealed where it is sent, heavy traffic on the segmenter; in between nothing is
lost, and nothing overtakes."""

from __future__ import annotations

import json
import socket
import struct
import time

import pytest

from echo import ping
from netns import Namespace
from tunnels.nodes import INNER, INNER6, MODES, Node, pair, wait_for
from tunnels.traffic import tcp, udp_socket

_UDP_SEGMENT = 103
BURSTS = 8
PACKETS = 40
"""Of a burst."""
LATER = 200
"""One a millisecond, of which the last are light."""
NUMBERED = struct.Struct("!I1000x")


def sent_by_segmenter(node: Node) -> int:
    """Packets on their way out."""
    links = json.loads(node.ns.run("ip", "-json", "-details", "-statistics", "link", "show"))
    (outer,) = (link for link in links if link.get("ifalias") == f"ebpfvpn {node.name} 0 outer")
    return int(outer["stats64"]["tx"]["packets"])


@pytest.mark.parametrize("inner", [INNER, INNER6], ids=["inner4", "inner6"])
@pytest.mark.parametrize("mode", MODES)
def test_light_traffic_needs_no_segmenter(mode: str, inner: tuple[str, str]) -> None:
    """GSO packets do, and nothing overtakes them."""
    with pair(AttachMode=mode) as (one, other):
        assert ping(one.ns, inner[1]) == 3
        # For a moment nothing overtakes the first packets.
        wait_for(lambda: pings_by_segmenter(one, inner[1]) == 0)
        before = sent_by_segmenter(one)
        exchange(one.ns, other.ns, inner[1])
        assert sent_by_segmenter(one) == before
        tcp(one.ns, other.ns, inner[1])
        assert sent_by_segmenter(one) > before + 1000


def pings_by_segmenter(node: Node, to: str) -> int:
    before = sent_by_segmenter(node)
    assert ping(node.ns, to) == 3
    return sent_by_segmenter(node) - before


def exchange(one: Namespace, other: Namespace, to: str) -> None:
    """Questions and answers of a few bytes, by UDP."""
    with udp_socket(other, to) as far, udp_socket(one, "::" if ":" in to else "0.0.0.0") as near:
        far.settimeout(5)
        near.settimeout(5)
        for length in range(20):
            near.sendto(bytes(length), far.getsockname()[:2])
            data, source = far.recvfrom(100)
            assert data == bytes(length)
            far.sendto(data, source[:2])
            assert near.recv(100) == data


@pytest.mark.parametrize("mode", MODES)
def test_nothing_overtakes_where_traffic_becomes_heavy_and_light(mode: str) -> None:
    with (
        pair(AttachMode=mode) as (one, other),
        udp_socket(other.ns, INNER[1]) as far,
        udp_socket(one.ns, INNER[0]) as near,
    ):
        assert ping(one.ns, INNER[1]) == 3
        far.settimeout(5)
        near.connect(far.getsockname())
        before = sent_by_segmenter(one)
        total = BURSTS * (PACKETS + LATER)
        for sent in range(0, total, PACKETS + LATER):
            near.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, NUMBERED.size)
            near.send(b"".join(NUMBERED.pack(sent + i) for i in range(PACKETS)))
            near.setsockopt(socket.SOL_UDP, _UDP_SEGMENT, 0)
            for i in range(PACKETS, PACKETS + LATER):
                near.send(NUMBERED.pack(sent + i))
                time.sleep(0.001)
        received = [NUMBERED.unpack(far.recv(2000))[0] for _ in range(total)]
        assert received == [*range(total)]
        assert PACKETS * BURSTS < sent_by_segmenter(one) - before < total
