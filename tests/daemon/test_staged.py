from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ebpfvpn import staged
from ebpfvpn.staged import Staged

PEERS = st.integers(0, 3)


def test_packets_come_out_in_order() -> None:
    queue = Staged()
    packets = [bytes([i]) for i in range(10)]
    for packet in packets:
        queue.add(1, packet)
    queue.add(2, b"other")
    assert queue.waiting(1)
    assert queue.take(1) == packets
    assert not queue.waiting(1)
    assert queue.take(1) == []
    assert queue.take(2) == [b"other"]


def test_the_oldest_goes_when_a_peer_has_too_many() -> None:
    queue = Staged()
    for i in range(staged.PER_PEER + 3):
        queue.add(1, i.to_bytes(2, "big"))
    kept = queue.take(1)
    assert [int.from_bytes(packet, "big") for packet in kept] == list(range(3, staged.PER_PEER + 3))
    assert queue.dropped == 3


def test_many_peers_together_have_a_limit() -> None:
    queue = Staged()
    peers = staged.IN_ALL // staged.PER_PEER
    for peer in range(peers + 1):
        for _ in range(staged.PER_PEER):
            queue.add(peer, b"x")
    assert queue.dropped == staged.PER_PEER
    assert sum(len(queue.take(peer)) for peer in range(peers + 1)) == staged.IN_ALL
    queue.add(0, b"again")
    assert queue.take(0) == [b"again"]


def test_dropping_counts() -> None:
    queue = Staged()
    queue.add(1, b"a")
    queue.add(1, b"b")
    queue.drop(1)
    queue.drop(1)
    assert queue.dropped == 2
    assert not queue.waiting(1)


class Model(RuleBasedStateMachine):
    """Against plain lists, with limits so small that they are met."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = staged.PER_PEER, staged.IN_ALL
        staged.PER_PEER, staged.IN_ALL = 3, 5
        self.queue = Staged()
        self.lists: dict[int, list[bytes]] = {}
        self.number = 0
        self.dropped = 0

    def teardown(self) -> None:
        staged.PER_PEER, staged.IN_ALL = self.kept

    @rule(peer=PEERS)
    def add(self, peer: int) -> None:
        packet = self.number.to_bytes(4, "big")
        self.number += 1
        self.queue.add(peer, packet)
        waiting = self.lists.setdefault(peer, [])
        if len(waiting) == 3:
            waiting.pop(0)
            self.dropped += 1
        if sum(map(len, self.lists.values())) == 5:
            self.dropped += 1
        else:
            waiting.append(packet)

    @rule(peer=PEERS)
    def take(self, peer: int) -> None:
        assert self.queue.take(peer) == self.lists.pop(peer, [])

    @rule(peer=PEERS)
    def drop(self, peer: int) -> None:
        self.queue.drop(peer)
        self.dropped += len(self.lists.pop(peer, []))

    @invariant()
    def counts(self) -> None:
        assert self.queue.dropped == self.dropped
        for peer in range(4):
            assert self.queue.waiting(peer) == (peer in self.lists)


TestModel = Model.TestCase
