"""Under load a device demands that handshake messages prove their source address."""

from __future__ import annotations

from ebpfvpn import actions, wire
from protocol.harness import Network, Node, pair


def flood(node: Node, seconds: int = 1) -> None:
    """Initiations of strangers who know the public key, twice as many as make load."""
    network = node.network
    stranger = Node(network, 99)
    del network.nodes[(stranger.address.address, stranger.address.port)]
    stranger.add(node)
    stranger.device.want_session(1, network.now)
    (sent,) = (action for action in stranger.device.actions() if isinstance(action, actions.Send))
    for _ in range(seconds * 2 * wire.HANDSHAKES_UNDER_LOAD):
        node.device.receive(sent.data, stranger.address, network.now)
        network.now += 0.5 / wire.HANDSHAKES_UNDER_LOAD
    node.device.actions()


def test_under_load_an_initiation_is_answered_by_a_cookie_and_the_next_is_taken() -> None:
    network, alice, bob = pair()
    flood(bob)
    assert bob.device._admission.under_load(network.now)
    alice.send(b"one")
    network.run(0.1)
    assert bob.device.refused["no valid cookie under load"] > 0
    assert [type(action) for action in bob.done] == [actions.Send]
    assert not bob.sessions
    network.run(4.4)
    flood(bob)
    network.run(0.5)
    assert bob.received == [b"one"]
    assert alice.initiations() == 2


def test_without_load_there_is_no_cookie() -> None:
    network, alice, bob = pair()
    flood(bob)
    network.run(3)
    assert not bob.device._admission.under_load(network.now)
    alice.send(b"one")
    network.run(1)
    assert bob.received == [b"one"]


def test_a_responder_is_asked_for_a_cookie_too() -> None:
    network, alice, bob = pair()
    network.delay = lambda: 0.6
    alice.send(b"one")
    network.run(0.1)
    flood(alice)
    network.run(0.3)
    assert alice.device.refused["no valid cookie under load"] > 0
    network.run(10)
    assert bob.received == [b"one"]


def test_a_cookie_does_not_open_the_gates_to_one_address() -> None:
    network = Network()
    server = Node(network, 1)
    clients = [Node(network, 100 + number) for number in range(wire.HANDSHAKES_PER_SOURCE + 5)]
    for number, client in enumerate(clients):
        client.address = clients[0].address  # Behind one NAT, which forwards nothing to us here.
        client.add(server)
        server.add(client, number)
    flood(server)
    for client in clients:
        client.device.want_session(1, network.now)
        (sent,) = (a for a in client.device.actions() if isinstance(a, actions.Send))
        server.device.receive(sent.data, client.address, network.now)
        (reply,) = (a for a in server.device.actions() if isinstance(a, actions.Send))
        client.device.receive(reply.data, server.address, network.now)
    network.run(4.5)
    flood(server)
    network.now = float(int(network.now) + 1)
    for client in clients:
        client.device.advance(network.now)
        (sent,) = (a for a in client.device.actions() if isinstance(a, actions.Send))
        server.device.receive(sent.data, client.address, network.now)
    assert server.device.refused["too many from one address under load"] == 5
    assert len(server.device._by_index) == wire.HANDSHAKES_PER_SOURCE
