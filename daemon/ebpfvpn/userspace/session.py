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
from ebpfvpn.userspace.state import SessionState

if TYPE_CHECKING:
    from ebpfvpn.userspace.peer import Peer

NONCE = Struct("<4xQ")
"""Of a counter (whitepaper section 5.4.6)."""


class Session:
    """Public attributes, because every packet goes through them."""

    __slots__ = (
        "expires", "known", "open", "peer", "receive_key", "rekey_at", "seal", "send_counter",
        "send_key", "send_limit", "window",
    )  # fmt: skip

    def __init__(self, peer: Peer, known: Known, receive_key: bytes, window: ReplayWindow) -> None:
        """One that only opens."""
        self.peer = peer
        self.known = known
        self.receive_key = receive_key
        self.open = ChaCha20Poly1305(receive_key)
        self.window = window
        self.expires = known.created + wire.REJECT_AFTER_TIME
        self.send_key: bytes | None = None
        self.seal: ChaCha20Poly1305 | None = None
        self.send_counter = 0
        self.send_limit = 0
        """Counters from here on are not used."""
        self.rekey_at = 0
        """At this counter the daemon is told, once."""

    @classmethod
    def of(cls, peer: Peer, keypair: Keypair, replay_window: int, rekey_at: int) -> Session:
        """A whole one. `replay_window` in packets."""
        window = ReplayWindow(replay_window)
        session = cls(peer, keypair.session, keypair.receive_key, window)
        session._seals_with(keypair.send_key, rekey_at)
        return session

    def _seals_with(self, key: bytes, rekey_at: int) -> None:
        self.send_key = key
        self.seal = ChaCha20Poly1305(key)
        self.send_limit = wire.REJECT_AFTER_MESSAGES
        self.rekey_at = rekey_at

    @classmethod
    def receiving(cls, peer: Peer, half: Receiving, replay_window: int) -> Session:
        window = ReplayWindow(replay_window, half.highest, half.base, half.seen)
        return cls(peer, half.session, half.key, window)

    def state(self) -> SessionState:
        known = self.known
        base, seen = self.window.seen()
        return SessionState(
            known.local_index,
            known.remote_index,
            known.initiator,
            known.created,
            self.send_key.hex() if self.send_key else None,
            self.receive_key.hex(),
            self.send_counter,
            self.window.highest,
            base,
            f"{seen:x}",
        )

    @classmethod
    def restored(
        cls, peer: Peer, state: SessionState, replay_window: int, rekey_at: int
    ) -> Session:
        known = Known(state.local_index, state.remote_index, state.initiator, state.created)
        window = ReplayWindow(replay_window, state.highest, state.base, int(state.seen, 16))
        session = cls(peer, known, bytes.fromhex(state.receive_key), window)
        if state.send_key is not None:
            session._seals_with(bytes.fromhex(state.send_key), rekey_at)
            session.send_counter = state.send_counter
        return session
