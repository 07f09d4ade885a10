"""Cutting super-packets, against packets that are built one by one."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebpfvpn.userspace import gso
from ebpfvpn.userspace.gso import GsoError
from ebpfvpn.virtio_net import ECN, NEEDS_CHECKSUM, NOT_GSO, TCPV4, TCPV6, UDP, Header
from rows import packets
from rows.packets import checksum
from userspace.flows import ACK, CWR, ECE, FIN, PSH, Segment, pieces

CHECKSUM = {packets.TCP: 16, packets.UDP: 6}
WORDS = st.integers(0, 65535)


def header(whole: Segment, mss: int, ecn: int = 0) -> Header:
    """What the kernel says of a super-packet."""
    kind = UDP if whole.protocol == packets.UDP else TCPV4 if whole.version == 4 else TCPV6
    rest = 8 if kind == UDP else 20 + len(whole.options)
    start, offset = whole.headers, CHECKSUM[whole.protocol]
    return Header(NEEDS_CHECKSUM, kind | ecn, start + rest, mss, start, offset)


def cut(whole: Segment, mss: int, ecn: int = 0) -> list[bytes]:
    found = gso.cut(memoryview(bytearray(whole.partial())), header(whole, mss, ecn))
    for plain, size in found:
        padded = bytes(plain[: -(-size // 16) * 16])
        assert len(padded) % 16 == 0
        assert not any(padded[size:])
    return [bytes(plain[:size]) for plain, size in found]


# Of all lengths: binary() prefers a few bytes.
PAYLOADS = st.builds(
    lambda length, seed: random.Random(seed).randbytes(length),
    st.integers(1, 400),
    st.integers(0, 1000),
)
SUPER_PACKETS = st.builds(
    Segment,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([packets.TCP, packets.UDP]),
    payload=PAYLOADS,
    sequence=st.one_of(st.integers(0, 2**32 - 1), st.integers(2**32 - 400, 2**32 - 1)),
    acknowledgement=st.integers(0, 2**32 - 1),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN, ACK | FIN | PSH, ACK | CWR, 0xFF, CWR | ECE]),
    window=WORDS,
    urgent=WORDS,
    options=st.integers(0, 10).map(lambda words: bytes(range(4 * words))),
    identification=st.one_of(WORDS, st.integers(65535 - 50, 65535)),
    tos=st.integers(0, 255),
    ip_options=st.integers(0, 10).map(lambda words: b"\x01" * 4 * words),
    extension=st.booleans(),
)


@given(
    whole=SUPER_PACKETS, mss=st.one_of(st.integers(1, 401), st.integers(1, 40)), ecn=st.booleans()
)
@example(whole=Segment(payload=bytes(65495)), mss=1448, ecn=False)
@example(whole=Segment(payload=bytes(2), protocol=packets.UDP), mss=1, ecn=False)
@settings(max_examples=500, deadline=None, database=None)
def test_cut_as_linux_does(whole: Segment, mss: int, ecn: bool) -> None:
    ecn_type = ECN if ecn and whole.protocol == packets.TCP else 0
    assert cut(whole, mss, ecn_type) == [bytes(piece) for piece in pieces(whole, mss)]


def transport_sum(packet: bytes) -> int:
    """Zero if the checksum of TCP or UDP is right."""
    if packet[0] >> 4 == 4:
        start, addresses, protocol = (packet[0] & 15) * 4, packet[12:20], packet[9]
    else:
        start, addresses, protocol = 40, packet[8:40], packet[6]
    length = len(packet) - start
    return checksum(addresses + bytes([0, protocol, length >> 8, length & 255]) +
                          packet[start:])  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [packets.TCP, packets.UDP])
def test_the_longest_with_odd_pieces(version: int, protocol: int) -> None:
    payload = bytes(i % 251 for i in range(65535 - 60 - 12))
    whole = Segment(version, protocol, payload, options=bytes(range(12)))
    found = cut(whole, 1347)
    headers = len(bytes(whole)) - len(payload)
    assert len(found) == -(-len(payload) // 1347)
    assert b"".join(packet[headers:] for packet in found) == payload
    assert {transport_sum(packet) for packet in found} == {0}
    if version == 4:
        assert {checksum(packet[:20]) for packet in found} == {0}


def with_checksum_of_zero(version: int) -> Segment:
    """Of UDP, whose sum is all ones."""
    any_ = Segment(version, packets.UDP, b"1234")
    check = bytes(any_)[any_.headers + 6 : any_.headers + 8]
    # Added to the payload, it makes that.
    payload = (int.from_bytes(b"12", "big") + int.from_bytes(check, "big")) % 0xFFFF
    return any_.with_(payload=payload.to_bytes(2, "big") + b"34")


@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_checksum_of_zero_becomes_ones(version: int) -> None:
    chosen = with_checksum_of_zero(version)
    whole = chosen.with_(payload=chosen.payload + b"other")
    first, _, _ = cut(whole, 4)
    assert first[chosen.headers + 6 : chosen.headers + 8] == b"\xff\xff"
    assert first == bytes(chosen)
    packet = bytearray(chosen.partial())
    gso.complete(memoryview(packet), header(chosen, 0)._replace(gso_type=NOT_GSO))
    assert packet == first


TCP4 = Segment(payload=bytes(100))
NONSENSE = {
    "no type": (TCP4, {"gso_type": NOT_GSO}),
    "an unknown type": (TCP4, {"gso_type": 3}),
    "pieces of nothing": (TCP4, {"gso_size": 0}),
    "headers behind the end": (TCP4, {"checksum_start": 120}),
    "headers in the IPv4 header": (TCP4, {"checksum_start": 12}),
    "headers in the IPv6 header": (TCP4.with_(version=6), {"checksum_start": 20}),
    "headers at an odd place": (TCP4, {"checksum_start": 21}),
    "UDP at an odd place": (TCP4.with_(protocol=packets.UDP), {"checksum_start": 21}),
    "headers at the very beginning": (TCP4, {"checksum_start": 0}),
    "headers alone": (TCP4.with_(payload=b""), {}),
    "TCP of IPv6 in IPv4": (TCP4, {"gso_type": TCPV6}),
    "TCP of IPv4 in IPv6": (TCP4.with_(version=6), {"gso_type": TCPV4}),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused(name: str) -> None:
    whole, changes = NONSENSE[name]
    nonsense = header(whole, 10)._replace(**changes)
    with pytest.raises(GsoError):
        gso.cut(memoryview(bytearray(whole.partial())), nonsense)


@pytest.mark.parametrize("words", [0, 1, 4, 6, 15])
def test_an_ipv4_header_of_another_length_is_refused(words: int) -> None:
    packet = bytearray(TCP4.partial())
    packet[0] = 0x40 | words
    with pytest.raises(GsoError):
        gso.cut(memoryview(packet), header(TCP4, 10))


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_a_tcp_header_below_its_least_is_refused(offset: int) -> None:
    packet = bytearray(TCP4.partial())
    packet[20 + 12] = offset << 4
    for mss in (1, 10):
        with pytest.raises(GsoError):
            gso.cut(memoryview(packet), header(TCP4, mss))


HEADERS = st.builds(
    Header,
    st.integers(0, 3),
    st.sampled_from([NOT_GSO, TCPV4, TCPV6, UDP, TCPV4 | ECN, 3, 255]),
    WORDS,
    st.one_of(st.integers(0, 200), WORDS),
    st.one_of(st.integers(0, 130), WORDS),
    st.one_of(st.integers(0, 40), WORDS),
)


@given(
    packet=st.one_of(st.binary(min_size=1, max_size=200), SUPER_PACKETS.map(Segment.partial)),
    fuzzed=HEADERS,
)
@settings(max_examples=2000, deadline=None, database=None)
def test_no_other_exception_whatever_comes(packet: bytes, fuzzed: Header) -> None:
    gso.complete(memoryview(bytearray(packet)), fuzzed)
    try:
        found = gso.cut(memoryview(bytearray(packet)), fuzzed)
    except GsoError:
        return
    start = fuzzed.checksum_start
    kind = fuzzed.gso_type & ~ECN
    headers = start + (8 if kind == UDP else (packet[start + 12] >> 4) * 4)
    assert b"".join(bytes(plain[headers:size]) for plain, size in found) == packet[headers:]


@given(whole=SUPER_PACKETS)
@settings(max_examples=300, deadline=None, database=None)
def test_a_missing_checksum_is_written(whole: Segment) -> None:
    packet = bytearray(whole.partial())
    gso.complete(memoryview(packet), header(whole, 0)._replace(gso_type=NOT_GSO))
    assert packet == bytes(whole)


def test_a_checksum_that_is_there_is_left_alone() -> None:
    whole = Segment(payload=b"odd")
    packet = bytearray(bytes(whole))
    for flags in (0, 2):  # 2: the kernel has looked at it
        gso.complete(memoryview(packet), header(whole, 0)._replace(gso_type=NOT_GSO, flags=flags))
        assert packet == bytes(whole)
    gso.complete(memoryview(packet), Header(NEEDS_CHECKSUM, 0, 0, 0, len(packet) - 1, 0))
    assert packet == bytes(whole)
