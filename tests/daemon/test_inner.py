from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import inner
from ebpfvpn.inner import Inner
from rows.packets import checksum

SOURCE4, DESTINATION4 = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
SOURCE6, DESTINATION6 = bytes([0xFD] + 14 * [0] + [1]), bytes([0xFD] + 14 * [0] + [2])
UDP, ICMP, ICMPV6 = 17, 1, 58
DF, MF = 0x4000, 0x2000


def packet4(
    payload: bytes, *, flags: int = 0, protocol: int = UDP, options: bytes = b"",
    source: bytes = SOURCE4, destination: bytes = DESTINATION4,
) -> bytes:  # fmt: skip
    length = 20 + len(options)
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(payload), 0x1234, flags, 64,
        protocol, 0, source, destination,
    ) + options  # fmt: skip
    check = struct.pack("!H", checksum(header))
    return header[:10] + check + header[12:] + payload


def packet6(
    payload: bytes, *, protocol: int = UDP, source: bytes = SOURCE6,
    destination: bytes = DESTINATION6,
) -> bytes:  # fmt: skip
    header = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return header + source + destination + payload


def extension(following: int, length: int = 8) -> bytes:
    """An IPv6 extension header of padding."""
    return bytes([following, length // 8 - 1, 1, length - 4]) + bytes(length - 4)


def fragment_header(following: int, field: int) -> bytes:
    """`field`: offset in bytes, and 1 if there are more."""
    return struct.pack("!BBHI", following, 0xFF, field, 0x1234)


def parsed(packet: bytes) -> Inner:
    found = inner.parse(packet)
    assert found is not None
    return found


def test_parse_reads_addresses_and_cuts_what_is_behind_the_packet() -> None:
    four = packet4(b"hello")
    assert inner.parse(four + b"trailer") == Inner(four, 4, SOURCE4, DESTINATION4)
    six = packet6(b"hello")
    assert inner.parse(six + b"trailer") == Inner(six, 6, SOURCE6, DESTINATION6)


@pytest.mark.parametrize(
    "whole", [packet4(b"hello"), packet4(b"", options=bytes(8)), packet6(b"x")]
)
def test_parse_refuses_every_part_of_a_packet(whole: bytes) -> None:
    for length in range(len(whole)):
        assert inner.parse(whole[:length]) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"\x54" + packet4(b"")[1:],  # version 5
        b"\x44" + packet4(b"")[1:],  # header of 16 bytes
        packet4(b"")[:2] + struct.pack("!H", 19) + packet4(b"")[4:],  # shorter than its header
        b"\x46" + packet4(b"")[1:] + bytes(40),  # header longer than the packet
    ],
)
def test_parse_refuses_what_contradicts_itself(packet: bytes) -> None:
    assert inner.parse(packet) is None


@given(st.binary(max_size=200))
def test_parse_never_raises_and_never_makes_a_packet_longer(data: bytes) -> None:
    found = inner.parse(data)
    if found is not None:
        assert data.startswith(found.packet)
        # Whatever it is, it can be answered.
        inner.unreachable(found)
        inner.too_big(found, 1280)


def test_only_ipv4_without_its_bit_may_be_fragmented() -> None:
    assert inner.may_fragment(parsed(packet4(b"")))
    assert inner.may_fragment(parsed(packet4(b"", flags=MF | 5)))
    assert not inner.may_fragment(parsed(packet4(b"", flags=DF)))
    assert not inner.may_fragment(parsed(packet6(b"")))


@pytest.mark.parametrize("length", [0, 8, 1000])
def test_icmp_error_for_ipv4(length: int) -> None:
    offending = packet4(bytes(length))
    answer = inner.too_big(parsed(offending), 1216)
    assert answer is not None
    error = parsed(answer)
    assert error.packet == answer
    assert (error.source, error.destination) == (DESTINATION4, SOURCE4)
    assert answer[9] == ICMP
    assert checksum(answer[:20]) == 0
    assert checksum(answer[20:]) == 0
    assert answer[20:22] == bytes([3, 4])
    assert answer[24:28] == struct.pack("!HH", 0, 1216)
    assert answer[28:] == offending[: 576 - 28]
    assert len(answer) <= 576


@pytest.mark.parametrize("length", [0, 8, 1000, 3000])
def test_icmp_error_for_ipv6(length: int) -> None:
    offending = packet6(bytes(length))
    answer = inner.too_big(parsed(offending), 1300)
    assert answer is not None
    error = parsed(answer)
    assert (error.source, error.destination) == (DESTINATION6, SOURCE6)
    assert answer[6] == ICMPV6
    body = answer[40:]
    pseudo = answer[8:40] + struct.pack("!II", len(body), ICMPV6)
    assert checksum(pseudo + body) == 0
    assert body[:2] == bytes([2, 0])
    assert body[4:8] == struct.pack("!I", 1300)
    assert body[8:] == offending[: 1280 - 48]
    assert len(answer) <= 1280


