"""A peer: what the operator says of it, its handshake and its keypairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ebpfvpn import tai64n
from ebpfvpn.cookie import CookieJar
from ebpfvpn.datapath import Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair
from ebpfvpn.noise import PendingInitiation, Remote
from ebpfvpn.timers import Timers
from ebpfvpn.wire import REJECT_AFTER_TIME

NO_TRAFFIC = Traffic(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(slots=True)
class Keypairs:
    """The three sessions a peer may have at once (Linux noise.c, add_new_keypair).

        we initiated:  previous <- next, or else current;  current <- new
        we responded:  previous <- nothing;                next <- new
        confirmed:     previous <- current;                current <- next

    Every method returns the keypairs that fell out.
    """

    previous: Keypair | None = None
    """Still opens packets that were on their way."""
    current: Keypair | None = None
    """Seals."""
    next: Keypair | None = None
    """Seals once the initiator has shown, by a first packet, that it has the keys too."""

    def __iter__(self) -> Iterator[Keypair]:
        return (pair for pair in (self.previous, self.current, self.next) if pair)

    def initiated(self, keypair: Keypair) -> list[Keypair]:
        before = list(self)
        self.previous, self.current, self.next = self.next or self.current, keypair, None
        return self._fell_out(before)

    def responded(self, keypair: Keypair) -> list[Keypair]:
        before = list(self)
        self.previous, self.next = None, keypair
        return self._fell_out(before)

    def confirmed(self) -> list[Keypair]:
        before = list(self)
        self.previous, self.current, self.next = self.current, self.next, None
        return self._fell_out(before)

    def expire(self, now: float) -> list[Keypair]:
        before = list(self)
        self.previous, self.current, self.next = (
            pair if pair and now < expiry(pair) else None
            for pair in (self.previous, self.current, self.next)
        )
        return self._fell_out(before)

    def clear(self) -> list[Keypair]:
        before = list(self)
        self.previous = self.current = self.next = None
        return before

    def usable(self, now: float) -> bool:
        """Whether there is a keypair to seal with."""
        return self.current is not None and now < expiry(self.current)

    def first_expiry(self) -> float | None:
        return min((expiry(pair) for pair in self), default=None)

    def _fell_out(self, before: list[Keypair]) -> list[Keypair]:
        kept = {pair.local_index for pair in self}
        return [pair for pair in before if pair.local_index not in kept]


def expiry(keypair: Keypair) -> float:
    """From then on it neither seals nor opens."""
    return keypair.created + REJECT_AFTER_TIME


@dataclass(frozen=True, slots=True)
class KeypairStatus:
    """A keypair without its keys."""

    local_index: int
    remote_index: int
    initiator: bool
    created: float


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What an operator may want to see of a peer's protocol state."""

    endpoint: Endpoint | None
    latest_handshake: float | None
    """When a session was last established, on the caller's clock."""
    attempts: int
    """Initiations sent in vain since then."""
    previous: KeypairStatus | None
    current: KeypairStatus | None
    next: KeypairStatus | None


class Peer:
    """Everything that is known of one peer."""

    def __init__(
        self,
        number: int,
        remote: Remote,
        endpoint: Endpoint | None,
        persistent_keepalive: int,
        jitter: Callable[[], float],
    ) -> None:
        self.number = number
        self.remote = remote
        self.endpoint = endpoint
        self.cookies = CookieJar(remote.public_key)
        self.timers = Timers(persistent_keepalive, jitter)
        self.keypairs = Keypairs()
        self.traffic = NO_TRAFFIC

        self.initiation: PendingInitiation | None = None
        """Ours that waits for a response. The timer RETRANSMIT_HANDSHAKE runs while it does."""
        self.attempts = 0
        """Initiations sent since the last session was established."""
        self.wanted_since = 0.0
        """When a session was last asked for: attempts end REKEY_ATTEMPT_TIME after that."""
        self.last_handshake_sent = float("-inf")
        """Initiation or response."""
        self.last_minute_handshake = False
        """The current keypair was already seen to be about to expire."""
        self.latest_handshake: float | None = None

        self.timestamp_sent = tai64n.NEVER
        self.timestamp_received = tai64n.NEVER
        """The greatest: an initiation with no greater one is a replay."""
        self.last_initiation_received = float("-inf")

    def status(self) -> PeerStatus:
        pairs = self.keypairs
        return PeerStatus(
            self.endpoint,
            self.latest_handshake,
            self.attempts,
            _describe(pairs.previous),
            _describe(pairs.current),
            _describe(pairs.next),
        )


def _describe(keypair: Keypair | None) -> KeypairStatus | None:
    if keypair is None:
        return None
    return KeypairStatus(
        keypair.local_index, keypair.remote_index, keypair.initiator, keypair.created
    )
