"""Opening in userspace, row by row, as tests/rows/test_open.py has it for the kernel path: what
arrives, what goes to the stack, what is counted."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn.datapath import Confirmed, Roamed
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.udp import Arrival
from ebpfvpn.wire import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME
from rows import packets
from rows.packets import ipv4, ipv6, pad
from userspace.bench import (
    DATA,
    INNER_HERE,
    INNER_THERE,
    LOCAL_INDEX,
    OTHER_PEER,
    PEER,
    REMOTE,
    SEND_KEY,
    SOCKET,
    Bench,
    inner,
    message,
)
from userspace.test_ecn import FIGURE_4

MOVED = Endpoint(ip_address("198.51.100.7"), 1111, ip_address("192.0.2.1"), 3)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def from_there(version: int, data: bytes = DATA, *, tos: int = 0) -> bytes:
    return inner(INNER_THERE[version], INNER_HERE[version], data, tos=tos)


IN4, IN6 = from_there(4), from_there(6)
MESSAGE = message(0, pad(IN4))


def nothing(_: Bench) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Row:
    description: str
    message: bytes
    out: bytes | None
    """The inner packet that the stack gets."""
    counted: str | None = None
    before: Callable[[Bench], object] = nothing


def parametrize(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.description for row in rows])


def check(bench: Bench, row: Row) -> None:
    row.before(bench)
    assert bench.arrive(row.message) == []
    assert bench.tun.took() == ([row.out] if row.out else [])
    assert bench.counted() == ({row.counted: 1} if row.counted else {})


ACCEPTED = [
    Row("IPv4", message(0, pad(IN4)), IN4),
    Row("IPv6", message(0, pad(IN6)), IN6),
    Row("no padding", message(0, IN4), IN4),
    Row("padding of more than 16 bytes", message(0, pad(IN4) + bytes(48)), IN4),
    Row("padding that is not zero", message(0, IN4 + b"\xff" * 5), IN4),
    Row("a header alone", message(0, pad(ipv4("10.5.0.9", "10.1.0.1"))),
        ipv4("10.5.0.9", "10.1.0.1")),
    Row("an IPv6 header alone", message(0, pad(ipv6("fd05::9", "fd01::1"))),
        ipv6("fd05::9", "fd01::1")),
    Row("IPv4 options", message(0, ipv4("10.5.0.9", "10.1.0.1", b"text", options=b"\x01" * 40)),
        ipv4("10.5.0.9", "10.1.0.1", b"text", options=b"\x01" * 40)),
    Row("the longest", message(0, from_there(4, bytes(65507 - 32 - 28))),
        from_there(4, bytes(65507 - 32 - 28))),
    Row("any counter", message(2**40, pad(IN4)), IN4),
    Row("the last counter", message(REJECT_AFTER_MESSAGES - 1, pad(IN4)), IN4),
    Row("a keepalive", message(0, b""), None),
]  # fmt: skip


@parametrize(ACCEPTED)
def test_accepted(bench: Bench, row: Row) -> None:
    check(bench, row)
    assert bench.traffic().rx_packets == 1
    assert bench.traffic().rx_bytes == len(row.message)


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def expire(bench: Bench) -> None:
    bench.now += REJECT_AFTER_TIME


def share_allowed_ips(bench: Bench) -> None:
    bench.add_other("10.5.128.0/17", "10.5.0.9/32", "fd05::9/128", "10.0.0.0/8")


def cut_short(packet: bytes) -> Row:
    return Row(f"{len(packet)} bytes inside", message(0, packet), None, "malformed_inner")


UNAUTHENTICATED = [
    Row("a wrong bit in the tag", flipped(MESSAGE, -1), None, "bad_tag"),
    Row("a wrong bit in the text", flipped(MESSAGE, 16), None, "bad_tag"),
    Row("a wrong bit in the counter", flipped(MESSAGE, 8), None, "bad_tag"),
    Row("a wrong key", message(0, pad(IN4), key=SEND_KEY), None, "bad_tag"),
    Row("cut short", MESSAGE[:-16], None, "bad_tag"),
    Row("cut to its header and a tag", MESSAGE[:32], None, "bad_tag"),
    Row("a byte too many", MESSAGE + b"\0", None, "bad_tag"),
    Row("a keepalive with a wrong tag", flipped(message(0, b""), -1), None, "bad_tag"),
    Row("past its time", MESSAGE, None, "expired_receive", expire),
    Row("a counter at REJECT_AFTER_MESSAGES", message(REJECT_AFTER_MESSAGES, pad(IN4)), None,
        "expired_receive"),
    Row("the last counter of all", message(2**64 - 1, pad(IN4)), None, "expired_receive"),
]  # fmt: skip


@parametrize(UNAUTHENTICATED)
def test_what_is_not_authenticated_changes_nothing(bench: Bench, row: Row) -> None:
    before, highest = bench.traffic(), bench.session.window.highest
    bench.datapath.set_endpoint(PEER, MOVED)
    bench.install(LOCAL_INDEX + 1, confirmed=False)
    bench.peer.next = bench.session
    check(bench, row)
    assert bench.traffic() == before
    assert bench.session.window.highest == highest
    assert bench.datapath.endpoint(PEER) == MOVED
    assert bench.peer.next is bench.session
    assert bench.events() == []


DROPPED = [
    Row("a source outside allowed-ips", message(0, inner("10.6.0.9", "10.1.0.1")), None,
        "source_not_allowed"),
    Row("an IPv6 source outside allowed-ips", message(0, inner("fd06::9", "fd01::1")), None,
        "source_not_allowed"),
    Row("a source that another peer has by a longer prefix", MESSAGE, None, "source_not_allowed",
        share_allowed_ips),
    Row("an IPv6 source that another peer has by a longer prefix", message(0, pad(IN6)), None,
        "source_not_allowed", share_allowed_ips),
    Row("nothing allowed any more", MESSAGE, None, "source_not_allowed",
        lambda bench: bench.allow(PEER)),
    *(Row(f"inner IP version {v}", message(0, pad(bytes([v << 4 | 5]) + IN4[1:])), None,
          "malformed_inner") for v in (0, 1, 2, 3, 5, 7, 8, 15)),
    Row("an inner length above the text's", message(0, IN4[:-1]), None, "malformed_inner"),
    Row("an inner IPv6 length above the text's", message(0, IN6[:-1]), None, "malformed_inner"),
    Row("an inner length below the header's",
        message(0, IN4[:2] + b"\0\x13" + IN4[4:]), None, "malformed_inner"),
    Row("an inner header of 16 bytes", message(0, b"\x44" + IN4[1:]), None, "malformed_inner"),
    Row("an inner header of none", message(0, b"\x40" + IN4[1:]), None, "malformed_inner"),
    Row("an inner header above the packet",
        message(0, b"\x4f" + ipv4("10.5.0.9", "10.1.0.1")[1:] + bytes(60)), None,
        "malformed_inner"),
    *map(cut_short, (IN4[:19], IN4[:16], b"\x45", b"\x60", IN6[:39], IN6[:24], bytes(32))),
]  # fmt: skip


@parametrize(DROPPED)
def test_dropped_though_authenticated(bench: Bench, row: Row) -> None:
    check(bench, row)
    found = bench.traffic()
    assert (found.rx_packets, found.rx_bytes) == (1, len(row.message))
    assert found.last_received == found.last_data_received == bench.now
    assert bench.session.window.highest == 1


def test_longest_prefix_wins(bench: Bench) -> None:
    bench.add_other("10.5.128.0/17", "10.5.0.9/32", "10.0.0.0/8")
    bench.install(LOCAL_INDEX + 1, OTHER_PEER)
    for counter, (source, owner) in enumerate(
        [("10.5.0.8", 0), ("10.5.128.1", 1), ("10.5.0.9", 1), ("10.6.0.1", 1), ("10.5.127.255", 0)]
    ):
        packet = inner(source, INNER_HERE[4])
        bench.arrive(message(counter, pad(packet), index=LOCAL_INDEX + owner))
        assert bench.tun.took() == [packet], source
        before = bench.counted().get("source_not_allowed", 0)
        bench.arrive(message(100 + counter, pad(packet), index=LOCAL_INDEX + 1 - owner))
        assert bench.tun.took() == []
        assert bench.counted() == {"source_not_allowed": before + 1}


def test_allowed_ips_move_and_go(bench: Bench) -> None:
    """What was looked up before does not count any more."""
    bench.add_other("10.9.0.0/16")
    bench.install(LOCAL_INDEX + 1, OTHER_PEER)
    counter = iter(range(100))

    def may_send(owner: int, source: str) -> bool:
        bench.arrive(message(next(counter), inner(source, "10.1.0.1"), index=LOCAL_INDEX + owner))
        return bool(bench.tun.took())

    assert may_send(0, "10.5.0.9")
    bench.allow(OTHER_PEER, "10.9.0.0/16", "10.5.0.0/16")
    assert (may_send(0, "10.5.0.9"), may_send(1, "10.5.0.9")) == (False, True)
    bench.allow(PEER, *("10.5.0.0/24", "10.5.0.0/16"))
    assert (may_send(0, "10.5.0.9"), may_send(1, "10.5.0.9")) == (True, False)
    bench.allow(OTHER_PEER)
    assert (may_send(0, "10.5.3.9"), may_send(1, "10.9.0.9")) == (True, False)
    bench.allow(PEER, "10.5.0.0/24")
    assert (may_send(0, "10.5.3.9"), may_send(0, "10.5.0.9")) == (False, True)
    bench.datapath.remove_peer(OTHER_PEER)
    bench.allow(PEER, "10.9.0.0/16")
    assert may_send(0, "10.9.0.9")


@pytest.mark.parametrize("outside", [4, 6])
@pytest.mark.parametrize("inside", [4, 6])
@pytest.mark.parametrize("codepoint", [0, 0x2E, 0x3F])
def test_ecn(bench: Bench, outside: int, inside: int, codepoint: int) -> None:
    dropped = 0
    for counter, (field, around) in enumerate((i, o) for i in range(4) for o in range(4)):
        text = pad(from_there(inside, tos=codepoint << 2 | field))
        bench.arrive(message(counter, text), source=REMOTE[outside], tos=0x15 << 2 | around)
        expected = FIGURE_4[field][around]
        if expected is None:
            dropped += 1
            assert bench.tun.took() == []
            assert bench.counted() == {"ecn": dropped}
        else:
            assert bench.tun.took() == [from_there(inside, tos=codepoint << 2 | expected)]
    assert dropped == 1


# What is not for a session.

OTHERS = [
    *(pytest.param(bytes([kind, 0, 0, 0]) + MESSAGE[4:], id=f"type {kind}")
      for kind in (0, 1, 2, 3, 5)),
    *(pytest.param(MESSAGE[:length], id=f"{length} bytes") for length in (0, 1, 3, 15, 16, 31)),
    pytest.param(b"\x04\0\0\x01" + MESSAGE[4:], id="reserved bytes"),
    pytest.param(message(0, pad(IN4), index=LOCAL_INDEX + 1), id="unknown index"),
    pytest.param(message(0, pad(IN4), index=0), id="index 0"),
]  # fmt: skip


@pytest.mark.parametrize("data", OTHERS)
def test_handed_on(bench: Bench, data: bytes) -> None:
    assert bench.arrive(data, tos=0x88) == [(data, REMOTE[4], 0x88)]
    assert bench.arrive(MESSAGE, data) == [(data, REMOTE[4], 0)]
    assert bench.tun.took() == [IN4]
    assert bench.counted() == {}


def test_retired(bench: Bench) -> None:
    bench.datapath.retire(LOCAL_INDEX)
    bench.datapath.retire(LOCAL_INDEX)
    assert bench.arrive(MESSAGE) == [(MESSAGE, REMOTE[4], 0)]
    assert bench.datapath.sessions() == []


# Several in one arrival.


def numbered(count: int, size: int = 101, first: int = 0) -> list[bytes]:
    """Inner packets that are not joined."""
    return [
        packets.ip(INNER_THERE[4], INNER_HERE[4], bytes([first + i]) * size, protocol=99)
        for i in range(count)
    ]


def test_joined_messages_are_opened_in_order(bench: Bench) -> None:
    texts = [*numbered(60), *numbered(1, 17, 60)]
    messages = [message(i, pad(text)) for i, text in enumerate(texts)]
    assert bench.arrive(*messages, joined=len(messages[0])) == []
    assert bench.tun.took() == texts
    found = bench.traffic()
    assert (found.rx_packets, found.rx_bytes) == (61, sum(map(len, messages)))


def test_a_keepalive_is_the_last_of_several(bench: Bench) -> None:
    texts = numbered(3)
    messages = [*(message(i, pad(text)) for i, text in enumerate(texts)), message(3, b"")]
    assert bench.arrive(*messages, joined=len(messages[0])) == []
    assert bench.tun.took() == texts
    assert bench.traffic().rx_packets == 4


def test_joined_messages_of_several_sessions(bench: Bench) -> None:
    """And handshakes and garbage of the same length among them."""
    bench.add_other("10.7.0.0/16")
    bench.install(LOCAL_INDEX + 1)
    bench.install(LOCAL_INDEX + 2, OTHER_PEER)
    size = 148  # an initiation's
    text = size - 32

    def one(index: int, counter: int, mark: int, source: str = INNER_THERE[4]) -> bytes:
        packet = packets.ip(source, INNER_HERE[4], bytes([mark]) * (text - 20), protocol=99)
        return message(counter, packet, index=index)

    # Our index where a data message has it.
    initiation = struct.pack("<II", 1, LOCAL_INDEX + 1) + bytes(140)
    garbage = b"\xff" * size
    unknown = one(77, 0, 0)
    messages = [
        one(LOCAL_INDEX, 0, 1),
        one(LOCAL_INDEX + 1, 0, 2),
        initiation,
        one(LOCAL_INDEX + 1, 1, 3),
        one(LOCAL_INDEX + 2, 0, 4, "10.7.0.1"),
        garbage,
        flipped(one(LOCAL_INDEX, 1, 5), 40),
        one(LOCAL_INDEX, 0, 6),
        unknown,
        unknown,
        one(LOCAL_INDEX, 2, 7),
        b"\x02\0\0\0" + bytes(88),
    ]
    rest = bench.arrive(*messages, joined=size, tos=0x88)
    assert rest == [
        (data, REMOTE[4], 0x88) for data in (initiation, garbage, unknown, unknown, messages[-1])
    ]
    assert [packet[-1] for packet in bench.tun.took()] == [1, 2, 3, 4, 7]
    assert bench.counted() == {"bad_tag": 1, "replayed": 1}
    assert bench.traffic().rx_packets == 4
    assert bench.traffic(OTHER_PEER).rx_packets == 1


@pytest.mark.parametrize("size", [1, 8, 15, 16, 31])
def test_joined_messages_that_are_too_short(bench: Bench, size: int) -> None:
    """Each by itself is none, whatever stands behind it."""
    data = MESSAGE[:size] * 5
    assert bench.arrive(data, joined=size) == [(MESSAGE[:size], REMOTE[4], 0)] * 5
    assert bench.counted() == {}


@pytest.mark.parametrize("last", [0, 1, 15, 16, 31])
def test_a_last_one_that_is_too_short(bench: Bench, last: int) -> None:
    first = message(0, pad(IN4))
    cut = message(1, pad(IN4))[:last]
    assert bench.arrive(first, cut, joined=len(first)) == ([(cut, REMOTE[4], 0)] if last else [])
    assert bench.tun.took() == [IN4]
    assert bench.counted() == {}


def test_a_session_that_expires_takes_none_of_several(bench: Bench) -> None:
    bench.now += REJECT_AFTER_TIME
    messages = [message(i, pad(IN4)) for i in range(5)]
    assert bench.arrive(*messages, joined=len(messages[0])) == []
    assert bench.counted() == {"expired_receive": 5}
    assert bench.traffic().rx_packets == 0


@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.tuples(st.integers(0, 3), st.binary(max_size=60), st.booleans()),
        ),
        max_size=8,
    ),
    joined=st.integers(0, 120),
)
@settings(max_examples=400, deadline=None, database=None)
def test_whatever_arrives(data: list[bytes | tuple[int, bytes, bool]], joined: int) -> None:
    """Nothing raises, and each byte that is not a session's is handed on."""
    bench = Bench()
    parts = [
        one if isinstance(one, bytes)
        else flipped(message(one[0], one[1]), -1) if one[2] else message(one[0], one[1])
        for one in data
    ]  # fmt: skip
    whole = b"".join(parts)
    rest = bench.arrive(whole, joined=joined)
    pieces = [whole[at : at + joined] for at in range(0, len(whole), joined)] if joined else [whole]
    header = struct.pack("<II", 4, LOCAL_INDEX)
    expected = [one for one in pieces or [b""] if not one.startswith(header) or len(one) < 32]
    assert [one for one, _, _ in rest] == expected
    counted = bench.counted()
    opened = len(pieces or [b""]) - len(expected)
    refused = sum(counted.get(reason, 0) for reason in ("bad_tag", "replayed"))
    assert bench.traffic().rx_packets == opened - refused


