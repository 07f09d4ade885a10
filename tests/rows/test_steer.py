"""Steering: which packets on their way into the TUN turn off to the segmenter.

On a TUN a packet begins with its IP header, but a test run takes the first 14 bytes for Ethernet:
what is the EtherType there is in the source address here, so that addresses are chosen to say it
(8.0.x.y and x:x:86dd::) and skb->protocol is right. Nor does a test run take a packet of less than
14 bytes behind its IP header then.
"""

from __future__ import annotations

import struct

import pytest

from rows import packets
from rows.packets import ipv4, ipv6
from rows.tunnel import (
    INNER_THERE,
    OTHER_PEER,
    PEER,
    Tunnel,
    Verdict,
    marked,
    now,
    retval,
    sk_buff,
)

HERE = {4: "8.0.0.1", 6: "fd01:0:86dd::1"}
NOWHERE = {4: "10.77.0.1", 6: "fd77::1"}
ROOM = 64
"""Bytes that steer makes behind a packet."""


def packet(version: int, data: bytes = bytes(100), *, to: str | None = None) -> bytes:
    return packets.ip(HERE[version], to or INNER_THERE[version], data)


def tcp(version: int, data: bytes, *, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    segment = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, words << 4, 0x10, 5, 0, 0) + options + data
    return packets.ip(HERE[version], INNER_THERE[version], segment, protocol=packets.TCP)


def run(tunnel: Tunnel, data: bytes, verdict: Verdict, counted: str | None = None, *,
        gso_size: int = 0) -> bytes:  # fmt: skip
    """What went out."""
    ctx = sk_buff(gso_size=gso_size, gso_segments=2 if gso_size else 0)
    result = tunnel.run("steer", data, ctx)
    assert result.retval == retval("steer", verdict)
    assert tunnel.counted() == ({counted: 1} if counted else {})
    if verdict is Verdict.PASS:
        assert result.data == data
    return result.data


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("length", [14, 15, 100, 1380, 3000])
def test_goes_to_the_segmenter(tunnel: Tunnel, version: int, length: int) -> None:
    data = packet(version, bytes(i % 251 for i in range(length)))
    assert run(tunnel, data, Verdict.GO) == marked(PEER, data + bytes(ROOM))


@pytest.mark.parametrize("version", [4, 6])
def test_what_steer_makes_is_what_seal_takes(tunnel: Tunnel, version: int) -> None:
    frame = run(tunnel, packet(version), Verdict.GO)
    tunnel.set_route(4)
    for hook in ("seal_xdp", "seal_tc"):
        assert tunnel.run(hook, frame).retval == retval(hook, Verdict.GO)
    assert tunnel.session().send_counter == 2


@pytest.mark.parametrize("version", [4, 6])
def test_longest_prefix_wins(tunnel: Tunnel, version: int) -> None:
    whole, part = {4: ("10.0.0.0/8", "10.5.7.0/24"), 6: ("fd00::/8", "fd05:0:7::/48")}[version]
    tunnel.add_peer(OTHER_PEER, whole, part)
    tunnel.change_peer(OTHER_PEER, current=1, expires=now() + 10**12)
    for to, peer in {
        4: {"10.5.6.1": PEER, "10.5.7.1": OTHER_PEER, "10.6.0.1": OTHER_PEER},
        6: {"fd05:0:6::1": PEER, "fd05:0:7::1": OTHER_PEER, "fd06::1": OTHER_PEER},
    }[version].items():
        data = packet(version, to=to)
        assert run(tunnel, data, Verdict.GO) == marked(peer, data + bytes(ROOM)), to


@pytest.mark.parametrize("version", [4, 6])
def test_no_peer(tunnel: Tunnel, version: int) -> None:
    run(tunnel, packet(version, to=NOWHERE[version]), Verdict.PASS, "pass_no_peer")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("lacking", ["usable", "current", "expires"])
def test_no_usable_session(tunnel: Tunnel, version: int, lacking: str) -> None:
    tunnel.change_peer(**{lacking: 0})
    run(tunnel, packet(version), Verdict.PASS, "pass_no_usable_session")


def test_peer_that_is_gone(tunnel: Tunnel) -> None:
    tunnel.loaded.maps["peers"].delete(PEER.to_bytes(4, "little"))
    run(tunnel, packet(4), Verdict.PASS, "pass_no_usable_session")


@pytest.mark.parametrize("version", [4, 6])
def test_too_big_for_the_path(tunnel: Tunnel, version: int) -> None:
    data = packet(version, bytes(1300))
    tunnel.change_peer(max_inner=len(data))
    run(tunnel, data, Verdict.GO)
    tunnel.change_peer(max_inner=len(data) - 1)
    run(tunnel, data, Verdict.PASS, "pass_too_big")


@pytest.mark.parametrize(("version", "longest"), [(4, 1000), (6, 1280)])
def test_ipv6_has_a_least_mtu(tunnel: Tunnel, version: int, longest: int) -> None:
    """RFC 8200: there is no shorter packet to ask the sender for."""
    headers = len(packet(version, b""))
    tunnel.change_peer(max_inner=1000)
    run(tunnel, packet(version, bytes(longest - headers)), Verdict.GO)
    run(tunnel, packet(version, bytes(longest - headers + 1)), Verdict.PASS, "pass_too_big")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["tcp", "tcp with options", "udp"])
def test_super_packet_is_judged_by_its_segments(tunnel: Tunnel, version: int, kind: str) -> None:
    data = bytes(3000)
    if kind == "udp":
        text = packets.udp(HERE[version], 1, INNER_THERE[version], 2, data)
        whole = packets.ip(HERE[version], INNER_THERE[version], text)
    else:
        options = b"\x01" * 12 if kind == "tcp with options" else b""
        whole = tcp(version, data, options=options)
    headers = len(whole) - len(data)
    tunnel.change_peer(max_inner=headers + 1300)
    # As it is: the kernel cuts it later.
    assert run(tunnel, whole, Verdict.GO, gso_size=1300) == marked(PEER, whole)
    run(tunnel, whole, Verdict.PASS, "pass_too_big", gso_size=1301)


def test_shorter_than_an_ip_header(tunnel: Tunnel) -> None:
    run(tunnel, ipv4("10.1.0.1", INNER_THERE[4])[:19], Verdict.PASS, "pass_no_peer")
    tunnel.set_up()
    run(tunnel, ipv6("fd01::1", INNER_THERE[6])[:39], Verdict.PASS, "pass_no_peer")


def test_neither_ipv4_nor_ipv6(tunnel: Tunnel) -> None:
    run(tunnel, b"\x50" + packet(4)[1:], Verdict.PASS, "pass_no_peer")


def test_nothing_leaves_without_configuration(tunnel: Tunnel) -> None:
    # The map always has its entry; the mark of all zeros in it is nobody's.
    tunnel.configure(mark=bytes(6))
    frame = run(tunnel, packet(4), Verdict.GO)
    tunnel.configure()
    assert tunnel.run("seal_xdp", frame).retval == retval("seal_xdp", Verdict.DROP)
    assert tunnel.counted() == {"malformed_frame": 1}


def test_without_a_segmenter_packets_go_to_the_daemon(tunnel: Tunnel) -> None:
    tunnel.configure(outer_ifindex=0)
    run(tunnel, packet(4), Verdict.PASS, "pass_no_usable_session")
