"""Devices that talk to each other in memory: one clock, a network that may lose and delay, and a
datapath that does no cryptography but checks that both ends hold the same keys."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from ipaddress import IPv4Address

from ebpfvpn import actions, tai64n, wire
from ebpfvpn.datapath import Left, Traffic
from ebpfvpn.device import Device
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair
from ebpfvpn.noise import PrivateKey
from ebpfvpn.peer import NO_TRAFFIC

POLL = 0.5
START = 1000.0
BOOTED_AT_UNIX_TIME = 1_700_000_000
KEEPALIVE = b""


@dataclass
class Session:
    peer: int
    keypair: Keypair
    send_counter: int = 0
    received: set[int] = field(default_factory=set)


@dataclass
class PeerData:
    endpoint: Endpoint | None = None
    current: int = 0
    next: int = 0
    traffic: Traffic = NO_TRAFFIC
    timestamp: bytes = tai64n.NEVER


class Node:
    """A device with its daemon and datapath, reduced to what the protocol sees of them."""

    def __init__(self, network: Network, number: int, **options: float) -> None:
        self.network = network
        self.address = Endpoint(IPv4Address(f"192.0.2.{number}"), 51820)
        self.random = random.Random(number)
        self.private_key = self.random.randbytes(32)
        self.public_key = PrivateKey(self.private_key).public
        self.options = options
        self.device = self._new_device()
        self.added: dict[int, tuple[bytes, dict[str, object]]] = {}
        """Public key and options of each peer."""
        self.peers: dict[int, PeerData] = {}
        self.sessions: dict[int, Session] = {}
        self.queues: dict[int, list[bytes]] = {}
        self.done: list[actions.Action] = []
        self.received: list[bytes] = []
        network.nodes[(self.address.address, self.address.port)] = self

    def _new_device(self) -> Device:
        return Device(
            self.private_key,
            tai64n=lambda: tai64n.encode(int((BOOTED_AT_UNIX_TIME + self.network.now) * 1e9)),
            random=self.random.randbytes,
            **self.options,  # type: ignore[arg-type]
        )

    def restart(self) -> None:
        """A new daemon finds the datapath as it is; what waited for a handshake is lost."""
        self.device = self._new_device()
        for number, data in self.peers.items():
            self.queues[number].clear()
            live = {i: s.keypair.session for i, s in self.sessions.items() if s.peer == number}
            current, following = live.pop(data.current, None), live.pop(data.next, None)
            public_key, options = self.added[number]
            self.device.add_peer(number, public_key, **options)  # type: ignore[arg-type]
            left = Left(
                public_key, number, current, following, [*live.values()], data.endpoint,
                data.timestamp,
            )  # fmt: skip
            self.device.adopt(number, left, self.network.now)
        self.act()

    def add(
        self, peer: Node, number: int = 1, *, reachable: bool = True, **options: object
    ) -> None:
        endpoint = peer.address if reachable else None
        self.peers[number] = PeerData(endpoint)
        self.queues[number] = []
        self.added[number] = peer.public_key, options
        self.device.add_peer(
            number,
            peer.public_key,
            **options,  # type: ignore[arg-type]
        )
        if endpoint is not None:
            self.device.set_endpoint(number, endpoint)

    def send(self, packet: bytes, number: int = 1) -> None:
        """What an application does."""
        self.queues[number].append(packet)
        if self._usable(number):
            self._flush(number)
        else:
            self.device.want_session(number, self.network.now)
            self.act()

    def act(self) -> None:
        for action in self.device.actions():
            self.done.append(action)
            self._act(action)

    def poll(self) -> None:
        for number, peer in self.peers.items():
            session = self.sessions.get(peer.current)
            counter = session.send_counter if session else 0
            self.device.traffic(number, peer.traffic, counter, self.network.now)
        self.act()

    def current(self, number: int = 1) -> Keypair | None:
        session = self.sessions.get(self.peers[number].current)
        return session.keypair if session else None

    def took(self, kind: type[actions.Action]) -> list[actions.Action]:
        return [action for action in self.done if isinstance(action, kind)]

    def initiations(self) -> int:
        kinds = [action.data[0] for action in self.done if isinstance(action, actions.Send)]
        return kinds.count(wire.Initiation.TYPE)

    def receive(self, data: bytes, source: Endpoint) -> None:
        if data[0] == wire.Data.TYPE:
            self._open(wire.Data.decode(data), source)
        else:
            self.device.receive(data, source, self.network.now)
        self.act()

    def _act(self, action: actions.Action) -> None:
        match action:
            case actions.Send(_, data, endpoint):
                self.network.send(data, self.address, endpoint)
            case actions.Install(number, keypair, confirmed):
                local_index = keypair.session.local_index
                assert local_index not in self.sessions
                self.sessions[local_index] = Session(number, keypair)
                if confirmed:
                    self.peers[number].current = local_index
                    self.peers[number].next = 0
                else:
                    self.peers[number].next = local_index
            case actions.Retire(local_index):
                del self.sessions[local_index]
            case actions.TimestampReceived(number, timestamp):
                self.peers[number].timestamp = timestamp
            case actions.SessionReady(number, confirm):
                if confirm and not self.queues[number]:
                    self.queues[number].append(KEEPALIVE)
                self._flush(number)
            case actions.Keepalive(number):
                self._seal(number, KEEPALIVE)
            case actions.EndpointMoved(number, endpoint):
                self.peers[number].endpoint = endpoint
            case actions.GaveUp(number):
                self.queues[number].clear()

    def _usable(self, number: int) -> bool:
        keypair = self.current(number)
        return bool(keypair and self.network.now < keypair.session.created + wire.REJECT_AFTER_TIME)

    def _flush(self, number: int) -> None:
        packets, self.queues[number] = self.queues[number], []
        for packet in packets:
            self._seal(number, packet)

    def _seal(self, number: int, packet: bytes) -> None:
        if not self._usable(number):
            return
        peer, now = self.peers[number], self.network.now
        session = self.sessions[peer.current]
        proof = session.keypair.send_key
        message = wire.Data(
            session.keypair.session.remote_index, session.send_counter, proof + packet
        )
        session.send_counter += 1
        traffic = replace(peer.traffic, last_sent=now, unacknowledged_since=0.0)
        if packet:
            since = traffic.unanswered_since or now
            traffic = replace(traffic, last_data_sent=now, unanswered_since=since)
        peer.traffic = traffic
        assert peer.endpoint
        self.network.send(message.encode(), self.address, peer.endpoint)

    def _open(self, message: wire.Data, source: Endpoint) -> None:
        session, now = self.sessions.get(message.receiver_index), self.network.now
        if not session or now >= session.keypair.session.created + wire.REJECT_AFTER_TIME:
            return
        proof, packet = message.sealed[: wire.KEY_LENGTH], message.sealed[wire.KEY_LENGTH :]
        if proof != session.keypair.receive_key or message.counter in session.received:
            return
        session.received.add(message.counter)
        peer = self.peers[session.peer]
        traffic = replace(peer.traffic, last_received=now, unanswered_since=0.0)
        if packet:
            since = traffic.unacknowledged_since or now
            traffic = replace(traffic, last_data_received=now, unacknowledged_since=since)
            self.received.append(packet)
        peer.traffic = traffic
        if source != peer.endpoint:
            peer.endpoint = source
            self.device.set_endpoint(session.peer, source)
        if peer.next == message.receiver_index:
            peer.current, peer.next = peer.next, 0
            self.device.confirmed(session.peer, message.receiver_index, now)


class Network:
    """Carries messages; `lost` and `delay` decide over each."""

    def __init__(self) -> None:
        self.now = START
        self.nodes: dict[tuple[object, int], Node] = {}
        self.lost: Callable[[bytes, Endpoint], bool] = lambda data, source: False
        self.delay: Callable[[], float] = lambda: 0.01
        self._in_flight: list[tuple[float, int, Endpoint, Endpoint, bytes]] = []
        self.sent = 0
        self._next_poll = START + POLL

    def send(self, data: bytes, source: Endpoint, destination: Endpoint) -> None:
        if self.lost(data, source):
            return
        self.sent += 1
        arrival = self.now + self.delay()
        heappush(self._in_flight, (arrival, self.sent, source, destination, data))

    def run(self, seconds: float) -> None:
        """Everything that happens in this time: arrivals, deadlines and polls."""
        end = self.now + seconds
        while True:
            deadlines = [node.device.next_deadline() for node in self.nodes.values()]
            times = [max(deadline, self.now) for deadline in deadlines if deadline is not None]
            times += [message[0] for message in self._in_flight[:1]]
            step = min([*times, self._next_poll])
            if step > end:
                self.now = end
                return
            self.now = step
            if step == self._next_poll:
                self._next_poll += POLL
                for node in self.nodes.values():
                    node.poll()
            for node in self.nodes.values():
                node.device.advance(self.now)
                node.act()
            while self._in_flight and self._in_flight[0][0] <= self.now:
                _, _, source, destination, data = heappop(self._in_flight)
                node_there = self.nodes.get((destination.address, destination.port))
                if node_there:
                    node_there.receive(data, source)


def pair(**options: object) -> tuple[Network, Node, Node]:
    """Two nodes that know each other; `options` are those of both peers."""
    network = Network()
    alice, bob = Node(network, 1), Node(network, 2)
    alice.add(bob, **options)  # type: ignore[arg-type]
    bob.add(alice, **options)  # type: ignore[arg-type]
    return network, alice, bob
