"""The protocol of one interface: all its peers, without I/O and without a clock.

Messages, wishes and what the datapath tells go in; actions come out, to be done in order. Times
are seconds of one clock that never goes back, CLOCK_BOOTTIME in the daemon.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from ebpfvpn import noise, tai64n, wire
from ebpfvpn.actions import (
    Action,
    EndpointMoved,
    GaveUp,
    Install,
    Keepalive,
    Retire,
    Send,
    SessionReady,
    TimestampReceived,
)
from ebpfvpn.admission import Admission
from ebpfvpn.datapath import Left, Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair, Session
from ebpfvpn.peer import Peer, PeerStatus
from ebpfvpn.rekeying import Rekeying
from ebpfvpn.schedule import Schedule
from ebpfvpn.timers import Timer
from ebpfvpn.wire import ProtocolError


class Device:
    """One interface. No method raises for what a peer or a stranger sends."""

    def __init__(
        self,
        private_key: bytes,
        *,
        tai64n: Callable[[], bytes],
        random: Callable[[int], bytes] = os.urandom,
        rekey_after_time: float = wire.REKEY_AFTER_TIME,
        rekey_after_messages: int = wire.REKEY_AFTER_MESSAGES,
    ) -> None:
        """`tai64n` gives the time of day as tai64n.encode does, `random` so many random bytes."""
        self._static = noise.PrivateKey(private_key)
        self._tai64n = tai64n
        self._random = random
        self._rekeying = Rekeying(rekey_after_time, rekey_after_messages)
        self._admission = Admission(self.public_key, random)
        self._peers: dict[int, Peer] = {}
        self._by_public_key: dict[bytes, Peer] = {}
        self._by_index: dict[int, Peer] = {}
        """Owner of each of our indices: pending initiations and installed sessions."""
        self._schedule = Schedule()
        self._actions: list[Action] = []
        self.refused: Counter[str] = Counter()
        """Messages refused, by reason."""

    @property
    def public_key(self) -> bytes:
        return self._static.public

    # What the operator and the daemon say.

    def add_peer(
        self,
        number: int,
        public_key: bytes,
        *,
        preshared_key: bytes = wire.NO_PRESHARED_KEY,
        persistent_keepalive: int = 0,
    ) -> None:
        """Raises ValueError if the key is our own, another peer's, or no good public key."""
        if number in self._peers or public_key in self._by_public_key:
            raise ValueError("the peer is there already")
        if public_key == self.public_key:
            raise ValueError("the peer's public key is our own")
        try:
            remote = noise.remote(self._static, public_key, preshared_key)
        except ProtocolError as error:
            raise ValueError(str(error)) from None
        peer = Peer(number, remote, persistent_keepalive, self._jitter)
        self._peers[number] = self._by_public_key[public_key] = peer
        self._settle(peer)

    def adopt(self, number: int, left: Left, now: float) -> None:
        """What an earlier daemon left of a peer that was just added."""
        peer = self._peers[number]
        peer.adopt(left)
        for session in peer.keypairs:
            self._by_index[session.local_index] = peer
        if left.endpoint is not None:
            self.set_endpoint(number, left.endpoint)
        if peer.keypairs.usable(now):
            self._session_ready(peer, confirm=False)
        self._settle(peer)

    def set_endpoint(self, number: int, endpoint: Endpoint) -> None:
        """The daemon knows better: it resolved a name, or a data packet came from there."""
        peer = self._peers[number]
        if peer.endpoint is None:
            peer.timers.endpoint_known()
        peer.endpoint = endpoint
        self._settle(peer)

    def renew(self, number: int, now: float) -> None:
        """Shakes hands, although there may be a session."""
        peer = self._peers.get(number)
        if peer is not None:
            self._start_handshake(peer, now)
            self._settle(peer)

    def sealing_lost(self, now: float) -> list[int]:
        """The datapath can only open with what sessions there are. Returns the peers that had one
        to seal with, or were about to."""
        lost = []
        for peer in self._peers.values():
            if peer.keypairs.next or peer.keypairs.usable(now):
                lost.append(peer.number)
                peer.last_handshake_sent = float("-inf")  # it need not wait
            peer.keypairs.fade_all()
        return lost

    def has_session(self, number: int, now: float) -> bool:
        """Whether there is one to seal with."""
        return self._peers[number].keypairs.usable(now)

    def status(self, number: int) -> PeerStatus:
        return self._peers[number].status()

    # Time.

    def next_deadline(self) -> float | None:
        """When to call `advance`; None: when something else has happened."""
        return self._schedule.next()

    def advance(self, now: float) -> None:
        """Does what is due. Costs nothing for peers of which nothing is."""
        for number in self._schedule.due(now):
            peer = self._peers[number]
            while timer := peer.timers.expired(now):
                self._expired(peer, timer, now)
            self._settle(peer)

    def actions(self) -> list[Action]:
        """What is to be done, in this order; each is told once."""
        actions, self._actions = self._actions, []
        return actions

    # What the datapath tells. It may be late: of sessions that are gone, or
    # of peers that are in the configuration no more.

    def want_session(self, number: int, now: float) -> None:
        """Data waits. Shakes hands, unless there is a session or that is under way; SessionReady
        follows, or GaveUp, or nothing at all if the peer has no endpoint."""
        peer = self._peers.get(number)
        if peer is None:
            return
        if peer.keypairs.usable(now):
            self._session_ready(peer, confirm=False)
        else:
            self._start_handshake(peer, now)
        self._settle(peer)

    def confirmed(self, number: int, local_index: int, now: float) -> None:
        """The first packet came under a session that was installed unconfirmed."""
        peer = self._peers.get(number)
        if peer is None or not (pending := peer.keypairs.next):
            return
        if pending.local_index == local_index:
            self._retire(peer, peer.keypairs.confirmed())
            self._handshake_complete(peer, now)
            self._session_ready(peer, confirm=False)
            self._settle(peer)

    def messages_used(self, number: int, local_index: int, now: float) -> None:
        """The session has sealed `rekey_after_messages`."""
        peer = self._peers.get(number)
        if peer is None or not (current := peer.keypairs.current):
            return
        if current.local_index == local_index:
            self._start_handshake(peer, now)
            self._settle(peer)

    def traffic(self, number: int, traffic: Traffic, send_counter: int, now: float) -> None:
        """The figures of a peer and the next counter of its current session, asked for about
        every half second. They must not be older than what was told before."""
        peer = self._peers.get(number)
        if peer is None or traffic == peer.traffic:
            return
        before, peer.traffic = peer.traffic, traffic
        peer.timers.data_traversed(traffic)
        if self._rekeying.due(peer, before, send_counter):
            self._start_handshake(peer, now)
        self._settle(peer)

    # What comes from the UDP socket.

    def receive(self, data: bytes, source: Endpoint, now: float) -> None:
        """A message of type 1 to 3. A bad one is counted in `refused` and has no other effect."""
        try:
            message = wire.decode(data)
            if isinstance(message, wire.Data):
                raise ProtocolError("data message")
            if isinstance(message, wire.CookieReply):
                self._receive_cookie_reply(message, now)
                return
            reply = self._admission.admit(data, message.sender_index, source, now)
            if reply is not None:
                self._actions.append(Send(None, reply.encode(), source))
                raise ProtocolError("no valid cookie under load")
            if isinstance(message, wire.Initiation):
                self._receive_initiation(message, source, now)
            else:
                self._receive_response(message, source, now)
        except ProtocolError as error:
            self.refused[str(error)] += 1

    def _receive_cookie_reply(self, reply: wire.CookieReply, now: float) -> None:
        peer = self._by_index.get(reply.receiver_index)
        if peer is None:
            raise ProtocolError("unknown index")
        peer.cookies.receive(reply, now)

    def _receive_initiation(self, message: wire.Initiation, source: Endpoint, now: float) -> None:
        initiation = noise.consume_initiation(self._static, message, self._find)
        peer = self._by_public_key[initiation.remote.public_key]
        if initiation.timestamp <= peer.timestamp_received:
            raise ProtocolError("replayed initiation")
        if now - peer.last_initiation_received < 1 / wire.INITIATIONS_PER_SECOND:
            raise ProtocolError("too many initiations from a peer")
        peer.timestamp_received = initiation.timestamp
        self._actions.append(TimestampReceived(peer.number, initiation.timestamp))
        peer.last_initiation_received = now
        index = self._new_index()
        response, keys = noise.create_response(initiation, self._new_private_key(), index)
        session = Session(index, response.receiver_index, False, now)
        self._heard_from(peer, source, now)
        self._install(peer, session, keys, peer.keypairs.responded(session))
        self._send(peer, response, now)
        self._settle(peer)

    def _receive_response(self, message: wire.Response, source: Endpoint, now: float) -> None:
        peer = self._by_index.get(message.receiver_index)
        initiation = peer.initiation if peer else None
        if not peer or not initiation or initiation.local_index != message.receiver_index:
            raise ProtocolError("unknown index")
        keys = noise.consume_response(self._static, initiation, message)
        session = Session(initiation.local_index, message.sender_index, True, now)
        self._handshake_complete(peer, now)
        self._heard_from(peer, source, now)
        self._install(peer, session, keys, peer.keypairs.initiated(session))
        self._session_ready(peer, confirm=True)
        self._settle(peer)

    def _find(self, public_key: bytes) -> noise.Remote | None:
        peer = self._by_public_key.get(public_key)
        return peer.remote if peer else None

    def _heard_from(self, peer: Peer, source: Endpoint, now: float) -> None:
        peer.endpoint = source
        self._actions.append(EndpointMoved(peer.number, source))
        peer.timers.handshake_message_received(now)

    # Our own handshakes.

    def _start_handshake(self, peer: Peer, now: float) -> None:
        """There is a new reason for one: it may be tried for REKEY_ATTEMPT_TIME from now on."""
        peer.wanted_since = now
        if Timer.RETRANSMIT_HANDSHAKE not in peer.timers.deadlines:
            self._initiate(peer, now)

    def _initiate(self, peer: Peer, now: float) -> None:
        if peer.endpoint is None:
            return
        earliest = peer.last_handshake_sent + wire.REKEY_TIMEOUT
        if now < earliest:
            peer.timers.handshake_postponed(earliest)
            return
        self._forget_initiation(peer)
        # A clock that was set back must not make the peer take us for a replay.
        peer.timestamp_sent = max(self._tai64n(), tai64n.successor(peer.timestamp_sent))
        message, peer.initiation = noise.create_initiation(
            self._static,
            peer.remote,
            self._new_private_key(),
            self._new_index(),
            peer.timestamp_sent,
        )
        self._by_index[message.sender_index] = peer
        peer.attempts += 1
        self._send(peer, message, now)
        peer.timers.handshake_initiated(now)

    def _send(self, peer: Peer, message: wire.Initiation | wire.Response, now: float) -> None:
        assert peer.endpoint is not None
        data = peer.cookies.add_macs(message.encode(), now)
        self._actions.append(Send(peer.number, data, peer.endpoint))
        peer.last_handshake_sent = now
        peer.timers.handshake_message_sent(now)

    def _handshake_complete(self, peer: Peer, now: float) -> None:
        peer.timers.handshake_complete()
        self._forget_initiation(peer)
        peer.attempts = 0
        peer.last_minute_handshake = False
        peer.latest_handshake = now

    def _give_up(self, peer: Peer) -> None:
        peer.timers.handshake_given_up()
        self._forget_initiation(peer)
        self._actions.append(GaveUp(peer.number))

    def _forget_initiation(self, peer: Peer) -> None:
        if peer.initiation:
            del self._by_index[peer.initiation.local_index]
            peer.initiation = None

    # Timers that ran out.

    def _expired(self, peer: Peer, timer: Timer, now: float) -> None:
        match timer:
            case Timer.RETRANSMIT_HANDSHAKE:
                if now - peer.wanted_since >= wire.REKEY_ATTEMPT_TIME:
                    self._give_up(peer)
                    return
                if peer.initiation:
                    self._forget_local_address(peer)
                self._initiate(peer, now)
            case Timer.NEW_HANDSHAKE:
                self._forget_local_address(peer)
                self._start_handshake(peer, now)
            case Timer.SEND_KEEPALIVE:
                self._keepalive(peer, now)
            case Timer.PERSISTENT_KEEPALIVE:
                peer.timers.any_authenticated_packet_traversed(now)
                self._keepalive(peer, now)
            case Timer.EXPIRE_KEYPAIR:
                self._retire(peer, peer.keypairs.expire(now))

    def _keepalive(self, peer: Peer, now: float) -> None:
        if peer.keypairs.usable(now):
            self._actions.append(Keepalive(peer.number))
        else:
            self._start_handshake(peer, now)

    def _forget_local_address(self, peer: Peer) -> None:
        """It may be the cause of the silence: the kernel shall choose another."""
        if peer.endpoint and (unbound := peer.endpoint.unbound()) != peer.endpoint:
            peer.endpoint = unbound
            self._actions.append(EndpointMoved(peer.number, peer.endpoint))

    # Sessions, and what keeps the books.

    def _install(
        self, peer: Peer, session: Session, keys: noise.TransportKeys, retired: list[Session]
    ) -> None:
        """The keys are not kept here."""
        self._by_index[session.local_index] = peer
        keypair = Keypair(session, keys.send, keys.receive)
        self._actions.append(Install(peer.number, keypair, confirmed=session.initiator))
        self._retire(peer, retired)

    def _retire(self, peer: Peer, sessions: list[Session]) -> None:
        for session in sessions:
            del self._by_index[session.local_index]
            self._actions.append(Retire(session.local_index))
        peer.timers.keypairs_changed(peer.keypairs.first_expiry())

    def _session_ready(self, peer: Peer, *, confirm: bool) -> None:
        ready = SessionReady(peer.number, confirm)
        if ready not in self._actions[-1:]:
            self._actions.append(ready)

    def _settle(self, peer: Peer) -> None:
        self._schedule.set(peer.number, peer.timers.next())

    def _new_index(self) -> int:
        while True:
            index = int.from_bytes(self._random(4), "little")
            if index and index not in self._by_index:
                return index

    def _new_private_key(self) -> noise.PrivateKey:
        return noise.PrivateKey(self._random(wire.KEY_LENGTH))

    def _jitter(self) -> float:
        return wire.REKEY_TIMEOUT_JITTER * int.from_bytes(self._random(4), "little") / 2**32
