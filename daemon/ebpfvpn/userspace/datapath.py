"""UserspaceDatapath: the Datapath whose packets the daemon itself moves.

Needs no BPF, and no privilege but CAP_NET_ADMIN. Nothing of it outlives the process.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from struct import Struct

from ebpfvpn import clock, inner, virtio_net, wire
from ebpfvpn.datapath import (
    REPLAY_WINDOW,
    Event,
    Left,
    Receiving,
    Roamed,
    SessionState,
    Traffic,
)
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair
from ebpfvpn.path_mtu import PathMtu
from ebpfvpn.tun import Tun
from ebpfvpn.udp import MOST, Arrival, UdpSockets
from ebpfvpn.userspace import gso
from ebpfvpn.userspace.gro import Gro
from ebpfvpn.userspace.gso import GsoError, Packet
from ebpfvpn.userspace.open import Message, Opening
from ebpfvpn.userspace.peer import Peer
from ebpfvpn.userspace.peers import Network, Peers
from ebpfvpn.userspace.seal import KEEPALIVE, Sealing
from ebpfvpn.userspace.session import Session
from ebpfvpn.userspace.state import PeerState, pack_endpoint, unpack_endpoint

_READS = 256
_ARRIVALS = 64
"""What is read at once, so that other work gets its turn."""
_MOST_WAITING = 4096
"""Arrivals in a socket's buffer. Under a flood there is no end of them."""
_PADDING = bytes(wire.PADDING)
_TOGETHER = 64
"""Packets that are sealed together."""
_START = virtio_net.LENGTH
_DESTINATION4 = Struct(f"{_START + 16}x4s")
_DESTINATION6 = Struct(f"{_START + 24}x16s")

REASONS = (
    "unknown_index", "expired_receive", "replayed", "too_old", "bad_tag", "malformed_inner",
    "source_not_allowed", "ecn", "no_session", "expired_send", "no_endpoint", "no_route",
)  # fmt: skip
"""As in ebpf/drops.h."""
OWN_REASONS = ("send_buffer_full", "send_failed", "stack_refused")


