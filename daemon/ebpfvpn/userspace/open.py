"""Opening: from messages that came to a UDP socket to inner packets for the TUN device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from cryptography.exceptions import InvalidTag

from ebpfvpn import wire
from ebpfvpn.datapath import Confirmed, Event
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.inner import length_and_source
from ebpfvpn.userspace import ecn
from ebpfvpn.userspace.gro import Gro
from ebpfvpn.userspace.peer import Peer
from ebpfvpn.userspace.replay_window import Verdict
from ebpfvpn.userspace.session import NONCE, Session

_HEADER, _OVERHEAD = wire.Data.LAYOUT, wire.Data.OVERHEAD

Message = tuple[bytes, Endpoint, int]
"""With where it came from and its TOS byte."""


class Opening:
    """Hands on what is no message of a session of ours."""

    def __init__(
        self,
        sessions: dict[int, Session],
        peer_of: Callable[[bytes], Peer | None],
        roam: Callable[[Peer, Endpoint], None],
        gro: Gro,
        drops: Counter[str],
        events: list[Event],
    ) -> None:
        """`sessions` by local index; `peer_of` tells whose allowed-ips hold an inner address."""
        self._sessions = sessions
        self._peer_of = peer_of
        self._roam = roam
        self._gro = gro
        self._drops = drops
        self._events = events

    def open(
        self, data: memoryview, segment: int, source: Endpoint, tos: int, now: float
    ) -> list[Message]:
        """Messages of `segment` bytes each, the last maybe shorter, of one sender. What is opened
        goes up at the latest with Gro.flush. Returns what is not for a session."""
        rest: list[Message] = []
        length = len(data)
        at = 0
        while at < length or not length:
            session = None
            if length - at >= _OVERHEAD <= segment:
                kind, index, _ = _HEADER.unpack_from(data, at)
                session = self._sessions.get(index) if kind == wire.Data.TYPE else None
            if session is not None:
                at = self._open_run(session, data, at, segment, source, tos & ecn.MASK, now)
                continue
            rest.append((bytes(data[at : at + segment]), source, tos))
            if not length:
                break
            at += segment
        return rest

    def _open_run(
        self, session: Session, data: memoryview, at: int, segment: int, source: Endpoint,
        outer_ecn: int, now: float,
    ) -> int:  # fmt: skip
        """Messages of one session that follow each other from `at` on: at least one. Returns where
        they end."""
        window, peer, decrypt = session.window, session.peer, session.open.decrypt
        unpack, nonce, deliver = _HEADER.unpack_from, NONCE.pack, self._deliver
        local_index = session.known.local_index
        length = len(data)
        packets = total = 0
        has_data = False
        limit = wire.REJECT_AFTER_MESSAGES if now < session.expires else 0
        while length - at >= _OVERHEAD:
            kind, index, counter = unpack(data, at)
            if index != local_index or kind != wire.Data.TYPE:
                break
            end = at + segment
            message = data[at + _HEADER.size : end]
            at = end
            behind = window.highest - 1 - counter
            if counter >= limit:
                self._drops["expired_receive"] += 1
                continue
            if behind >= 0 and (verdict := window.check(counter)) is not Verdict.NEW:
                self._drop_old(peer, verdict, behind)
                continue
            try:
                inner = decrypt(nonce(counter), message, None)
            except InvalidTag:
                self._drops["bad_tag"] += 1
                continue
            window.accept(counter)
            if behind > peer.max_lateness:
                peer.max_lateness = behind
            if not packets:
                self._first_of_run(session, source)
            packets += 1
            total += len(message)
            if inner:
                has_data = True
                deliver(peer, inner, outer_ecn)
        if packets:
            size = total + packets * _HEADER.size
            peer.received(packets, size, now, data=has_data)
        return min(at, length)

    def _first_of_run(self, session: Session, source: Endpoint) -> None:
        """An authenticated message confirms the session and moves the endpoint."""
        peer = session.peer
        if peer.next is session:
            peer.next, peer.current = None, session
            self._events.append(Confirmed(peer.number, session.known.local_index))
        if peer.endpoint is not source:
            if peer.flow_ports > 1:
                source = source.of_flow(peer.endpoint, peer.flow_ports)
            if peer.endpoint != source:
                self._roam(peer, source)
            else:
                peer.endpoint = source  # so that it need not be compared again

    def _drop_old(self, peer: Peer, verdict: Verdict, behind: int) -> None:
        if verdict is Verdict.SEEN:
            peer.replayed += 1
            self._drops["replayed"] += 1
            return
        peer.late += 1
        peer.max_lateness = max(peer.max_lateness, behind)
        self._drops["too_old"] += 1

    def _deliver(self, peer: Peer, inner: bytes, outer_ecn: int) -> None:
        """What is authenticated, but may be no IP packet, or not this peer's to send."""
        length, source = length_and_source(inner)
        if not length:
            self._drops["malformed_inner"] += 1
            return
        if self._peer_of(source) is not peer:
            self._drops["source_not_allowed"] += 1
            return
        # Otherwise nothing changes.
        if outer_ecn in (ecn.CAPABLE_1, ecn.CONGESTION):
            old = ecn.of(inner)
            new = ecn.combine(old, outer_ecn)
            if new is None:
                self._drops["ecn"] += 1
                return
            if new != old:
                inner = ecn.put(inner, new)
        self._gro.add(inner, length)
