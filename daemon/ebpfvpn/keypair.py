"""A keypair: the two transport keys that one handshake gives (whitepaper section 5.4.5)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Session:
    """A keypair without its keys: all that is to be known of it once the datapath has them."""

    local_index: int
    """Our index of the session, 1 to 2**32 - 1: the receiver index of what arrives."""
    remote_index: int
    """The peer's index of it: the receiver index of what we send."""
    initiator: bool
    """Whether we sent the initiation. Only the initiator starts a rekey by age."""
    created: float
    """Seconds of CLOCK_BOOTTIME at which the handshake was complete."""


@dataclass(frozen=True, slots=True)
class Keypair:
    """What a datapath needs to know to seal and open with the keys of one handshake."""

    session: Session
    send_key: bytes = field(repr=False)
    """32 bytes."""
    receive_key: bytes = field(repr=False)
    """32 bytes."""
