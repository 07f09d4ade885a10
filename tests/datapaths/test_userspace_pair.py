"""Two userspace datapaths with a real TUN and real sockets: what goes through joined, and counters
near their limits."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
from collections.abc import Callable

import pytest

from datapaths.datapath_ends import USERSPACE, End, two_ends
from ebpfvpn.datapath import MessagesUsed
from ebpfvpn.userspace.session import Session
from ebpfvpn.wire import REJECT_AFTER_MESSAGES
from kernel.nodes import OUTER, OUTER6, PEER, wait_for

INNER = {4: "10.66.0.2", 6: "fd66::2"}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
UDP_SEGMENT = 103


def session(end: End) -> Session:
    assert end.userspace is not None
    (found,) = end.userspace._sessions.values()
    return found


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def transfer(one: End, other: End, version: int, data: bytes) -> str:
    """By TCP; returns the digest of what came."""
    with other.ns.call(socket.socket, FAMILIES[version]) as listening:
        listening.settimeout(30)
        listening.bind((INNER[version], 0))
        listening.listen()
        with one.ns.call(socket.socket, FAMILIES[version]) as sender:
            sender.settimeout(30)
            sender.connect((INNER[version], listening.getsockname()[1]))

            def send() -> None:
                sender.sendall(data)
                sender.shutdown(socket.SHUT_WR)

            sending = in_thread(send)
            accepted, _ = listening.accept()
            digest = hashlib.sha256()
            with accepted:
                accepted.settimeout(30)
                while got := accepted.recv(1 << 16):
                    digest.update(got)
            sending.join(30)
    return digest.hexdigest()


@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["over4", "over6"])
@pytest.mark.parametrize("version", [4, 6])
def test_tcp(version: int, outer: tuple[str, str]) -> None:
    data = random.Random(version).randbytes(8 << 20)
    with two_ends(USERSPACE, outer=outer) as (one, other):
        assert transfer(one, other, version, data) == hashlib.sha256(data).hexdigest()
        counted = {k: n for k, n in other.datapath.drops().items() if n}
        assert counted == {}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1, 5, 100, 1001, 1372])
def test_udp_that_is_sent_as_one(version: int, size: int) -> None:
    """By UDP_SEGMENT: each datagram arrives, the last, shorter one too, with a right checksum (the
    receiver's kernel looks at it)."""
    whole = random.Random(size).randbytes(size * 20 + size // 2)
    with (
        two_ends(USERSPACE) as (one, other),
        other.ns.call(socket.socket, FAMILIES[version], socket.SOCK_DGRAM) as receiver,
        one.ns.call(socket.socket, FAMILIES[version], socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((INNER[version], 0))
        receiver.settimeout(10)
        sender.connect(receiver.getsockname()[:2])
        sender.setsockopt(17, UDP_SEGMENT, size)
        for start in range(0, len(whole), 15 * size):
            sender.send(whole[start : start + 15 * size])
        expected = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert [receiver.recv(2000) for _ in expected] == expected


def test_past_2_to_the_32() -> None:
    boundary = 2**32
    with two_ends(USERSPACE) as (one, other):
        for end in (one, other):
            session(end).send_counter = boundary - 10
            session(end).rekey_at = boundary + 5
        for _ in range(5):
            one.ping("10.66.0.2")
        for end in (one, other):
            (state,) = end.datapath.sessions()
            assert state.send_counter == state.receive_highest == boundary + 15
            told = end.event(MessagesUsed(PEER, state.session.local_index))
            assert len([event for event in told if isinstance(event, MessagesUsed)]) == 1
            assert {k: n for k, n in end.datapath.drops().items() if n} == {}
            found = end.datapath.traffic()[PEER]
            assert (found.replayed, found.late) == (0, 0)


def test_the_limit_of_messages() -> None:
    """A clean stop: no counter is used twice, nothing goes under one beyond it, all is counted."""
    with two_ends(USERSPACE) as (one, other):
        session(one).send_counter = REJECT_AFTER_MESSAGES - 5
        one.ping("10.66.0.2")
        assert session(other).window.highest == REJECT_AFTER_MESSAGES
        before = one.datapath.traffic()[PEER]
        for refused in range(1, 4):
            one.ping_in_vain("10.66.0.2")
            one.datapath.send(PEER, [])
            wait_for(lambda refused=refused: one.datapath.drops()["expired_send"] == refused)  # type: ignore[misc]
        assert session(one).send_counter == REJECT_AFTER_MESSAGES
        assert one.datapath.traffic()[PEER] == before
        # The other direction goes on.
        other.datapath.send(PEER, [b""])
        wait_for(lambda: one.datapath.traffic()[PEER].rx_packets == before.rx_packets + 1)
        assert other.datapath.drops()["expired_receive"] == 0
