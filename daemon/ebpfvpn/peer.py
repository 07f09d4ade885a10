"""A peer: what the operator says of it, its handshake and its keypairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from ebpfvpn import tai64n
from ebpfvpn.cookie import CookieJar
from ebpfvpn.datapath import Left, Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Session
from ebpfvpn.noise import PendingInitiation, Remote
from ebpfvpn.timers import Timers
from ebpfvpn.wire import REJECT_AFTER_TIME

NO_TRAFFIC = Traffic(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


_MOST_FADING = 3


@dataclass(slots=True)
class Keypairs:
    """The three sessions a peer may have at once (Linux noise.c, add_new_keypair), and those that
    fade.

        we initiated:  previous <- next, or else current;  current <- new
        we responded:  previous <- nothing;                next <- new
        confirmed:     previous <- current;                current <- next

    What falls out of the three otherwise than by age fades: when handshakes of both ends cross, the
    peer may be sealing with it still, and its packets would be lost, as they are in Linux.

    Every method returns those that are over.
    """

    previous: Session | None = None
    """Still opens packets that were on their way."""
    current: Session | None = None
    """Seals."""
    next: Session | None = None
    """Seals once the initiator has shown, by a first packet, that it has the keys too."""
    fading: list[Session] = field(default_factory=list)
    """As previous; the latest first."""

    def __iter__(self) -> Iterator[Session]:
        return (pair for pair in (self.previous, self.current, self.next, *self.fading) if pair)

    def initiated(self, new: Session) -> list[Session]:
        if self.next:
            over = self._fade(self.current, self.previous)
            self.previous = self.next
        else:
            over = self._fade(self.previous)
            self.previous = self.current
        self.current, self.next = new, None
        return over

    def responded(self, new: Session) -> list[Session]:
        # Nobody seals with a session whose initiator has begun another.
        over = [self.next] if self.next else []
        over += self._fade(self.previous)
        self.previous, self.next = None, new
        return over

    def confirmed(self) -> list[Session]:
        over = self._fade(self.previous)
        self.previous, self.current, self.next = self.current, self.next, None
        return over

    def fade_all(self) -> None:
        """None seals any more."""
        self.fading = sorted(self, key=lambda pair: -pair.created)
        self.previous = self.current = self.next = None

    def expire(self, now: float) -> list[Session]:
        over = [pair for pair in self if now >= expiry(pair)]
        self.previous, self.current, self.next = (
            None if pair in over else pair for pair in (self.previous, self.current, self.next)
        )
        self.fading = [pair for pair in self.fading if pair not in over]
        return over

    def usable(self, now: float) -> bool:
        """Whether there is a keypair to seal with."""
        return self.current is not None and now < expiry(self.current)

    def first_expiry(self) -> float | None:
        return min((expiry(pair) for pair in self), default=None)

    def _fade(self, *fallen: Session | None) -> list[Session]:
        fading = [pair for pair in (*fallen, *self.fading) if pair]
        self.fading = fading[:_MOST_FADING]
        return fading[_MOST_FADING:]


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
    fading: Sequence[Session]


class Peer:
    """Everything that is known of one peer."""

    def __init__(
        self,
        number: int,
        remote: Remote,
        persistent_keepalive: int,
        jitter: Callable[[], float],
    ) -> None:
        self.number = number
        self.remote = remote
        self.endpoint: Endpoint | None = None
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

    def adopt(self, left: Left) -> None:
        """See Device.adopt."""
        others = sorted(left.others, key=lambda session: -session.created)
        self.keypairs = Keypairs(None, left.current, left.next, others)
        self.timestamp_received = left.timestamp
        confirmed = [session for session in (left.current, *others) if session]
        self.latest_handshake = max((session.created for session in confirmed), default=None)
        self.timers.keypairs_changed(self.keypairs.first_expiry())

    def status(self) -> PeerStatus:
        pairs = self.keypairs
        return PeerStatus(
            self.endpoint,
            self.latest_handshake,
            self.attempts,
            pairs.previous,
            pairs.current,
            pairs.next,
            tuple(pairs.fading),
        )
