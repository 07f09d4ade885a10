"""Joining packets: whatever is written, cut again, is what was added."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn import virtio_net
from ebpfvpn.userspace import gso
from ebpfvpn.userspace.gro import Gro
from rows.packets import TCP, UDP
from userspace.fakes import FakeTun
from userspace.flows import ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, Segment, pieces

PADDING = b"\xee" * 16


def again(written: bytes) -> list[bytes]:
    """The packets that the stack makes of a write."""
    header = virtio_net.decode(written)
    packet = memoryview(bytearray(written[virtio_net.LENGTH :]))
    assert len(packet) <= 65535
    if not header.gso_type:
        assert not header.flags
        return [bytes(packet)]
    assert header.flags == virtio_net.NEEDS_CHECKSUM
    check_as_linux_does(packet, header)
    return [bytes(plain[:size]) for plain, size in gso.cut(packet, header)]


def check_as_linux_does(packet: memoryview, header: virtio_net.Header) -> None:
    """virtio_net_hdr_to_skb, and what the stack looks at next."""
    ip = 20 if packet[0] >> 4 == 4 else 40
    protocol = packet[9] if ip == 20 else packet[6]
    claimed = int.from_bytes(packet[2:4] if ip == 20 else packet[4:6], "big")
    assert claimed == len(packet) - (0 if ip == 20 else 40)
    assert header.checksum_start == ip
    if protocol == UDP:
        assert header.gso_type == virtio_net.UDP
        assert header.checksum_offset == 6
        assert header.headers == ip + 8
        assert int.from_bytes(packet[ip + 4 : ip + 6], "big") == len(packet) - ip
    else:
        assert header.gso_type == (virtio_net.TCPV4 if ip == 20 else virtio_net.TCPV6)
        assert header.checksum_offset == 16
        assert header.headers == ip + (packet[ip + 12] >> 4) * 4
    assert 0 < header.gso_size < len(packet) - header.headers


def joined(
    packets: Iterable[bytes], *, udp: bool = True, padding: bytes = PADDING
) -> list[list[bytes]]:
    """What each write holds."""
    tun = FakeTun()
    gro = Gro(tun)
    gro.udp = udp
    for packet in packets:
        gro.add(packet + padding, len(packet))
    gro.flush()
    gro.flush()
    assert gro.refused == 0
    return [again(one) for one in tun.written]


def flow(count: int, size: int = 100, **fields: object) -> list[Segment]:
    payload = bytes(i % 251 for i in range(count * size))
    return pieces(Segment(payload=payload).with_(**fields), size)


def expect(segments: list[Segment], *counts: int) -> None:
    """`counts`: of the packets in each write."""
    packets = [bytes(segment) for segment in segments]
    found = joined(packets)
    assert [packet for write in found for packet in write] == packets
    assert [len(write) for write in found] == list(counts)


FLOWS = [
    pytest.param(version, protocol, id=f"{protocol}-over-{version}")
    for version in (4, 6)
    for protocol in (TCP, UDP)
]


@pytest.mark.parametrize(("version", "protocol"), FLOWS)
@pytest.mark.parametrize("size", [1, 99, 100, 1460])
def test_a_flow_becomes_one(version: int, protocol: int, size: int) -> None:
    expect(flow(20, size, version=version, protocol=protocol), 20)


@pytest.mark.parametrize(("version", "protocol"), FLOWS)
def test_a_shorter_one_is_the_last(version: int, protocol: int) -> None:
    whole = Segment(version, protocol, bytes(range(250)))
    after = flow(2, 30, version=version, protocol=protocol, sequence=whole.sequence + 250)
    expect([*pieces(whole, 100), *after], 3, 2)


@pytest.mark.parametrize(("version", "protocol"), FLOWS)
@pytest.mark.parametrize("last", range(1, 10))
def test_a_very_short_one_without_padding(version: int, protocol: int, last: int) -> None:
    packets = [bytes(one) for one in pieces(Segment(version, protocol, bytes(20 + last)), 10)]
    assert joined(packets, padding=b"") == [packets]


@pytest.mark.parametrize(("version", "protocol"), FLOWS)
def test_a_longer_one_begins_anew(version: int, protocol: int) -> None:
    one = flow(3, 100, version=version, protocol=protocol)
    longer = flow(2, 101, version=version, protocol=protocol, sequence=1300)
    expect([*one, *longer], 3, 2)


@pytest.mark.parametrize("version", [4, 6])
def test_a_pushed_one_is_the_last(version: int) -> None:
    one = flow(3, version=version, flags=ACK | PSH)
    other = flow(3, version=version, sequence=1300)
    expect([*one, *other], 3, 3)
    pushed_at_once = one[0].with_(flags=ACK | PSH)
    expect([pushed_at_once, *one[1:]], 1, 2)
    short = one[2].with_(payload=b"short")
    expect([*one[:2], short, *other], 3, 3)


@pytest.mark.parametrize(("version", "protocol"), FLOWS)
@pytest.mark.parametrize("size", [65535 - 40, 32768, 32767, 32000, 22000, 1460, 1200])
def test_never_longer_than_a_packet_may_be(version: int, protocol: int, size: int) -> None:
    headers = len(bytes(Segment(version, protocol)))
    size = min(size, 65535 - headers)
    packets = [bytes(one) for one in flow(65535 * 3 // size, size, version=version,
                                          protocol=protocol)]  # fmt: skip
    found = joined(packets)
    assert [packet for write in found for packet in write] == packets
    most = max(1, (65535 - headers) // size)
    assert max(len(write) for write in found) == most


def test_a_short_last_one_fits_too() -> None:
    for size in (32747, 32748, 32760, 40000):
        first = Segment(payload=bytes(size))
        second = Segment(payload=bytes(size - 1), sequence=1000 + size, identification=1)
        packets = [bytes(first), bytes(second)]
        assert [one for write in joined(packets) for one in write] == packets


@pytest.mark.parametrize(("protocol", "most"), [(TCP, 500), (UDP, 64)])
def test_not_more_parts_than_the_kernel_takes(protocol: int, most: int) -> None:
    found = joined([bytes(one) for one in flow(1200, 1, protocol=protocol)])
    assert sum(map(len, found)) == 1200
    assert max(map(len, found)) == most


MIDDLE: dict[str, dict[str, object]] = {
    "SYN": {"flags": ACK | SYN},
    "FIN": {"flags": ACK | FIN},
    "RST": {"flags": ACK | RST},
    "URG": {"flags": ACK | URG},
    "no ACK": {"flags": 0},
    "ECE": {"flags": ACK | ECE},
    "CWR": {"flags": ACK | CWR},
    "another port": {"port": 5679},
    "another TOS": {"tos": 2},
    "another TTL": {"ttl": 63},
    "another window": {"window": 501},
    "another acknowledgement": {"acknowledgement": 78},
    "an urgent pointer": {"urgent": 1},
    "options": {"options": b"\x01" * 4},
    "a gap": {"sequence": 1101},
    "a repetition": {"sequence": 1000},
    "no payload": {"payload": b""},
    "a fragment": {"fragment": 0x2000},
    "a later fragment": {"fragment": 0x0001},
    "a fragment far behind": {"fragment": 0x1F00},
    "no don't-fragment": {"fragment": 0},
    "a fragment not to be fragmented": {"fragment": 0x6000},
    "a later one": {"fragment": 0x4001},
    "one far behind": {"fragment": 0x5F00},
    "the reserved bit": {"fragment": 0xC000},
    "IPv4 options": {"ip_options": b"\x01" * 4},
    "an extension header": {"version": 6, "extension": True},
    "the other IP version": {"version": 6},
    "the other protocol": {"protocol": UDP},
    "another source": {"source": {4: "10.5.0.10", 6: "fd05::10"}},
}


@pytest.mark.parametrize("name", MIDDLE)
def test_what_differs_goes_up_by_itself(name: str) -> None:
    one, two, three = flow(3)
    expect([one, two.with_(**MIDDLE[name]), three], 1, 1, 1)


@pytest.mark.parametrize("fragment", [0x4001, 0x5F00, 0x6000, 0xC000, 0x2000, 0])
def test_fragments_that_follow_each_other(fragment: int) -> None:
    """What looks like TCP in them is none."""
    expect(flow(3, fragment=fragment), *([3] if fragment == 0xC000 else [1, 1, 1]))


OF_IPV6 = ("another port", "another TOS", "another TTL", "another window", "an extension header")


@pytest.mark.parametrize("name", OF_IPV6)
def test_what_differs_in_ipv6(name: str) -> None:
    one, two, three = flow(3, version=6)
    expect([one, two.with_(**MIDDLE[name]), three], 1, 1, 1)


def test_another_flow_label() -> None:
    one, two = (bytearray(bytes(segment)) for segment in flow(2, version=6))
    two[3] = 1
    assert joined([bytes(one), bytes(two)]) == [[bytes(one)], [bytes(two)]]


@pytest.mark.parametrize("name", ["another port", "another TOS", "another TTL", "a fragment"])
def test_what_differs_in_udp(name: str) -> None:
    one, two, three = flow(3, protocol=UDP)
    expect([one, two.with_(**MIDDLE[name]), three], 1, 1, 1)


def test_a_shorter_one_in_the_middle() -> None:
    one, two, three = flow(3)
    expect([one, two.with_(payload=b"short"), three], 2, 1)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_other_packets_between(protocol: int) -> None:
    one, two, three = flow(3, protocol=protocol)
    expect([one, one.with_(port=9), two, two.with_(port=9), three], 1, 1, 1, 1, 1)
    ping = Segment(protocol=1, payload=bytes(100))
    expect([one, ping, two, three], 1, 1, 2)


def test_udp_only_where_the_kernel_knows_it() -> None:
    packets = [bytes(one) for one in flow(3, protocol=UDP)]
    assert joined(packets, udp=False) == [[packet] for packet in packets]
    packets = [bytes(one) for one in flow(3)]
    assert joined(packets, udp=False) == [packets]


def test_udp_whose_length_is_not_the_packets() -> None:
    """Something stands behind it that the stack cuts off."""
    one, two = (bytearray(bytes(segment)) for segment in flow(2, protocol=UDP))
    for packet in (one, two):
        struct.pack_into("!H", packet, 24, 8 + 99)
    assert joined([bytes(one), bytes(two)]) == [[bytes(one)], [bytes(two)]]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("offset", [0, 4, 15])
def test_tcp_whose_header_makes_no_sense(version: int, offset: int) -> None:
    one, two = (bytearray(bytes(segment)) for segment in flow(2, 20, version=version))
    for packet in (one, two):
        packet[(20 if version == 4 else 40) + 12] = offset << 4
    assert joined([bytes(one), bytes(two)]) == [[bytes(one)], [bytes(two)]]


@pytest.mark.parametrize("version", [4, 6])
def test_headers_cut_short(version: int) -> None:
    whole = bytearray(bytes(Segment(version)))
    for protocol in (TCP, UDP):
        whole[9 if version == 4 else 6] = protocol
        for length in range(20 if version == 4 else 40, len(whole)):
            packet = bytes(whole[:length])
            assert joined([packet, packet]) == [[packet], [packet]]


@pytest.mark.parametrize("version", [4, 6])
def test_sequence_numbers_that_run_over(version: int) -> None:
    packets = [bytes(one) for one in flow(10, version=version, sequence=2**32 - 500)]
    assert [one for write in joined(packets) for one in write] == packets
    # The carry must not be taken for the next port.
    one, two, *_ = flow(2, version=version, sequence=2**32 - 100)
    expect([one, two.with_(port=one.port + 1)], 1, 1)


def test_ids_are_kept_unless_they_mean_nothing() -> None:
    """A packet that must not be fragmented needs none (RFC 6864, section 4.1); Linux too changes
    these. Of others they are kept."""
    whole = Segment(payload=bytes(300), identification=65534)
    expect(pieces(whole, 100), 3)
    constant = [bytes(one.with_(identification=7)) for one in pieces(whole, 100)]
    (found,) = joined(constant)
    assert [packet[4:6] for packet in found] == [b"\0\x07", b"\0\x08", b"\0\x09"]
    assert [packet[20:] for packet in found] == [packet[20:] for packet in constant]
    fragmentable = [one.with_(fragment=0, identification=7) for one in pieces(whole, 100)]
    expect(fragmentable, 1, 1, 1)


def damaged(segment: Segment) -> bytes:
    """Its payload was changed on the way to the tunnel."""
    return bytes(segment)[:-1] + bytes([bytes(segment)[-1] ^ 1])


def test_a_packet_by_itself_keeps_a_wrong_checksum() -> None:
    (one,) = flow(1)
    assert joined([damaged(one)]) == [[damaged(one)]]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_joined_packets_get_right_checksums(protocol: int) -> None:
    """The kernel writes them, so damage from before the tunnel goes unseen (see gro.py)."""
    one, two, three = flow(3, protocol=protocol)
    changed = two.with_(payload=two.payload[:-1] + bytes([two.payload[-1] ^ 1]))
    assert damaged(two) != bytes(changed)
    expected = [bytes(one), bytes(changed), bytes(three)]
    assert joined([bytes(one), damaged(two), bytes(three)]) == [expected]


def test_a_refused_write_counts_its_packets() -> None:
    tun = FakeTun()
    tun.up = False
    gro = Gro(tun)
    for packet in flow(3):
        gro.add(bytes(packet), len(bytes(packet)))
    assert gro.refused == 0
    gro.flush()
    assert gro.refused == 3
    gro.add(bytes(Segment()), len(bytes(Segment())))
    assert gro.refused == 4
    tun.up = True
    gro.add(bytes(Segment(payload=b"x")), len(bytes(Segment(payload=b"x"))))
    gro.flush()
    assert gro.refused == 4


PACKETS = st.builds(
    Segment,
    version=st.sampled_from([4, 6]),
    protocol=st.sampled_from([TCP, UDP, 1]),
    payload=st.sampled_from([b"", b"x", bytes(5), bytes(6), bytes(100), bytes(30000)]),
    sequence=st.sampled_from([1000, 2**32 - 5, 0]),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN]),
    port=st.sampled_from([1, 2]),
    tos=st.sampled_from([0, 0, 3]),
    options=st.sampled_from([b"", b"\x01" * 12]),
    extension=st.sampled_from([False, False, True]),
)


@given(starts=st.lists(st.tuples(PACKETS, st.integers(1, 4)), max_size=12))
@settings(max_examples=400, deadline=None, database=None)
def test_any_mixture(starts: list[tuple[Segment, int]]) -> None:
    """Runs of flows, some of which go on where an earlier one stopped."""
    last: dict[tuple[object, ...], int] = {}
    packets = []
    for start, count in starts:
        key = (start.version, start.protocol, start.port)
        sequence = last.get(key, start.sequence)
        identification = sequence % 1000
        for i in range(count):
            segment = start.with_(sequence=sequence, identification=identification + i)
            packets.append(bytes(segment))
            sequence = (sequence + len(start.payload)) % 2**32
        last[key] = sequence
    found = [packet for write in joined(packets) for packet in write]
    assert [without_id(packet) for packet in found] == [without_id(packet) for packet in packets]


def without_id(packet: bytes) -> bytes:
    """Nor the IPv4 checksum, which covers it."""
    return packet if packet[0] >> 4 == 6 else packet[:4] + packet[6:10] + packet[12:]


def claiming_its_length(packet: bytes) -> bytes:
    """Opening looks at that before."""
    if packet[0] >> 4 == 4:
        return packet[:2] + len(packet).to_bytes(2, "big") + packet[4:]
    return packet[:4] + (len(packet) - 40).to_bytes(2, "big") + packet[6:]


def without_checksums(packet: bytes) -> bytes:
    """Nor ids, where the packet could have been joined."""
    changed = bytearray(packet)
    start = 20 if packet[0] == 0x45 else 40
    if packet[0] == 0x45:
        changed[4:6] = changed[10:12] = bytes(2)
    elif packet[0] >> 4 == 4:
        return packet
    offset = {TCP: 16, UDP: 6}.get(packet[9] if start == 20 else packet[6])
    if offset is not None and len(packet) >= start + offset + 2:
        changed[start + offset : start + offset + 2] = bytes(2)
    return bytes(changed)


@given(
    packets=st.lists(
        st.tuples(
            PACKETS,
            st.lists(st.tuples(st.integers(1, 63), st.integers(0, 255)), max_size=2),
            st.integers(0, 70),
        ),
        max_size=8,
    ),
    repeated=st.integers(1, 3),
    padding=st.sampled_from([b"", PADDING]),
)
@settings(max_examples=1500, deadline=None, database=None)
def test_whatever_an_authenticated_peer_sends(
    packets: list[tuple[Segment, list[tuple[int, int]], int]], repeated: int, padding: bytes
) -> None:
    """Any bytes behind an IP header of the right version and length."""
    sent = []
    for segment, changes, cut in packets:
        packet = bytearray(bytes(segment))
        least = 20 if segment.version == 4 else 40
        for at, value in changes:
            packet[at % len(packet) or 1] = value
        kept = max(least, len(packet) - cut)
        packet[0] = bytes(segment)[0]
        sent += [claiming_its_length(bytes(packet[:kept]))] * repeated
    found = [one for write in joined(sent, padding=padding) for one in write]
    assert list(map(without_checksums, found)) == list(map(without_checksums, sent))
