"""Sealing without the segmenter: checksums that the kernel leaves to the device are filled."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebpfvpn.kernel.layout import ROUTE_XDP
from rows import packets
from rows.packets import ethernet, ipv4, ipv6, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    PEER,
    SEND_KEY,
    Tunnel,
    Verdict,
    marked,
    now,
    retval,
)

ROOM = bytes(64)
"""What steer makes behind a packet."""
TC_ACT_STOLEN = 4
FIELD = {packets.TCP: 16, packets.UDP: 6}
SCTP = 132
ICMP6 = 58


def fold(data: bytes) -> int:
    return ~packets.checksum(data) & 0xFFFF


def pseudo(version: int, protocol: int, length: int) -> bytes:
    addresses = ip_address(INNER_HERE[version]).packed + ip_address(INNER_THERE[version]).packed
    return addresses + struct.pack("!II", length, protocol)


def segment(protocol: int, data: bytes) -> bytes:
    """Without a checksum."""
    if protocol == packets.UDP:
        return struct.pack("!HHHH", 1234, 5678, 8 + len(data), 0) + data
    return struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 0x10, 5, 0, 0) + data


def with_sum(protocol: int, text: bytes, value: int) -> bytes:
    at = FIELD[protocol]
    return text[:at] + struct.pack("!H", value) + text[at + 2 :]


def packet(version: int, protocol: int, text: bytes) -> bytes:
    return packets.ip(INNER_HERE[version], INNER_THERE[version], text, protocol=protocol)


def seal(tunnel: Tunnel, inner: bytes) -> bytes:
    """Returns what the peer gets, without padding."""
    result = tunnel.run("seal_frame_here", marked(PEER, inner + ROOM))
    assert result.retval == retval("seal_tc", Verdict.GO)
    _, _, text = packets.open_data_message(SEND_KEY, result.data[14 + 20 + 8 :])
    assert text[len(inner) :] == bytes(-len(inner) % 16)
    return text[: len(inner)]


def left_to_the_device(version: int, protocol: int, data: bytes) -> tuple[bytes, bytes]:
    """A packet, and the same when it is filled."""
    text = segment(protocol, data)
    head = pseudo(version, protocol, len(text))
    partial = with_sum(protocol, text, fold(head))
    whole = with_sum(protocol, text, packets.checksum(head + text) or 0xFFFF)
    return packet(version, protocol, partial), packet(version, protocol, whole)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", FIELD)
@pytest.mark.parametrize("length", [0, 1, 2, 43, 44, 45, 56, 57, 107, 108, 109, 500, 1333, 1340])
def test_a_checksum_is_filled(tunnel: Tunnel, version: int, protocol: int, length: int) -> None:
    tunnel.set_route(4)
    partial, whole = left_to_the_device(version, protocol, bytes(i % 251 for i in range(length)))
    assert seal(tunnel, partial) == whole


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from([4, 6]), st.sampled_from([*FIELD]), st.binary(max_size=300))
def test_every_checksum_is_filled(tunnel: Tunnel, version: int, protocol: int, data: bytes) -> None:
    tunnel.set_up()
    tunnel.set_route(4)
    partial, whole = left_to_the_device(version, protocol, data)
    assert seal(tunnel, partial) == whole


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", FIELD)
def test_what_is_there_stays(tunnel: Tunnel, version: int, protocol: int) -> None:
    """Right, wrong (whoever sent it) or none."""
    tunnel.set_route(4)
    text = segment(protocol, bytes(range(60)))
    right = packets.checksum(pseudo(version, protocol, len(text)) + text)
    for value in (right, right ^ 1, 0):
        inner = packet(version, protocol, with_sum(protocol, text, value))
        assert seal(tunnel, inner) == inner


@pytest.mark.parametrize("version", [4, 6])
def test_icmp(tunnel: Tunnel, version: int) -> None:
    tunnel.set_route(4)
    inner = packet(version, packets.ICMP if version == 4 else ICMP6, bytes(range(64)))
    assert seal(tunnel, inner) == inner


FRAGMENT = ipv4(INNER_HERE[4], INNER_THERE[4], bytes(64), fragment=1)
FIRST_FRAGMENT = ipv4(INNER_HERE[4], INNER_THERE[4], bytes(64), fragment=0x2000)
OPTIONS = ipv4(INNER_HERE[4], INNER_THERE[4], bytes(64), options=bytes(4))
EXTENDED = ipv6(INNER_HERE[6], INNER_THERE[6], bytes(64), next_header=packets.HOP_BY_HOP)


@pytest.mark.parametrize(
    "inner",
    [
        FRAGMENT, FIRST_FRAGMENT, OPTIONS, EXTENDED,
        packet(4, SCTP, bytes(64)), packet(6, SCTP, bytes(64)), FRAGMENT[:19],
    ],
    ids=["fragment", "first fragment", "options", "extended", "SCTP", "SCTP 6", "short"],
)  # fmt: skip
def test_the_segmenter_gets_what_we_cannot_read(tunnel: Tunnel, inner: bytes) -> None:
    tunnel.set_route(4)
    tunnel.change_peer(heavy_until=0)
    frame = marked(PEER, inner + ROOM)
    result = tunnel.run("seal_frame_here", frame)
    assert (result.retval, result.data) == (retval("seal_tc", Verdict.GO), frame)
    assert tunnel.session().send_counter == 0
    # What follows must not overtake it.
    assert tunnel.peer().heavy_until > now()


def test_the_segmenter_gets_what_is_too_long_for_the_way(tunnel: Tunnel) -> None:
    """From there it goes up to the daemon."""
    tunnel.set_route(4, mtu=1000)
    tunnel.change_peer(heavy_until=0)
    partial, whole = left_to_the_device(4, packets.TCP, bytes(1000))
    result = tunnel.run("seal_frame_here", marked(PEER, partial + ROOM))
    assert (result.retval, result.data) == (
        retval("seal_tc", Verdict.GO), marked(PEER, whole + ROOM)
    )  # fmt: skip
    assert tunnel.session().send_counter == 0
    assert tunnel.peer().heavy_until > now()


@pytest.mark.parametrize("flags", [None, ROUTE_XDP])
def test_the_segmenter_gets_what_has_no_neighbour(tunnel: Tunnel, flags: int | None) -> None:
    """From there the kernel finds it."""
    if flags is not None:
        tunnel.set_route(4, flags=flags)
    tunnel.change_peer(heavy_until=0)
    frame = marked(PEER, packet(4, packets.ICMP, bytes(64)) + ROOM)
    result = tunnel.run("seal_frame_here", frame)
    assert (result.retval, result.data) == (retval("seal_tc", Verdict.GO), frame)
    assert tunnel.peer().heavy_until > now()


def test_a_foreign_frame_is_dropped(tunnel: Tunnel) -> None:
    tunnel.set_route(4)
    result = tunnel.run("seal_frame_here", ethernet(pad(packet(4, packets.UDP, bytes(64)))))
    assert result.retval == TC_ACT_STOLEN
    assert tunnel.counted() == {"malformed_frame": 1}
