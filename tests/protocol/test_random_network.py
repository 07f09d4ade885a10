"""Whatever the network loses, delays, doubles or makes up: the books stay right, and sessions come
up when it works again."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn import actions, wire
from ebpfvpn.device import Device
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.timers import Timer
from protocol.harness import Network, Node

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob", "carol", "wait", "replay", "forge", "restart"]),
        st.sampled_from([0.0, 0.3, 1.0]),  # lost
        st.sampled_from([0.01, 0.5, 8.0]),  # longest delay
        st.sampled_from([0.05, 1.0, 7.0, 61.0, 181.0]),  # seconds
    ),
    max_size=40,
)


def check_books(device: Device) -> None:
    indices = []
    for peer in device._peers.values():
        indices += [pair.local_index for pair in peer.keypairs]
        if peer.initiation:
            indices.append(peer.initiation.local_index)
            assert Timer.RETRANSMIT_HANDSHAKE in peer.timers.deadlines
        if list(peer.keypairs):
            assert Timer.EXPIRE_KEYPAIR in peer.timers.deadlines
    assert len(indices) == len(set(indices))
    assert 0 not in indices
    assert set(indices) == set(device._by_index)
    deadlines = [peer.timers.next() for peer in device._peers.values()]
    assert device.next_deadline() == min(
        (deadline for deadline in deadlines if deadline is not None), default=None
    )


def check_sessions(node: Node) -> None:
    installed = [a.keypair.session.local_index for a in node.done if isinstance(a, actions.Install)]
    retired = [a.local_index for a in node.done if isinstance(a, actions.Retire)]
    assert len(installed) == len(set(installed))
    assert len(retired) == len(set(retired))
    # The harness's datapath has exactly what the protocol believes it has.
    pairs = [pair for peer in node.device._peers.values() for pair in peer.keypairs]
    assert {pair.local_index for pair in pairs} == set(node.sessions)
    assert set(installed) - set(retired) == set(node.sessions)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(0, 2**32))
def test_the_books_stay_right_and_sessions_come_up(
    steps: list[tuple[str, float, float, float]], seed: int
) -> None:
    chance = random.Random(seed)
    network = Network()
    alice, bob, carol = nodes = [Node(network, number) for number in (1, 2, 3)]
    alice.add(bob, 1, persistent_keepalive=25)
    alice.add(carol, 2)
    bob.add(alice)
    carol.add(alice)
    seen: list[tuple[bytes, Endpoint]] = []

    for event, lost, delay, seconds in steps:

        def is_lost(data: bytes, source: Endpoint, lost: float = lost) -> bool:
            seen.append((data, source))
            return chance.random() < lost

        network.lost = is_lost
        network.delay = lambda delay=delay: chance.uniform(0.001, delay)  # type: ignore[misc]
        match event:
            case "alice":
                alice.send(b"data", chance.choice([1, 2]))
            case "bob":
                bob.send(b"data")
            case "carol":
                carol.send(b"data")
            case "replay" if seen:
                data, source = chance.choice(seen)
                chance.choice(nodes).receive(data, source)
            case "forge" if handshakes := [item for item in seen if item[0][0] != wire.Data.TYPE]:
                data, source = chance.choice(handshakes)
                message = bytearray(data)
                message[chance.randrange(1, len(message))] ^= 1 << chance.randrange(8)
                chance.choice(nodes).receive(bytes(message), source)
            case "restart":
                chance.choice(nodes).restart()
        network.run(seconds)
        for node in nodes:
            check_books(node.device)
            check_sessions(node)

    network.lost = lambda data, source: False
    network.delay = lambda: 0.01
    # Longer than any message is delayed, or any session that only one end still has is used.
    network.run(wire.REJECT_AFTER_TIME + 10)
    for node in nodes:
        node.received.clear()
    bob.send(b"last")
    carol.send(b"last")
    network.run(11)
    assert alice.received.count(b"last") == 2
    alice.send(b"last", 1)
    alice.send(b"last", 2)
    network.run(11)
    assert bob.received == carol.received == [b"last"]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=160), st.sampled_from([b"", b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"]))
def test_nothing_that_arrives_raises(data: bytes, kind: bytes) -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob)
    alice.device.want_session(1, network.now)
    alice.device.actions()
    length = {b"\1": 148, b"\2": 92, b"\3": 64}.get(kind[:1], len(data))
    message = (kind + data).ljust(length, b"\0")[:length]
    alice.device.receive(message, bob.address, network.now)
    assert sum(alice.device.refused.values()) == 1
    assert alice.device.actions() == []
