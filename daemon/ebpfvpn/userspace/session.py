"""A session as the userspace path has it: its ciphers, its counter, its replay window."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ebpfvpn import wire
from ebpfvpn.datapath import Receiving
from ebpfvpn.keypair import Keypair
from ebpfvpn.keypair import Session as Known
from ebpfvpn.userspace.replay_window import ReplayWindow

if TYPE_CHECKING:
    from ebpfvpn.userspace.peer import Peer

NONCE = Struct("<4xQ")
"""Of a counter (whitepaper section 5.4.6)."""


class Session:
    """Public attributes, because every packet goes through them."""

    __slots__ = (
        "expires", "known", "open", "peer", "receive_limit", "rekey_at", "seal", "send_counter",
        "send_limit", "window",
    )  # fmt: skip

    def __init__(self, peer: Peer, known: Known, receive_key: bytes, window: ReplayWindow) -> None:
        """One that only opens."""
        self.peer = peer
        self.known = known
        self.open = ChaCha20Poly1305(receive_key)
        self.window = window
        self.expires = known.created + wire.REJECT_AFTER_TIME
        self.receive_limit = wire.REJECT_AFTER_MESSAGES
        self.seal: ChaCha20Poly1305 | None = None
        self.send_counter = 0
        self.send_limit = 0
        """Counters from here on are not used."""
        self.rekey_at = 0
        """At this counter the daemon is told, once."""

    @classmethod
    def of(cls, peer: Peer, keypair: Keypair, replay_window: int, rekey_at: int) -> Session:
        """A whole one. `replay_window` in packets."""
        session = cls(peer, keypair.session, keypair.receive_key, ReplayWindow(replay_window))
        session.seal = ChaCha20Poly1305(keypair.send_key)
        session.send_limit = wire.REJECT_AFTER_MESSAGES
        session.rekey_at = rekey_at
        return session

    @classmethod
    def receiving(cls, peer: Peer, half: Receiving, replay_window: int) -> Session:
        window = ReplayWindow(replay_window, half.highest, half.base, half.seen)
        return cls(peer, half.session, half.key, window)
