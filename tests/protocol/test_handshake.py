"""Two devices shake hands: who sends what when, who is refused, and which sessions there are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import pytest

from ebpfvpn import actions, tai64n, wire
from ebpfvpn.device import Device
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.noise import PrivateKey
from protocol.harness import START, Network, Node, pair


def initiation_of(node: Node, number: int = 1) -> bytes:
    """The message of a new handshake, which nobody else gets to see."""
    node.device.want_session(number, node.network.now)
    sent = [action for action in node.device.actions() if isinstance(action, actions.Send)]
    return sent[-1].data


def refused(node: Node, data: bytes, source: Endpoint) -> str:
    """The reason for which the message is refused; nothing else may come of it."""
    before = node.device.refused.copy()
    node.device.receive(data, source, node.network.now)
    assert node.device.actions() == []
    (reason,) = node.device.refused - before
    return reason


def test_first_data_shakes_hands_and_is_then_delivered_in_order() -> None:
    network, alice, bob = pair()
    alice.send(b"one")
    alice.send(b"two")
    network.run(1)
    assert bob.received == [b"one", b"two"]
    assert alice.initiations() == 1
    kinds = [type(action).__name__ for action in alice.done]
    assert kinds == ["Send", "EndpointMoved", "Install", "SessionReady"]
    kinds = [type(action).__name__ for action in bob.done]
    assert kinds == ["TimestampReceived", "EndpointMoved", "Install", "Send", "SessionReady"]


def test_both_ends_can_send_afterwards() -> None:
    network, alice, bob = pair()
    alice.send(b"one")
    network.run(1)
    bob.send(b"two")
    network.run(1)
    assert alice.received == [b"two"]
    assert bob.initiations() == 0


def test_the_responder_seals_only_after_the_first_packet() -> None:
    network, alice, bob = pair()
    network.lost = lambda data, source: data[0] == wire.Data.TYPE
    alice.send(b"one")
    network.run(1)
    status = bob.device.status(1)
    assert status.next is not None
    assert status.current is None
    network.lost = lambda data, source: False
    alice.send(b"two")
    network.run(1)
    status = bob.device.status(1)
    assert status.next is None
    assert status.current is not None
    assert not status.current.initiator
    assert status.latest_handshake == pytest.approx(START + 1, abs=0.1)


def test_who_has_nothing_to_send_confirms_with_a_keepalive() -> None:
    network, alice, bob = pair()
    alice.device.want_session(1, network.now)
    alice.act()
    network.run(1)
    assert bob.current()
    assert bob.received == []


def test_a_preshared_key_must_be_the_same() -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob, preshared_key=b"a" * 32)
    bob.add(alice, preshared_key=b"b" * 32)
    alice.send(b"one")
    network.run(1)
    assert alice.device.refused == {"authentication failed": 1}
    assert not alice.sessions
    network, alice, bob = pair(preshared_key=b"a" * 32)
    alice.send(b"one")
    network.run(1)
    assert bob.received == [b"one"]


def test_both_at_once_come_together() -> None:
    network, alice, bob = pair()
    alice.send(b"one")
    bob.send(b"two")
    network.run(1)
    assert (alice.received, bob.received) == ([b"two"], [b"one"])


def test_an_unanswered_initiation_is_sent_again_with_jitter_and_then_given_up() -> None:
    network, alice, _ = pair()
    times: list[float] = []
    messages: set[bytes] = set()

    def lost(data: bytes, source: Endpoint) -> bool:
        times.append(network.now)
        messages.add(data)
        return True

    network.lost = lost
    alice.send(b"one")
    network.run(200)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert all(5.0 <= gap <= 5.334 for gap in gaps)
    assert len({round(gap, 3) for gap in gaps}) > 5
    assert len(times) == len(messages) == 18
    assert alice.took(actions.GaveUp) == [actions.GaveUp(1)]
    assert alice.queues[1] == []
    assert alice.device.next_deadline() is None
    assert not alice.device._by_index


def test_new_data_starts_the_attempt_anew() -> None:
    network, alice, _ = pair()
    network.lost = lambda data, source: True
    alice.send(b"one")
    network.run(80)
    alice.send(b"two")
    network.run(80)
    assert not alice.took(actions.GaveUp)
    network.run(20)
    assert alice.took(actions.GaveUp)
    alice.send(b"three")
    assert alice.device.status(1).attempts == alice.initiations()


def test_wishes_do_not_multiply_initiations() -> None:
    network, alice, _ = pair()
    network.lost = lambda data, source: True
    for _ in range(200):
        alice.send(b"data")
        network.run(0.1)
    assert alice.initiations() <= 4


def test_after_a_response_our_own_initiation_waits() -> None:
    network, alice, bob = pair()
    network.lost = lambda data, source: data[0] == wire.Response.TYPE
    alice.send(b"one")
    network.run(1)
    bob.send(b"two")
    assert bob.initiations() == 0
    network.lost = lambda data, source: False
    network.run(6)
    assert alice.received == [b"two"]


def test_without_an_endpoint_nothing_happens_until_there_is_one() -> None:
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob, reachable=False)
    bob.add(alice)
    alice.send(b"one")
    network.run(10)
    assert alice.done == []
    alice.device.set_endpoint(1, bob.address)
    alice.send(b"two")
    network.run(1)
    assert bob.received == [b"one", b"two"]


def test_an_endpoint_is_learned_from_an_authentic_message_only() -> None:
    network, alice, bob = pair()
    elsewhere = Endpoint(IPv4Address("198.51.100.7"), 4242, IPv4Address("192.0.2.2"), 3)
    message = initiation_of(alice)
    bob.device.receive(message[:-20] + bytes(20), elsewhere, network.now)
    assert bob.device.status(1).endpoint == alice.address
    bob.device.receive(message, elsewhere, network.now)
    assert bob.device.status(1).endpoint == elsewhere
    _, moved, _, sent = bob.device.actions()
    assert moved == actions.EndpointMoved(1, elsewhere)
    assert isinstance(sent, actions.Send)
    assert sent.endpoint == elsewhere


def test_a_silent_peer_makes_us_forget_our_local_address() -> None:
    network, alice, bob = pair()
    alice.device.set_endpoint(1, replace(bob.address, local=IPv4Address("192.0.2.99"), ifindex=2))
    network.lost = lambda data, source: True
    alice.send(b"one")
    network.run(6)
    assert alice.took(actions.EndpointMoved) == [actions.EndpointMoved(1, bob.address)]


def test_the_device_of_a_link_local_endpoint_is_not_forgotten() -> None:
    network, alice, _ = pair()
    there = Endpoint(IPv6Address("fe80::2"), 51820, IPv6Address("fe80::1"), 2)
    alice.device.set_endpoint(1, there)
    network.lost = lambda data, source: True
    alice.send(b"one")
    network.run(20)
    assert alice.took(actions.EndpointMoved) == [
        actions.EndpointMoved(1, replace(there, local=None))
    ]


def test_a_replayed_initiation_is_refused() -> None:
    network, alice, bob = pair()
    message = initiation_of(alice)
    bob.device.receive(message, alice.address, network.now)
    bob.device.actions()
    network.now += 100
    elsewhere = replace(alice.address, port=1)
    assert refused(bob, message, elsewhere) == "replayed initiation"
    assert bob.device.status(1).endpoint == alice.address


def test_an_older_initiation_is_refused() -> None:
    network, alice, bob = pair()
    older = initiation_of(alice)
    network.now += 10
    alice.device.advance(network.now)
    (newer,) = (action for action in alice.device.actions() if isinstance(action, actions.Send))
    bob.device.receive(newer.data, alice.address, network.now)
    bob.device.actions()
    network.now += 1
    assert refused(bob, older, alice.address) == "replayed initiation"


def test_initiations_of_a_peer_are_limited() -> None:
    network, alice, bob = pair()
    messages = [initiation_of(alice)]
    network.now += 10
    alice.device.advance(network.now)
    messages += [sent.data for sent in alice.device.actions() if isinstance(sent, actions.Send)]
    bob.device.receive(messages[0], alice.address, network.now)
    bob.device.actions()
    network.now += 0.01
    assert refused(bob, messages[1], alice.address) == "too many initiations from a peer"
    network.now += 0.011
    bob.device.receive(messages[1], alice.address, network.now)
    assert bob.device.actions()


def test_a_clock_that_is_set_back_is_no_replay() -> None:
    network = Network()
    bob = Node(network, 2)
    unix = [2_000_000_000, 1_000_000_000]
    private = PrivateKey(b"a" * 32)
    alice = Device(b"a" * 32, tai64n=lambda: tai64n.encode(unix.pop(0) * 10**9))
    alice.add_peer(1, bob.public_key)
    alice.set_endpoint(1, bob.address)
    bob.device.add_peer(1, private.public)
    for _ in range(2):
        alice.want_session(1, network.now)
        alice.advance(network.now)
        (sent,) = (action for action in alice.actions() if isinstance(action, actions.Send))
        bob.device.receive(sent.data, bob.address, network.now)
        network.now += 6
    assert not bob.device.refused


def test_a_response_is_taken_once_and_only_to_the_last_initiation() -> None:
    network, alice, bob = pair()
    first = initiation_of(alice)
    bob.device.receive(first, alice.address, network.now)
    (response,) = (sent for sent in bob.device.actions() if isinstance(sent, actions.Send))
    network.now += 6
    alice.device.advance(network.now)
    alice.device.actions()
    assert refused(alice, response.data, bob.address) == "unknown index"

    network, alice, bob = pair()
    bob.device.receive(initiation_of(alice), alice.address, network.now)
    (response,) = (sent for sent in bob.device.actions() if isinstance(sent, actions.Send))
    alice.device.receive(response.data, bob.address, network.now)
    assert alice.device.actions()
    assert refused(alice, response.data, bob.address) == "unknown index"


def test_strangers_and_garbage_are_refused_by_reason() -> None:
    network, alice, bob = pair()
    stranger = Node(network, 3)
    stranger.add(bob)
    assert refused(bob, b"", alice.address) == "malformed message"
    assert refused(bob, b"\5" + bytes(147), alice.address) == "malformed message"
    assert refused(bob, wire.Data(1, 0, bytes(16)).encode(), alice.address) == "data message"
    assert refused(bob, b"\1" + bytes(147), alice.address) == "mac1 is wrong"
    assert refused(bob, initiation_of(stranger), stranger.address) == "unknown peer"
    cookie = wire.CookieReply(1, bytes(24), bytes(32)).encode()
    assert refused(bob, cookie, alice.address) == "unknown index"
    assert sum(bob.device.refused.values()) == 6


def test_low_order_keys_our_own_and_known_ones_cannot_be_added() -> None:
    network, alice, bob = pair()
    for key in (bytes(32), alice.public_key, bob.public_key):
        with pytest.raises(ValueError):
            alice.device.add_peer(9, key)
    with pytest.raises(ValueError):
        alice.device.add_peer(1, Node(network, 5).public_key)


def test_what_is_told_of_peers_that_are_not_there() -> None:
    network, alice, _ = pair()
    alice.device.want_session(9, network.now)
    alice.device.confirmed(9, 1, network.now)
    alice.device.messages_used(9, 1, network.now)
    alice.device.traffic(9, replace(alice.peers[1].traffic, tx_packets=1), 0, network.now)
    assert alice.device.actions() == []


def test_who_has_a_session_is_told_so_once() -> None:
    network, alice, _ = pair()
    alice.send(b"one")
    network.run(1)
    for _ in range(3):
        alice.device.want_session(1, network.now)
    assert alice.device.actions() == [actions.SessionReady(1, confirm=False)]


def test_indices_are_neither_zero_nor_taken() -> None:
    _, alice, _ = pair()
    initiation = wire.decode(initiation_of(alice))
    assert isinstance(initiation, wire.Initiation)
    numbers = [0, initiation.sender_index, 7]
    alice.device._random = lambda length: numbers.pop(0).to_bytes(length, "little")
    assert alice.device._new_index() == 7


def test_secrets_are_not_in_what_a_log_would_show() -> None:
    network, alice, _ = pair()
    alice.send(b"one")
    network.run(1)
    keypair = alice.current()
    assert keypair
    shown = repr(alice.done) + repr(alice.device.status(1))
    assert repr(keypair.send_key)[2:-1] not in shown