def test_joined_messages_that_the_kernel_does_not_tell_of_any_more() -> None:
    """They came just before it was told not to join."""
    bench = Bench()
    texts = numbered(9)
    messages = [message(i, pad(text)) for i, text in enumerate(texts)]
    size = len(messages[0])
    other = b"\x01\0\0\0" + bytes(144)
    waiting = [
        (b"".join(messages[:3]), size),
        (b"".join([*messages[3:7], message(9, b"")]), 0),
        (messages[7], 0),
        (other, 0),
        (b"", 0),
        (b"\x04", 0),
        (messages[8], 0),
    ]

    def join(sock: socket.socket, on: bool) -> None:
        assert not on
        bench.udp.arrivals.extend((data, 0, REMOTE[4], 0) for data, _ in waiting[1:])

    bench.udp.arrivals.append((waiting[0][0], size, REMOTE[4], 0))
    bench.udp.join = join  # type: ignore[method-assign]
    with bench.clock():
        rest = bench.datapath.end_joining(SOCKET)
    assert [data for data, *_ in rest] == [other, b"", b"\x04"]
    assert bench.tun.took() == texts
    assert bench.counted() == {}
    assert bench.traffic().rx_packets == 10


def test_a_flood_comes_to_an_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers send as fast as they are listened to."""
    heard = 0

    def receive_into(sock: socket.socket, buffer: bytearray) -> Arrival:
        nonlocal heard
        heard += 1
        return Arrival(32, 32, REMOTE[4], 0)

    monkeypatch.setattr(bench.udp, "receive_into", receive_into)
    bench.datapath.messages(SOCKET)
    assert heard <= 256
    bench.datapath.end_joining(SOCKET)
    assert heard <= 20_000


# The endpoint.


@pytest.mark.parametrize("version", [4, 6])
def test_an_authenticated_packet_moves_the_endpoint(bench: Bench, version: int) -> None:
    bench.send(b"")
    bench.udp.messages()
    moved = MOVED if version == 4 else replace(REMOTE[6], port=2)
    bench.arrive(message(0, b""), source=moved)
    assert bench.datapath.endpoint(PEER) == moved
    assert bench.events() == [Roamed(PEER)]
    assert bench.ways.asked[-1] == moved
    bench.arrive(message(1, b""), source=replace(moved))
    bench.arrive(message(2, b""), source=moved)
    assert bench.events() == []
    bench.send(b"")
    assert bench.udp.sent[-1][3] == moved
    for elsewhere in (
        replace(moved, port=9),
        replace(moved, ifindex=9),
        replace(moved, local=None),
    ):
        bench.arrive(message(10 + bench.session.window.highest, b""), source=elsewhere)
        assert bench.datapath.endpoint(PEER) == elsewhere
        assert bench.events() == [Roamed(PEER)]


def test_flow_ports_of_the_peer_are_one_endpoint(bench: Bench) -> None:
    here, first = REMOTE[4], REMOTE[4].port
    bench.datapath.set_flow_ports(PEER, 4)
    bench.arrive(message(0, b""), source=here)
    bench.events()
    for number in (1, 2, 3):
        bench.arrive(message(number, b""), source=replace(here, port=first + number))
    assert (bench.events(), bench.datapath.endpoint(PEER)) == ([], here)
    bench.arrive(message(4, b""), source=replace(MOVED, port=first + 3))
    assert bench.datapath.endpoint(PEER) == replace(MOVED, port=first)
    bench.arrive(message(5, b""), source=replace(MOVED, port=first + 4))
    assert bench.datapath.endpoint(PEER) == replace(MOVED, port=first + 4)
    bench.arrive(message(6, b""), source=replace(MOVED, port=first + 3))
    assert bench.datapath.endpoint(PEER) == replace(MOVED, port=first + 3)
    assert bench.events() == [Roamed(PEER)] * 3


def test_data_that_is_dropped_inside_moves_the_endpoint_too(bench: Bench) -> None:
    bench.arrive(message(0, inner("10.6.0.9", "10.1.0.1")), source=MOVED)
    assert bench.counted() == {"source_not_allowed": 1}
    assert bench.datapath.endpoint(PEER) == MOVED


def test_the_last_of_several_senders_counts(bench: Bench) -> None:
    bench.udp.arrivals.append((message(0, b""), 0, MOVED, 0))
    bench.arrive(message(1, b""))
    assert bench.datapath.endpoint(PEER) == REMOTE[4]
    assert bench.events() == [Roamed(PEER), Roamed(PEER)]


def test_a_replay_from_elsewhere_moves_nothing_among_several(bench: Bench) -> None:
    bench.arrive(message(0, b""))
    bench.arrive(message(0, b""), message(0, b""), joined=32, source=MOVED)
    assert bench.counted() == {"replayed": 2}
    assert bench.datapath.endpoint(PEER) == REMOTE[4]


# Confirmation.


@pytest.mark.parametrize("text", [b"", pad(IN4)], ids=["keepalive", "data"])
def test_the_first_packet_confirms_the_session(bench: Bench, text: bytes) -> None:
    new = LOCAL_INDEX + 1
    bench.install(new, confirmed=False)
    bench.arrive(message(0, text))
    assert bench.events() == []
    bench.send(b"")
    assert bench.session.send_counter == 1
    bench.arrive(message(0, text, index=new))
    assert bench.events() == [Confirmed(PEER, new)]
    bench.send(b"")
    counters = {s.session.local_index: s.send_counter for s in bench.datapath.sessions()}
    assert counters == {LOCAL_INDEX: 1, new: 1}
    bench.arrive(message(1, text, index=new))
    assert bench.events() == []


def test_a_confirmed_session_puts_an_unconfirmed_one_out_of_the_way(bench: Bench) -> None:
    pending, newer = LOCAL_INDEX + 1, LOCAL_INDEX + 2
    bench.install(pending, confirmed=False)
    bench.install(newer)
    bench.arrive(message(0, pad(IN4), index=pending))
    assert bench.tun.took() == [IN4]
    assert bench.events() == []
    bench.send(b"")
    assert bench.peer.current is not None
    assert bench.peer.current.known.local_index == newer


def test_what_only_opens(bench: Bench) -> None:
    """A receiving half that came from another path, with its window."""
    bench.install_receiving(130, 64, 0b101)
    index = LOCAL_INDEX + 9
    for counter in (64, 66, 0, 65, 65, 130):
        bench.arrive(message(counter, pad(IN4), index=index))
    assert bench.counted() == {"replayed": 3, "too_old": 1}
    assert len(bench.tun.took()) == 2
    assert bench.events() == []
    bench.datapath.retire(LOCAL_INDEX)
    bench.send(b"")
    assert bench.counted()["no_session"] == 1


# Figures.


def test_traffic(bench: Bench) -> None:
    bench.peer.unanswered_since = 1.0
    bench.arrive(message(0, b""))
    keepalive = bench.traffic()
    assert (keepalive.rx_packets, keepalive.rx_bytes) == (1, 32)
    assert keepalive.last_received == bench.now
    assert (keepalive.unanswered_since, keepalive.last_data_received) == (0.0, 0.0)
    assert keepalive.unacknowledged_since == 0.0

    bench.now += 1
    first_time = bench.now
    size = 32 + len(pad(IN4))
    bench.arrive(message(1, pad(IN4)))
    first = bench.traffic()
    assert (first.rx_packets, first.rx_bytes) == (2, 32 + size)
    assert first.last_data_received == first.last_received == bench.now
    assert first.unacknowledged_since == bench.now

    bench.now += 1
    bench.arrive(message(2, pad(IN4)), message(3, b""), joined=size)
    second = bench.traffic()
    assert second.last_data_received == second.last_received == bench.now
    assert second.unacknowledged_since == first_time
    assert (second.tx_packets, second.tx_bytes, second.last_sent) == (0, 0, 0.0)

    bench.now += 1
    bench.arrive(message(4, b""))
    third = bench.traffic()
    assert (third.last_received, third.last_data_received) == (bench.now, bench.now - 1)


def test_opens_what_others_sealed_of_every_length(bench: Bench) -> None:
    for length in range(20, 1501):
        packet = ipv4("10.5.0.9", "10.1.0.1", bytes(length - 20), protocol=99)
        bench.arrive(message(length, packet))
        assert bench.tun.took() == [packet]
    for length in range(20):
        bench.arrive(message(2000 + length, b"\x45" * length))
    assert bench.counted() == {"malformed_inner": 19}
    assert bench.traffic().rx_packets == 1501


def test_what_the_stack_refuses_is_counted(bench: Bench) -> None:
    bench.tun.up = False
    bench.arrive(message(0, pad(IN4)))
    assert bench.counted() == {"stack_refused": 1}


def test_a_peer_that_is_removed(bench: Bench) -> None:
    bench.install(LOCAL_INDEX + 1)
    bench.datapath.remove_peer(PEER)
    assert bench.datapath.traffic() == {}
    assert bench.datapath.sessions() == []
    assert bench.arrive(MESSAGE) == [(MESSAGE, REMOTE[4], 0)]
    assert bench.leave(bench.leaving()) == [bench.leaving()]
