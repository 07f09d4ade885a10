"""A new daemon goes on with the sessions that an earlier one left in the datapath."""

from __future__ import annotations

import pytest

from ebpfvpn import actions, wire
from protocol.harness import START, Network, Node, pair


def talking(**options: float) -> tuple[Network, Node, Node]:
    """Two nodes with a session that alice initiated, and data in both directions."""
    network = Network()
    alice, bob = Node(network, 1, **options), Node(network, 2, **options)
    alice.add(bob)
    bob.add(alice)
    alice.send(b"one")
    network.run(1)
    bob.send(b"two")
    network.run(1)
    assert (alice.received, bob.received) == ([b"two"], [b"one"])
    return network, alice, bob


def keep_talking(network: Network, seconds: int, *nodes: Node) -> int:
    """Each node sends ten packets a second; how many arrived nowhere."""
    sent = 0
    before = sum(len(node.received) for node in network.nodes.values())
    for _ in range(10 * seconds):
        for node in nodes:
            node.send(b"data")
            sent += 1
        network.run(0.1)
    return sent - (sum(len(node.received) for node in network.nodes.values()) - before)


def test_sessions_go_on() -> None:
    network, alice, bob = talking()
    for node in (alice, bob):
        before = node.device.status(1)
        node.restart()
        after = node.device.status(1)
        assert (after.current, after.next) == (before.current, before.next)
        assert after.endpoint == before.endpoint
        assert after.latest_handshake == pytest.approx(before.latest_handshake, abs=0.1)
    assert keep_talking(network, 60, alice, bob) == 0
    assert alice.initiations() + bob.initiations() == 1


@pytest.mark.parametrize("who", [0, 1], ids=["initiator", "responder"])
@pytest.mark.parametrize("after", [1, 100, 117])
def test_the_rekey_is_in_time(who: int, after: int) -> None:
    network, alice, bob = talking()
    assert keep_talking(network, after, alice, bob) == 0
    (alice, bob)[who].restart()
    assert keep_talking(network, 200 - after, alice, bob) == 0
    assert alice.initiations() == 2
    current = alice.current()
    assert current
    assert current.session.created == pytest.approx(START + 120, abs=2)


def test_restarts_again_and_again_cost_nothing() -> None:
    network, alice, bob = talking(rekey_after_time=10.0)
    for number in range(30):
        (alice, bob)[number % 2].restart()
        assert keep_talking(network, 3, alice, bob) == 0
    assert alice.initiations() + bob.initiations() >= 8


def test_an_unconfirmed_session_is_confirmed_later() -> None:
    network, alice, bob = pair()
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    alice.send(b"lost")
    network.run(1)
    pending = bob.device.status(1).next
    assert pending
    bob.restart()
    assert bob.device.status(1).next == pending
    assert bob.device.status(1).latest_handshake is None
    network.lost = lambda data, source: False
    alice.send(b"one")
    network.run(1)
    assert bob.received == [b"one"]
    assert bob.device.status(1).current == pending


def test_sessions_that_expired_meanwhile_are_retired() -> None:
    network, alice, bob = talking()
    network.now += wire.REJECT_AFTER_TIME
    alice.restart()
    assert actions.SessionReady(1, confirm=False) not in alice.done[-1:]
    network.run(1)
    assert alice.sessions == {}
    alice.send(b"three")
    network.run(1)
    assert bob.received == [b"one", b"three"]


def test_a_recorded_initiation_stays_refused() -> None:
    network, alice, bob = pair()
    recorded: list[bytes] = []
    network.lost = lambda data, source: recorded.append(data) or False  # type: ignore[func-returns-value]
    alice.send(b"one")
    network.run(1)
    bob.restart()
    bob.receive(recorded[0], alice.address)
    assert bob.device.refused == {"replayed initiation": 1}
    assert bob.device.status(1).next is None
