"""Rekeying: when a session is old enough, or used enough, that data calls for the next one
(whitepaper, sections 6.2 and 6.4)."""

from __future__ import annotations

from ebpfvpn import wire
from ebpfvpn.datapath import Traffic
from ebpfvpn.keypair import Session
from ebpfvpn.peer import Peer

_LAST_MINUTE = wire.REJECT_AFTER_TIME - wire.KEEPALIVE_TIMEOUT - wire.REKEY_TIMEOUT
"""Seconds. Who only receives must rekey as well, in time for a keepalive to keep the session
open."""


class Rekeying:
    def __init__(self, after_time: float, after_messages: int) -> None:
        """Seconds, messages."""
        self._after_time = after_time
        self._after_messages = after_messages

    def due(self, peer: Peer, before: Traffic, send_counter: int) -> bool:
        """Whether what was moved since `before` calls for a handshake. `send_counter`: the next one
        of the current session. What was received does so once in a session."""
        current, traffic = peer.keypairs.current, peer.traffic
        if current is None:
            return False
        sent = traffic.last_sent > before.last_sent and self._sent(
            current, traffic.last_sent, send_counter
        )
        received = (
            traffic.last_received > before.last_received
            and not peer.last_minute_handshake
            and current.initiator
            and traffic.last_received >= current.created + _LAST_MINUTE
        )
        if received:
            peer.last_minute_handshake = True
        return sent or received

    def _sent(self, current: Session, when: float, send_counter: int) -> bool:
        return send_counter >= self._after_messages or (
            current.initiator and when >= current.created + self._after_time
        )
