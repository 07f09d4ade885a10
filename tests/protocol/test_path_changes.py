"""Another datapath takes over: sessions can no longer be sealed with, or new ones are wanted."""

from __future__ import annotations

import pytest

from ebpfvpn import actions, wire
from protocol.harness import Network, Node, pair


def talking(**options: object) -> tuple[Network, Node, Node]:
    """Two nodes with a session that alice initiated, and data in both directions, a while ago."""
    network, alice, bob = pair(**options)
    alice.send(b"one")
    network.run(1)
    bob.send(b"two")
    network.run(wire.REKEY_TIMEOUT)
    return network, alice, bob


def lose_sealing(node: Node) -> list[int]:
    """What a datapath that only opens has left, and what the protocol is told."""
    for data in node.peers.values():
        data.current = data.next = 0
    lost = node.device.sealing_lost(node.network.now)
    assert node.device.actions() == []
    return lost


def renew(node: Node, *numbers: int) -> None:
    for number in numbers:
        node.device.renew(number, node.network.now)
    node.act()


@pytest.mark.parametrize("who", [0, 1], ids=["initiator", "responder"])
def test_a_new_session_is_made_and_nothing_is_lost(who: int) -> None:
    network, alice, bob = talking()
    node, other = ((alice, bob), (bob, alice))[who]
    before = node.device.status(1).current
    assert lose_sealing(node) == [1]
    assert not node.device.has_session(1, network.now)
    status = node.device.status(1)
    assert (status.previous, status.current, status.next) == (None, None, None)
    assert status.fading == (before,)
    # The other end knows nothing of it: what it seals meanwhile is opened.
    other.send(b"meanwhile")
    renew(node, 1)
    node.send(b"waits")
    network.run(0.5)
    assert node.received[-1] == b"meanwhile"
    assert other.received[-1] == b"waits"
    assert node.device.has_session(1, network.now)
    assert before in node.device.status(1).fading


def test_only_peers_that_had_a_session_are_told() -> None:
    network = Network()
    alice, bob, carol, dave = (Node(network, number) for number in (1, 2, 3, 4))
    for number, other in enumerate((bob, carol, dave), 1):
        alice.add(other, number)
        other.add(alice)
    alice.send(b"to bob", 1)
    network.run(1)
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    dave.send(b"lost")
    network.run(1)
    # One is in use, one was never there, one waits for its first packet.
    assert alice.device.status(3).next is not None
    assert lose_sealing(alice) == [1, 3]
    assert lose_sealing(alice) == []


def test_a_session_that_is_over_is_not_lost() -> None:
    network, alice, _ = talking()
    network.now += wire.REJECT_AFTER_TIME
    assert lose_sealing(alice) == []


def test_a_session_that_waited_for_its_first_packet_does_not_take_over() -> None:
    network, alice, bob = pair()
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    alice.send(b"lost")
    network.run(1)
    pending = bob.device.status(1).next
    assert pending
    assert lose_sealing(bob) == [1]
    network.lost = lambda data, source: False
    alice.send(b"one")
    network.run(1)
    assert bob.received == [b"one"]
    bob.device.confirmed(1, pending.local_index, network.now)
    assert bob.device.status(1).current is None
    assert bob.device.status(1).fading == (pending,)


def test_what_faded_expires_in_its_time() -> None:
    network, alice, bob = talking()
    (index,) = alice.sessions
    lose_sealing(alice)
    renew(alice, 1)
    network.run(1)
    assert set(alice.sessions) > {index}
    network.run(wire.REJECT_AFTER_TIME)
    assert index not in alice.sessions
    assert actions.Retire(index) in alice.done
    # The new one went, too, and nobody asked for another.
    assert alice.sessions == bob.sessions == {}


def test_data_that_comes_meanwhile_starts_no_rekey_of_what_is_lost() -> None:
    """Nothing is sealed, so nothing is used up; the peer must not be asked twice."""
    network, alice, bob = talking()
    lose_sealing(alice)
    bob.send(b"three")
    network.run(1)
    alice.device.messages_used(1, next(iter(alice.sessions)), network.now)
    alice.act()
    assert alice.initiations() == 1
    alice.send(b"four")
    network.run(1)
    assert alice.initiations() == 2
    assert bob.received[-1] == b"four"


def test_renew_shakes_hands_with_a_session_there() -> None:
    network, alice, bob = talking()
    before = alice.device.status(1).current
    renew(alice, 1)
    network.run(1)
    after = alice.device.status(1)
    assert alice.initiations() == 2
    assert after.current != before
    assert after.previous == before
    renew(bob, 1)
    network.run(wire.REKEY_TIMEOUT + 1)
    assert bob.initiations() == 1


def test_renew_waits_for_the_time_between_initiations() -> None:
    network, alice, _ = pair()
    alice.send(b"one")
    network.run(1)
    renew(alice, 1)
    renew(alice, 1)
    assert alice.initiations() == 1
    network.run(wire.REKEY_TIMEOUT)
    assert alice.initiations() == 2
    network.run(2 * wire.REKEY_TIMEOUT)
    assert alice.initiations() == 2


def test_renew_goes_on_with_a_handshake_that_is_under_way() -> None:
    network, alice, bob = pair()
    network.lost = lambda data, source: True
    alice.send(b"one")
    network.run(60)
    sent = alice.initiations()
    renew(alice, 1)
    assert alice.initiations() == sent
    # As for any new reason, it is tried for so long from now on.
    network.run(wire.REKEY_ATTEMPT_TIME - 10)
    network.lost = lambda data, source: False
    network.run(10)
    assert bob.received == [b"one"]


def test_renew_of_peers_that_are_not_there_or_cannot_be_reached() -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob, reachable=False)
    renew(alice, 1, 2)
    assert alice.device.actions() == []
    network.run(200)
    assert alice.initiations() == 0


def test_keepalives_make_a_session_where_sealing_was_lost() -> None:
    network, alice, bob = talking(persistent_keepalive=25)
    lose_sealing(alice)
    network.run(30)
    assert alice.device.has_session(1, network.now) or bob.device.has_session(1, network.now)
    alice.send(b"three")
    network.run(1)
    assert bob.received[-1] == b"three"
