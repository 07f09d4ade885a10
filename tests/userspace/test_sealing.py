"""Sealing in userspace, as tests/rows/test_seal.py has it for the kernel path: what leaves, in how
many system calls, what is counted, what is left to the daemon."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn import virtio_net
from ebpfvpn.datapath import Event, MessagesUsed
from ebpfvpn.virtio_net import NEEDS_CHECKSUM, Header
from ebpfvpn.wire import REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME
from rows import packets
from rows.packets import ipv4, ipv6, pad
from userspace.bench import (
    INNER_HERE,
    INNER_THERE,
    LOCAL_INDEX,
    MTU,
    OTHER_PEER,
    PEER,
    REMOTE,
    REMOTE_INDEX,
    Bench,
    inner,
)
from userspace.fakes import FakeDestination
from userspace.flows import ACK, PSH, Segment, pieces
from userspace.test_gso import header


@pytest.fixture
def bench() -> Bench:
    return Bench()


def sized(length: int, *, tos: int = 0) -> bytes:
    """An inner packet of so many bytes."""
    text = bytes(i % 251 for i in range(length - 20))
    return ipv4(INNER_HERE[4], INNER_THERE[4], text, tos=tos, protocol=99)


def padded(length: int, mtu: int = MTU) -> int:
    """Whitepaper, section 5.4.6."""
    whole = -(-length // 16) * 16
    return min(whole, mtu) if length <= mtu else whole


# One packet.


def test_every_length_is_opened_by_another_implementation(bench: Bench) -> None:
    for counter, length in enumerate(range(20, 1501)):
        packet = sized(length)
        assert bench.leave(packet) == []
        rest = bytes(padded(length) - length)
        assert bench.texts() == [(REMOTE_INDEX, counter, packet + rest)]


@pytest.mark.parametrize("mtu", [1280, 1419, 1420, 9001])
def test_padding_stays_within_the_mtu(mtu: int) -> None:
    bench = Bench(mtu=mtu)
    for length in (20, 32, 33, mtu - 13, mtu - 1, mtu, mtu + 1):
        bench.send(sized(length))
        ((_, _, text),) = bench.texts()
        assert (len(text), text[:length]) == (padded(length, mtu), sized(length))
        assert not any(text[length:])


def test_a_keepalive(bench: Bench) -> None:
    bench.send(b"", b"")
    assert bench.texts() == [(REMOTE_INDEX, 0, b""), (REMOTE_INDEX, 1, b"")]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("field", range(4))
def test_the_outer_packet_bears_the_inner_ecn_alone(bench: Bench, version: int, field: int) -> None:
    bench.leave(bench.leaving(version, tos=0x2E << 2 | field))
    assert bench.udp.sent[-1][1] == field
    bench.send(bench.leaving(version, tos=0x2E << 2 | field))
    assert bench.udp.sent[-1][1] == field
    bench.send(b"")
    assert bench.udp.sent[-1][1] == 0


def test_where_it_goes(bench: Bench) -> None:
    bench.leave(sized(100))
    bench.datapath.set_endpoint(PEER, REMOTE[6])
    bench.leave(sized(100))
    assert [to for *_, to in bench.udp.sent] == [REMOTE[4], REMOTE[6]]


def nothing(_: Bench) -> None:
    pass


def expire(bench: Bench) -> None:
    bench.now += REJECT_AFTER_TIME


def retire(bench: Bench) -> None:
    bench.datapath.retire(LOCAL_INDEX)


def use_up(bench: Bench) -> None:
    bench.session.send_counter = REJECT_AFTER_MESSAGES


def refuse(number: int, times: int = 1) -> Callable[[Bench], None]:
    return lambda bench: bench.udp.refusals.extend([number] * times)


@dataclass(frozen=True, slots=True)
class Row:
    description: str
    before: Callable[[Bench], object]
    counted: str
    sealed: bool = False
    """Whether a counter was used."""


DROPPED = [
    Row("no session", retire, "no_session"),
    Row("past its time", expire, "expired_send"),
    Row("no counter left", use_up, "expired_send"),
    Row("no endpoint", lambda bench: setattr(bench.peer, "destination", None), "no_endpoint"),
    Row("no way", refuse(errno.ENETUNREACH), "no_route", True),
    Row("no host", refuse(errno.EHOSTUNREACH), "no_route", True),
    Row("forbidden", refuse(errno.EPERM), "send_failed", True),
    Row("too long", refuse(errno.EMSGSIZE), "send_failed", True),
    Row("a full buffer", refuse(errno.EAGAIN, 2), "send_buffer_full", True),
    Row("a full buffer, then forbidden",
        lambda bench: bench.udp.refusals.extend([errno.EAGAIN, errno.EPERM]), "send_failed", True),
]  # fmt: skip


@pytest.mark.parametrize("row", DROPPED, ids=[row.description for row in DROPPED])
def test_dropped(bench: Bench, row: Row) -> None:
    row.before(bench)
    bench.send(sized(100))
    assert bench.udp.messages() == []
    assert bench.counted() == {row.counted: 1}
    assert bench.traffic().tx_packets == int(row.sealed)
    if not row.sealed:
        sent = bench.traffic()
        assert (sent.last_sent, sent.unanswered_since) == (0.0, 0.0)


@pytest.mark.parametrize("row", [row for row in DROPPED if row.sealed], ids=lambda r: r.description)
def test_all_of_several_are_counted(bench: Bench, row: Row) -> None:
    bench.udp.refusals.extend([errno.EAGAIN] * 100 if row.counted == "send_buffer_full" else [])
    while len(bench.udp.refusals) < 100:
        row.before(bench)
    bench.leave(*[sized(100)] * 5)
    assert bench.udp.messages() == []
    assert sum(bench.counted().values()) == 5


def test_a_buffer_that_was_full_for_a_moment(bench: Bench) -> None:
    refuse(errno.EAGAIN)(bench)
    bench.send(sized(100))
    assert len(bench.udp.messages()) == 1
    assert bench.counted() == {}
    (waited,) = bench.udp.waited
    assert 0 < waited <= 0.2


def test_no_socket_of_the_family() -> None:
    bench = Bench(families=[4])
    bench.datapath.set_endpoint(PEER, REMOTE[6])
    bench.send(sized(100))
    assert bench.counted() == {"no_endpoint": 1}


# What is left to the daemon.


def max_inner(length: int) -> Callable[[Bench], object]:
    def set_it(bench: Bench) -> None:
        bench.ways.longest = length
        bench.datapath.network_changed()
        assert bench.datapath.max_inner(PEER) == length

    return set_it


TO_ALL = inner("10.1.0.1", "192.0.2.99")
LEFT: list[tuple[str, bytes, Callable[[Bench], object]]] = [
    ("nobody's", TO_ALL, nothing),
    ("an IPv6 address of nobody's", inner("fd01::1", "fd06::9"), nothing),
    ("no session", sized(100), retire),
    ("one past its time", sized(100), expire),
    ("not usable", sized(100), lambda bench: bench.datapath.set_usable(PEER, False)),
    ("another path seals", sized(100), lambda bench: bench.datapath.stop_sealing(PEER)),
    ("too long for the way", sized(1201), max_inner(1200)),
    ("IPv6 longer than any way must take", ipv6(INNER_HERE[6], INNER_THERE[6], bytes(1241)),
     max_inner(1200)),
    ("nothing", b"", nothing),
    ("IP version 5", b"\x55" + sized(100)[1:], nothing),
    ("an IPv4 header cut short", sized(100)[:19], nothing),
    ("an IPv6 header cut short", ipv6(INNER_HERE[6], INNER_THERE[6])[:39], nothing),
]  # fmt: skip


@pytest.mark.parametrize(
    ("packet", "before"), [pytest.param(*rest, id=name) for name, *rest in LEFT]
)
def test_left_to_the_daemon(bench: Bench, packet: bytes, before: Callable[[Bench], object]) -> None:
    before(bench)
    assert bench.leave(packet) == [packet]
    assert bench.udp.messages() == []
    assert bench.counted() == {}
    # Nothing was sent, whatever the timers are told.
    sent = bench.traffic()
    assert (sent.tx_packets, sent.last_sent) == (0, 0.0)


def test_what_is_left_acknowledges_nothing(bench: Bench) -> None:
    bench.datapath.set_usable(PEER, False)
    bench.peer.unacknowledged_since = 5.0
    bench.leave(sized(100))
    assert bench.traffic().unacknowledged_since == 5.0


@pytest.mark.parametrize("length", [1200, 1199])
def test_what_fits_the_way(bench: Bench, length: int) -> None:
    max_inner(1200)(bench)
    assert bench.leave(sized(length)) == []
    assert bench.leave(ipv6(INNER_HERE[6], INNER_THERE[6], bytes(1240))) == []
    assert len(bench.udp.messages()) == 2


def test_without_a_session_the_limit_is_what_the_way_says_now(bench: Bench) -> None:
    """Packets that wait for the first session are to fit as well."""
    bench.add_other("10.6.0.0/16")
    bench.ways.longest = 1200
    assert bench.datapath.max_inner(OTHER_PEER) == 1200
    bench.ways.longest = 1300
    bench.datapath.network_changed()
    assert bench.datapath.max_inner(OTHER_PEER) == 1300


def test_the_ways_are_asked_for_when_they_may_have_changed(bench: Bench) -> None:
    bench.datapath.set_endpoint(PEER, REMOTE[6])
    assert bench.ways.asked[-1] == REMOTE[6]
    before = len(bench.ways.asked)
    bench.leave(sized(100))
    assert len(bench.ways.asked) == before
    bench.datapath.network_changed()
    assert len(bench.ways.asked) == before + 1


def test_what_waits_is_sent_before_the_daemon_gets_one(bench: Bench) -> None:
    """Its answer, an ICMP error or a fragment, must not overtake them."""
    bench.tun.leaves(sized(100), sized(101), TO_ALL, sized(102))
    with bench.clock():
        left = bench.datapath.packets()
        assert next(left) == TO_ALL
        assert [counter for _, counter, _ in bench.texts()] == [0, 1]
        bench.send(sized(300))
        assert list(left) == []
    assert [(counter, len(text)) for _, counter, text in bench.texts()] == [(2, 304), (3, 112)]


def test_a_session_that_is_retired_between_two_packets(bench: Bench) -> None:
    bench.tun.leaves(sized(100), TO_ALL, sized(100), sized(101))
    with bench.clock():
        left = bench.datapath.packets()
        next(left)
        bench.datapath.retire(LOCAL_INDEX)
        assert list(left) == [sized(100), sized(101)]


# Many packets.


def calls(bench: Bench) -> list[tuple[int, int]]:
    """The messages of each system call, and the length of those that are not the last."""
    found = [(-(-len(data) // segment) if segment else 1, segment or len(data))
             for data, _, segment, _ in bench.udp.sent]  # fmt: skip
    bench.udp.sent.clear()
    return found


def test_equal_ones_go_together(bench: Bench) -> None:
    assert bench.leave(*[sized(100)] * 64) == []
    assert calls(bench) == [(64, 144)]
    bench.leave(*[sized(100)] * 65)
    assert calls(bench) == [(64, 144), (1, 144)]
    bench.leave(*[sized(1420)] * 50)
    assert calls(bench) == [(44, 1452), (6, 1452)]  # 65,000 bytes


def test_a_shorter_one_is_the_last(bench: Bench) -> None:
    bench.leave(sized(100), sized(101), sized(50), sized(100), sized(200), sized(200), sized(20))
    assert calls(bench) == [(3, 144), (1, 144), (3, 240)]


def test_what_differs_goes_by_itself(bench: Bench) -> None:
    bench.add_other("10.9.0.0/16")
    bench.install(LOCAL_INDEX + 1, OTHER_PEER)
    other = inner("10.1.0.1", "10.9.0.1", bytes(72))
    assert len(other) == 100
    bench.leave(sized(100), other, sized(100), sized(100, tos=2), sized(100, tos=2), sized(100))
    assert [(tos, to) for _, tos, _, to in bench.udp.sent] == [
        (0, REMOTE[4]), (0, REMOTE[6]), (0, REMOTE[4]), (2, REMOTE[4]), (0, REMOTE[4]),
    ]  # fmt: skip
    assert calls(bench) == [(1, 144), (1, 144), (1, 144), (2, 144), (1, 144)]


@given(st.lists(st.tuples(st.integers(20, 1500), st.integers(0, 3)), max_size=150))
@settings(max_examples=150, deadline=None, database=None)
def test_any_mixture(packets_: list[tuple[int, int]]) -> None:
    bench = Bench()
    wanted = [sized(length, tos=tos) for length, tos in packets_]
    assert bench.leave(*wanted) == []
    tos_of = []
    for data, tos, segment, _ in bench.udp.sent:
        count = -(-len(data) // segment) if segment else 1
        assert count <= 64
        assert len(data) <= 65000
        assert segment == 0 or count > 1
        tos_of += [tos] * count
    texts = bench.texts()
    assert [counter for _, counter, _ in texts] == list(range(len(wanted)))
    assert [text for *_, text in texts] == [
        packet + bytes(padded(len(packet)) - len(packet)) for packet in wanted
    ]
    assert tos_of == [tos for _, tos in packets_]
    assert bench.traffic().tx_packets == len(wanted)
    assert bench.traffic().tx_bytes == sum(padded(len(packet)) + 32 for packet in wanted)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.ENOPROTOOPT])
def test_one_by_one_where_they_cannot_go_together(bench: Bench, number: int) -> None:
    refuse(number)(bench)
    bench.leave(*[sized(100)] * 5, sized(50))
    assert calls(bench) == [(1, 144)] * 5 + [(1, 96)]
    assert bench.counted() == {}


def test_longer_than_the_way(bench: Bench) -> None:
    """The kernel fragments single ones."""
    bench.udp.longest = 500
    bench.leave(*[sized(1000)] * 5)
    assert calls(bench) == [(1, 1040)] * 5


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOBUFS, errno.ECONNREFUSED])
def test_no_refusal_goes_uncounted(bench: Bench, number: int) -> None:
    refuse(number, 100)(bench)
    bench.leave(*[sized(100)] * 5)
    assert bench.counted() == {"send_failed": 5}


def test_a_full_buffer_counts_all_of_them(bench: Bench) -> None:
    refuse(errno.EAGAIN, 2)(bench)
    bench.leave(*[sized(100)] * 5)
    assert bench.counted() == {"send_buffer_full": 5}
    assert len(bench.udp.waited) == 1


def test_a_buffer_that_stays_full_does_not_hold_the_daemon_up(bench: Bench) -> None:
    refuse(errno.EAGAIN, 1000)(bench)
    bench.leave(*(sized(100 + i % 2 * 50, tos=i % 4) for i in range(200)))
    # Other work gets its turn after the first that was waited for; the rest waits in the TUN.
    assert bench.counted() == {"send_buffer_full": 200 - len(bench.tun.waiting)}
    assert 100 < len(bench.tun.waiting) < 200
    assert sum(bench.udp.waited) <= 0.02


def test_no_counter_is_used_twice_whatever_fails(bench: Bench) -> None:
    """The first message is on its way when memory runs out."""
    send = FakeDestination.send
    failed: list[bool] = []

    def fail_once(*arguments: Any) -> None:
        send(*arguments)
        if not failed:
            failed.append(True)
            raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeDestination, "send", fail_once)
        with pytest.raises(MemoryError):
            bench.leave(sized(100), sized(50), sized(100))
        bench.leave(sized(100))
    counters = [counter for _, counter, _ in bench.texts()]
    assert len(counters) >= 2
    assert len(set(counters)) == len(counters)


# Super-packets.


def test_a_super_packet_is_cut(bench: Bench) -> None:
    whole = Segment(payload=bytes(14000), port=9, flags=ACK | PSH, source={4: "10.5.0.9"})
    out = whole.partial()
    # From here to there.
    out = out[:12] + out[16:20] + out[12:16] + out[20:]
    expected = [bytes(piece) for piece in pieces(whole, 1380)]
    expected = [one[:12] + one[16:20] + one[12:16] + one[20:] for one in expected]
    assert bench.leave(out, header=header(whole, 1380).encode()) == []
    assert calls(bench) == [(11, 1452)]
    bench.leave(out, header=header(whole, 1380).encode())
    assert [text[: len(one)] for (*_, text), one in zip(bench.texts(), expected, strict=True)] == (
        expected
    )


def test_a_super_packet_that_does_not_go_is_left_in_pieces(bench: Bench) -> None:
    whole = Segment(payload=bytes(3000))
    bench.allow(PEER, "10.1.0.0/16")
    max_inner(1200)(bench)
    left = bench.leave(whole.partial(), header=header(whole, 1300).encode())
    assert left == [bytes(piece) for piece in pieces(whole, 1300)]
    assert bench.udp.messages() == []
    assert bench.leave(whole.partial(), header=header(whole, 1160).encode()) == []


def test_a_missing_checksum_is_written(bench: Bench) -> None:
    bench.allow(PEER, "10.1.0.0/16")
    for size in (0, 1, 2, 1001):
        whole = Segment(payload=bytes(range(size % 256)))
        needs = Header(NEEDS_CHECKSUM, 0, 0, 0, 20, 16).encode()
        assert bench.leave(whole.partial(), header=needs) == []
        ((*_, text),) = bench.texts()
        assert text == pad(bytes(whole))


@pytest.mark.parametrize(("length", "size", "lost"), [
    (100, 0, 1), (40, 100, 1), (1040, 100, 10), (1041, 100, 11),
])  # fmt: skip
def test_a_super_packet_that_makes_no_sense(
    bench: Bench, length: int, size: int, lost: int
) -> None:
    """It counts as the packets that it was to be."""
    nonsense = Header(NEEDS_CHECKSUM, virtio_net.TCPV4, 40, size, 19, 16).encode()
    assert bench.leave(sized(length), header=nonsense) == []
    assert bench.counted() == {"send_failed": lost}
    assert bench.traffic().last_sent == 0.0


# Counters.


@pytest.mark.parametrize("start", [2**16 - 2, 2**32 - 2, REJECT_AFTER_MESSAGES - 4])
def test_counters_on_their_way_up(bench: Bench, start: int) -> None:
    bench.session.send_counter = start
    bench.leave(*[sized(100)] * 4)
    assert [counter for _, counter, _ in bench.texts()] == list(range(start, start + 4))
    assert bench.datapath.sessions()[0].send_counter == start + 4


def test_no_counter_beyond_the_limit(bench: Bench) -> None:
    bench.session.send_counter = REJECT_AFTER_MESSAGES - 2
    bench.leave(*[sized(100)] * 5)
    assert [c for _, c, _ in bench.texts()] == [REJECT_AFTER_MESSAGES - i for i in (2, 1)]
    assert bench.counted() == {"expired_send": 3}
    first = bench.traffic()
    assert first.tx_packets == 2
    bench.now += 1
    bench.leave(sized(100))
    bench.send(b"")
    assert bench.texts() == []
    assert bench.counted() == {"expired_send": 5}
    assert bench.traffic() == first


@pytest.mark.parametrize("together", [1, 3, 8])
def test_told_once_that_messages_are_used(together: int) -> None:
    bench = Bench(rekey_after_messages=3)
    told: list[Event] = []
    for _ in range(0, 8, together):
        bench.leave(*[sized(100)] * together)
        told += bench.events()
    assert told == [MessagesUsed(PEER, LOCAL_INDEX)]
    bench = Bench(rekey_after_messages=3)
    bench.send(*[b""] * 3)
    assert bench.events() == []
    bench.send(b"")
    assert bench.events() == [MessagesUsed(PEER, LOCAL_INDEX)]


# Figures.


def test_traffic(bench: Bench) -> None:
    bench.peer.unacknowledged_since = 1.0
    bench.send(b"")
    keepalive = bench.traffic()
    assert (keepalive.tx_packets, keepalive.tx_bytes) == (1, 32)
    assert keepalive.last_sent == bench.now
    assert (keepalive.unacknowledged_since, keepalive.last_data_sent) == (0.0, 0.0)
    assert keepalive.unanswered_since == 0.0

    bench.now += 1
    bench.leave(sized(100))
    first = bench.traffic()
    assert (first.tx_packets, first.tx_bytes) == (2, 32 + 144)
    assert first.last_data_sent == first.last_sent == bench.now
    assert first.unanswered_since == bench.now

    bench.now += 1
    bench.leave(sized(100), sized(200))
    second = bench.traffic()
    assert second.last_data_sent == second.last_sent == bench.now
    assert second.unanswered_since == bench.now - 1
    assert (second.rx_packets, second.rx_bytes, second.last_received) == (0, 0, 0.0)

    bench.now += 1
    bench.send(b"")
    assert bench.traffic().last_data_sent == bench.now - 1


def test_the_longest_packet(bench: Bench) -> None:
    """Longer than any datagram: refused, and counted."""
    packet = ipv4(INNER_HERE[4], INNER_THERE[4], bytes(65515), protocol=99)
    assert bench.leave(packet) == []
    assert bench.counted() == {"send_failed": 1}
    packet = packets.ipv4(INNER_HERE[4], INNER_THERE[4], bytes(65440), protocol=99)
    bench.leave(packet, packet)
    assert len(bench.udp.messages()) == 2


def test_the_first_256_at_once(bench: Bench) -> None:
    """Other work gets its turn."""
    bench.leave(*[sized(100)] * 300)
    assert len(bench.udp.messages()) == 256
    bench.leave()
    assert len(bench.udp.messages()) == 44
