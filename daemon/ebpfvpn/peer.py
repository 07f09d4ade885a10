"""A peer: what the operator says of it, its handshake and its keypairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ebpfvpn import tai64n
from ebpfvpn.cookie import CookieJar
from ebpfvpn.datapath import Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Session
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

    Every method returns those that fell out.
    """

    previous: Session | None = None
    """Still opens packets that were on their way."""
    current: Session | None = None
    """Seals."""
    next: Session | None = None
    """Seals once the initiator has shown, by a first packet, that it has the keys too."""

    def __iter__(self) -> Iterator[Session]:
        return (pair for pair in (self.previous, self.current, self.next) if pair)

    def initiated(self, new: Session) -> list[Session]:
        before = list(self)
        self.previous, self.current, self.next = self.next or self.current, new, None
        return self._fell_out(before)

    def responded(self, new: Session) -> list[Session]:
        before = list(self)
        self.previous, self.next = None, new
        return self._fell_out(before)

    def confirmed(self) -> list[Session]:
        before = list(self)
        self.previous, self.current, self.next = self.current, self.next, None
        return self._fell_out(before)

    def expire(self, now: float) -> list[Session]:
        before = list(self)
        self.previous, self.current, self.next = (
            pair if pair and now < expiry(pair) else None
            for pair in (self.previous, self.current, self.next)
        )
        return self._fell_out(before)

    def clear(self) -> list[Session]:
        before = list(self)
        self.previous = self.current = self.next = None
        return before

    def usable(self, now: float) -> bool:
        """Whether there is a keypair to seal with."""
        return self.current is not None and now < expiry(self.current)

    def first_expiry(self) -> float | None:
        return min((expiry(pair) for pair in self), default=None)

    def _fell_out(self, before: list[Session]) -> list[Session]:
        kept = {pair.local_index for pair in self}
        return [pair for pair in before if pair.local_index not in kept]


def expiry(session: Session) -> float:
    """From then on it neither seals nor opens."""
    return session.created + REJECT_AFTER_TIME


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What an operator may want to see of a peer's protocol state."""

    endpoint: Endpoint | None
    latest_handshake: float | None
    """When a session was last established, on the caller's clock."""
    attempts: int
    """Initiations sent in vain since then."""
    previous: Session | None
    current: Session | None
    next: Session | None


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
            pairs.previous,
            pairs.current,
            pairs.next,
        )