class UserspaceDatapath:
    """See Datapath."""

    def __init__(
        self, *, tun: Tun, udp: UdpSockets, path_mtu: PathMtu, mtu: int,
        rekey_after_messages: int = wire.REKEY_AFTER_MESSAGES, replay_window: int = REPLAY_WINDOW,
    ) -> None:  # fmt: skip
        """`mtu`: the TUN's; `replay_window`: packets."""
        self._tun = tun
        self._udp = udp
        self._path_mtu = path_mtu
        self._mtu = mtu
        self._rekey_after_messages = rekey_after_messages
        self._replay_window = replay_window
        self._peers = Peers()
        self._sessions: dict[int, Session] = {}
        self._drops = Counter(dict.fromkeys((*REASONS, *OWN_REASONS), 0))
        self._events: list[Event] = []
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._gro = Gro(tun)
        self._sealing = Sealing(mtu, self._drops, self._events)
        self._opening = Opening(
            self._sessions, self._peers.of_address, self._roam, self._gro, self._drops, self._events
        )
        self._inner = bytearray(virtio_net.MOST + wire.PADDING)
        self._outer = bytearray(MOST)

    def alone(self, on: bool) -> None:
        """Whether every packet comes here: then many come at once. With programs in front of the
        sockets these would see aggregates: see `end_joining`."""
        if on:
            for sock in self._udp.sockets:
                self._udp.join(sock, True)
        self._sealing.segments = self._udp.segments()
        self._gro.udp = self._tun.offload(on)

    # What is moved.

    def packets(self) -> Iterator[bytes]:
        """Seals what waits on the TUN, as far as it goes; what has no usable session, no peer, or
        does not fit the way, is for the caller."""
        now = clock.now()
        buffer, view = self._inner, memoryview(self._inner)
        read_into, peer_to = self._tun.read_into, self._peer_to
        before: Peer | None = None
        ready: list[Packet] = []
        self._sealing.waited = False
        for _ in range(_READS):
            count = 0 if self._sealing.waited else read_into(buffer)
            if not count:
                break
            buffer[count : count + wire.PADDING] = _PADDING
            length = count - _START
            peer = peer_to(buffer, length)
            if before is not None and (peer is not before or len(ready) >= _TOGETHER):
                self._sealing.seal(before, ready, now)
                ready = []
            before = peer
            if buffer[0] or buffer[1]:
                try:
                    packets = self._finish(view, count)
                except GsoError:
                    self._drops["send_failed"] += gso.pieces(length, virtio_net.decode(view))
                    continue
            else:
                packets = ((bytes(view[_START : count + wire.PADDING]), length),)
            if peer is not None and self._goes(peer, packets[0], now):
                ready += packets
                continue
            # What the daemon makes of it must not overtake these.
            if before is not None:
                self._sealing.seal(before, ready, now)
                ready = []
            self._sealing.flush()
            for plain, size in packets:
                yield bytes(plain[:size])
        if before is not None:
            self._sealing.seal(before, ready, now)
        self._sealing.flush()
        self._signal()

    def _finish(self, view: memoryview, count: int) -> Sequence[Packet]:
        """Does what the stack left to do on a packet. GsoError."""
        header = virtio_net.decode(view)
        if header.gso_type:
            return gso.cut(view[_START:count], header)
        gso.complete(view[_START:count], header)
        return ((bytes(view[_START : count + wire.PADDING]), count - _START),)

    def _goes(self, peer: Peer, first: Packet, now: float) -> bool:
        """Whether a packet, or those of a super-packet, can be sealed."""
        if not peer.usable or peer.current is None or now >= peer.current.expires:
            return False
        most = peer.max_inner
        return not most or first[1] <= inner.limit(most, first[0][0] >> 4)

    def messages(self, sock: socket.socket) -> list[Message]:
        """Opens what waits on a UDP socket; what is of no session here is for the caller."""
        now = clock.now()
        rest: list[Message] = []
        for _ in range(_ARRIVALS):
            arrival = self._udp.receive_into(sock, self._outer)
            if arrival is None:
                break
            rest += self._open(arrival, arrival.segment or 1, now)
        self._gro.flush()
        self._signal()
        return rest

    def end_joining(self, sock: socket.socket) -> list[Message]:
        """As `messages`, all that waits; from then on messages come one by one."""
        now = clock.now()
        rest: list[Message] = []
        for arrival in self._waiting(sock):
            rest += self._open(arrival, arrival.segment or 1, now)
        self._udp.join(sock, False)
        # What came just before: of it the kernel does not say any more what was joined.
        for arrival in self._waiting(sock):
            rest += self._open(arrival, self._segment(arrival.length), now)
        self._gro.flush()
        self._signal()
        return rest

    def _waiting(self, sock: socket.socket) -> Iterator[Arrival]:
        for _ in range(_MOST_WAITING):
            arrival = self._udp.receive_into(sock, self._outer)
            if arrival is None:
                return
            yield arrival

    def _open(self, arrival: Arrival, segment: int, now: float) -> list[Message]:
        view = memoryview(self._outer)[: arrival.length]
        return self._opening.open(view, segment, arrival.source, arrival.tos, now)

    def _segment(self, length: int) -> int:
        """Of messages that may have been joined: where the second one's header follows. (That its
        eight bytes, type and index, stand in a ciphertext by chance does not happen.)"""
        found = self._outer.find(self._outer[:8], 8, length)
        return found if found > 0 else max(length, 1)

    def send(self, peer: int, packets: Sequence[bytes]) -> None:
        found, now = self._peers[peer], clock.now()
        for packet in packets:
            if packet:
                self._sealing.seal(found, ((packet + _PADDING, len(packet)),), now)
            else:
                self._sealing.seal(found, KEEPALIVE, now)
        self._sealing.flush()
        self._signal()

    def _peer_to(self, buffer: bytearray, length: int) -> Peer | None:
        """Of a packet behind its virtio-net header, on its way out."""
        version = buffer[_START] >> 4
        if version == 4 and length >= 20:
            return self._peers.of_address(_DESTINATION4.unpack_from(buffer)[0])
        if version == 6 and length >= 40:
            return self._peers.of_address(_DESTINATION6.unpack_from(buffer)[0])
        return None

    def _roam(self, peer: Peer, source: Endpoint) -> None:
        self._set_endpoint(peer, source)
        self._events.append(Roamed(peer.number))

    # What the daemon says.

    def describe(self) -> dict[str, object]:
        return {"path": "userspace", "devices": []}

    def add_peer(self, peer: int, public_key: bytes) -> None:
        self._peers.add(Peer(peer, public_key))

    def remove_peer(self, peer: int) -> None:
        found = self._peers.remove(peer)
        for index in [i for i, session in self._sessions.items() if session.peer is found]:
            self.retire(index)

    def set_allowed_ips(self, peer: int, networks: Iterable[Network]) -> None:
        self._peers.set_allowed_ips(peer, networks)

    def set_flow_ports(self, peer: int, count: int) -> None:
        """What is sealed here leaves by one port: there is one thread to work on it."""
        self._peers[peer].flow_ports = count

    def set_endpoint(self, peer: int, endpoint: Endpoint) -> None:
        self._set_endpoint(self._peers[peer], endpoint)

    def _set_endpoint(self, peer: Peer, endpoint: Endpoint) -> None:
        peer.endpoint = endpoint
        peer.destination = self._udp.destination(endpoint)
        self._limit(peer)

    def _limit(self, peer: Peer) -> None:
        """Of those who have a session, others when it is asked for: asking the kernel takes
        time."""
        if peer.current or peer.next:
            self._find_limit(peer)

    def _find_limit(self, peer: Peer) -> None:
        if peer.endpoint is not None:
            peer.max_inner = self._path_mtu.max_inner(peer.endpoint, self._mtu)

    def endpoint(self, peer: int) -> Endpoint | None:
        return self._peers[peer].endpoint

    def install(self, peer: int, keypair: Keypair, *, confirmed: bool) -> None:
        found = self._peers[peer]
        session = Session.of(found, keypair, self._replay_window, self._rekey_after_messages)
        self._sessions[keypair.session.local_index] = session
        if confirmed:
            found.current, found.next = session, None
        else:
            found.next = session
        self._limit(found)

    def install_receiving(self, half: Receiving) -> None:
        """What another path can open no more is opened here."""
        session = Session.receiving(self._peers[half.peer], half, self._replay_window)
        self._sessions[half.session.local_index] = session

    def state(self, timestamps: Mapping[int, bytes]) -> list[PeerState]:
        """Of every peer; see state.py. Nothing must be moved after that."""
        sessions: dict[int, list[Session]] = {}
        for session in self._sessions.values():
            sessions.setdefault(session.peer.number, []).append(session)
        return [
            PeerState(
                number,
                peer.public_key.hex(),
                timestamps[number].hex(),
                pack_endpoint(peer.endpoint),
                peer.current.known.local_index if peer.current else 0,
                peer.next.known.local_index if peer.next else 0,
                [session.state() for session in sessions.get(number, ())],
                peer.traffic(),
            )
            for number, peer in self._peers.items()
        ]

    def restore(self, state: PeerState) -> Left:
        """Adds a peer as it was in the process before."""
        peer = Peer(state.number, bytes.fromhex(state.public_key))
        self._peers.add(peer)
        peer.count_from(state.traffic)
        known = {}
        for one in state.sessions:
            session = Session.restored(peer, one, self._replay_window, self._rekey_after_messages)
            self._sessions[one.local_index] = session
            known[one.local_index] = session.known
            if one.local_index == state.current:
                peer.current = session
            elif one.local_index == state.next:
                peer.next = session
        if (endpoint := unpack_endpoint(state.endpoint)) is not None:
            self._set_endpoint(peer, endpoint)
        return Left(
            peer.public_key,
            peer.number,
            known.pop(state.current, None),
            known.pop(state.next, None),
            list(known.values()),
            endpoint,
            bytes.fromhex(state.timestamp),
        )

    def retire(self, local_index: int) -> None:
        session = self._sessions.pop(local_index, None)
        if session is None:
            return
        if session.peer.current is session:
            session.peer.current = None
        if session.peer.next is session:
            session.peer.next = None

    def seals(self, peer: int) -> bool:
        """Whether it has a session here to seal with."""
        return self._peers[peer].current is not None

    def stop_sealing(self, peer: int) -> None:
        """Another path seals from now on; what comes under sessions here is opened."""
        self._peers[peer].current = self._peers[peer].next = None

    def forget_next(self, peer: int) -> None:
        """One that waits for its first packet must not take over any more when that comes."""
        self._peers[peer].next = None

    def set_usable(self, peer: int, usable: bool) -> None:
        self._peers[peer].usable = usable

    def set_timestamp(self, peer: int, timestamp: bytes) -> None:
        pass  # no later daemon finds it here

    def max_inner(self, peer: int) -> int:
        found = self._peers[peer]
        if not (found.current or found.next):
            self._find_limit(found)
        return found.max_inner

    # What it tells.

    def traffic(self) -> dict[int, Traffic]:
        return {number: peer.traffic() for number, peer in self._peers.items()}

    def sessions(self) -> list[SessionState]:
        return [
            SessionState(s.peer.number, s.known, s.send_counter, s.window.highest)
            for s in self._sessions.values()
        ]

    def drops(self) -> dict[str, int]:
        return dict(self._drops) | {"stack_refused": self._gro.refused}

    def events_fd(self) -> int:
        return self._event

    def events(self) -> list[Event]:
        found = self._events[:]
        if found:
            # In place, for others hold the list.
            self._events.clear()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._event)
        return found

    def _signal(self) -> None:
        if self._events:
            os.eventfd_write(self._event, 1)

    def network_changed(self) -> None:
        self._path_mtu.network_changed()
        for peer in self._peers.values():
            self._limit(peer)

    def close(self) -> None:
        """Drops the keys."""
        for index in list(self._sessions):
            self.retire(index)
        if self._event >= 0:
            os.close(self._event)
            self._event = -1

    def remove(self) -> None:
        self.close()