def test_ipv6_is_never_told_less_than_1280() -> None:
    answer = inner.too_big(parsed(packet6(bytes(1240))), 1216)
    assert answer is not None
    assert answer[44:48] == struct.pack("!I", 1280)


def test_unreachable() -> None:
    four, six = inner.unreachable(parsed(packet4(b"x"))), inner.unreachable(parsed(packet6(b"x")))
    assert four is not None
    assert four[20:22] == bytes([3, 1])
    assert six is not None
    assert six[40:42] == bytes([1, 3])


@pytest.mark.parametrize(
    "packet",
    [
        packet4(bytes([3, 1]), protocol=ICMP),
        packet4(bytes([11, 0]), protocol=ICMP),
        packet4(bytes([5, 0]), protocol=ICMP, options=bytes(4)),
        packet4(b"", protocol=ICMP),
        packet4(b"later", flags=7),
        packet4(b"x", destination=bytes([224, 0, 0, 1])),
        packet4(b"x", destination=bytes(4 * [255])),
        packet4(b"x", source=bytes(4)),
        packet4(b"x", source=bytes([239, 1, 1, 1])),
        packet6(bytes([1, 3]), protocol=ICMPV6),
        packet6(b"", protocol=ICMPV6),
        packet6(extension(ICMPV6) + bytes([1, 3]), protocol=60),
        packet6(extension(43, 24) + extension(ICMPV6) + bytes([1, 3]), protocol=0),
        packet6(fragment_header(ICMPV6, 1) + bytes([1, 3]), protocol=44),
        packet6(fragment_header(60, 1) + extension(ICMPV6) + bytes([1, 3]), protocol=44),
        packet6(fragment_header(ICMPV6, 8) + bytes([128, 3]), protocol=44),
        packet6(extension(ICMPV6), protocol=60),
        packet6(b"x", destination=bytes([0xFF, 2] + 13 * [0] + [1])),
        packet6(b"x", source=bytes(16)),
    ],
)
def test_no_error_about_errors_fragments_and_groups(packet: bytes) -> None:
    found = parsed(packet)
    assert inner.unreachable(found) is None
    assert inner.too_big(found, 1280) is None


@pytest.mark.parametrize(
    "packet",
    [
        packet4(bytes([8, 0]), protocol=ICMP),
        packet4(bytes([0, 0]), protocol=ICMP, options=bytes(8)),
        packet4(b"first", flags=MF),
        packet6(bytes([128, 0]), protocol=ICMPV6),
        packet6(extension(ICMPV6) + bytes([128, 0]), protocol=60),
        packet6(fragment_header(ICMPV6, 1) + bytes([128, 0]), protocol=44),
        packet6(fragment_header(UDP, 1480) + bytes([1, 3]), protocol=44),
        packet6(extension(UDP)[:4], protocol=60),
    ],
)
def test_queries_and_first_fragments_are_answered(packet: bytes) -> None:
    assert inner.unreachable(parsed(packet)) is not None


@given(
    st.binary(max_size=3000),
    st.integers(68, 1500),
    st.sampled_from([b"", bytes([1] * 4), bytes([1] * 40)]),
    st.sampled_from([0, 100, MF | 100]),
)
def test_fragments_make_up_the_packet(payload: bytes, mtu: int, options: bytes, flags: int) -> None:
    packet = packet4(payload, options=options, flags=flags)
    pieces = inner.fragment(parsed(packet), mtu)
    header = 20 + len(options)
    together = b""
    for number, piece in enumerate(pieces):
        assert len(piece) <= mtu
        assert inner.parse(piece) is not None
        assert checksum(piece[:header]) == 0
        assert piece[:2] + piece[4:6] + piece[8:10] == packet[:2] + packet[4:6] + packet[8:10]
        assert piece[12:header] == packet[12:header]
        field = int.from_bytes(piece[6:8], "big")
        assert (field & 0x1FFF) * 8 == (flags & 0x1FFF) * 8 + len(together)
        last = number == len(pieces) - 1
        assert bool(field & MF) == (not last or bool(flags & MF))
        together += piece[header:]
    assert together == payload


def test_no_room_for_fragments() -> None:
    assert inner.fragment(parsed(packet4(bytes(100))), 27) == []
