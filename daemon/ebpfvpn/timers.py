"""The timers of one peer (whitepaper section 6).

- RETRANSMIT_HANDSHAKE: our initiation was not answered for REKEY_TIMEOUT and a jitter.
- SEND_KEEPALIVE: data was received, and nothing sent for KEEPALIVE_TIMEOUT after it.
- NEW_HANDSHAKE: data was sent, and nothing, not even a keepalive, received for
  KEEPALIVE_TIMEOUT + REKEY_TIMEOUT and a jitter after it.
- PERSISTENT_KEEPALIVE: if the operator wants it, nothing was sent or received for the interval.
- EXPIRE_KEYPAIR: the oldest keypair reaches REJECT_AFTER_TIME.

WireGuard has one more, which zeroes all keys after three times REJECT_AFTER_TIME. Nothing lives
that long here: keypairs go when they expire, an unanswered initiation when it is given up.

The datapath moves the data packets and tells of them when asked (Traffic), up to a second late.
So what is counted here starts at the packet's time, not at the time we hear of it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from ebpfvpn.datapath import Traffic
from ebpfvpn.wire import KEEPALIVE_TIMEOUT, REKEY_TIMEOUT


class Timer(Enum):
    RETRANSMIT_HANDSHAKE = auto()
    SEND_KEEPALIVE = auto()
    NEW_HANDSHAKE = auto()
    PERSISTENT_KEEPALIVE = auto()
    EXPIRE_KEYPAIR = auto()


class Timers:
    """Deadlines, in seconds; set by what happened. Who owns them acts on what `expired` tells."""

    def __init__(self, persistent_keepalive: int, jitter: Callable[[], float]) -> None:
        """The interval in seconds, 0: off; `jitter` gives 0 to REKEY_TIMEOUT_JITTER seconds."""
        self.deadlines: dict[Timer, float] = {}
        self._persistent_keepalive = persistent_keepalive
        self._jitter = jitter
        self._last_traversal = 0.0
        # Data before these times needs no answer, or no acknowledgement, any more.
        self._answered = 0.0
        self._acknowledged = 0.0

    def next(self) -> float | None:
        return min(self.deadlines.values(), default=None)

    def expired(self, now: float) -> Timer | None:
        """Takes the timer that ran out first; it no longer runs. None: no other has."""
        timer = min(self.deadlines, key=self.deadlines.__getitem__, default=None)
        if timer is None or self.deadlines[timer] > now:
            return None
        del self.deadlines[timer]
        if timer is Timer.NEW_HANDSHAKE:
            self._answered = now
        elif timer is Timer.SEND_KEEPALIVE:
            self._acknowledged = now
        return timer

    def endpoint_known(self) -> None:
        """To be called when the peer can be reached for the first time."""
        if self._persistent_keepalive:
            self.deadlines[Timer.PERSISTENT_KEEPALIVE] = 0.0

    def handshake_initiated(self, now: float) -> None:
        """To be called after an initiation is sent."""
        self.deadlines[Timer.RETRANSMIT_HANDSHAKE] = now + REKEY_TIMEOUT + self._jitter()

    def handshake_postponed(self, until: float) -> None:
        """To be called instead, when an initiation is wanted too early after the last message."""
        self.deadlines[Timer.RETRANSMIT_HANDSHAKE] = until

    def handshake_complete(self) -> None:
        """To be called when a response was received, or a session confirmed by its first packet."""
        self.deadlines.pop(Timer.RETRANSMIT_HANDSHAKE, None)

    def handshake_given_up(self) -> None:
        """To be called when the handshake is not tried any more."""
        self.deadlines.pop(Timer.RETRANSMIT_HANDSHAKE, None)
        self.deadlines.pop(Timer.SEND_KEEPALIVE, None)

    def keypairs_changed(self, expiry: float | None) -> None:
        """To be called after a session is derived or retired; `expiry` is that of the oldest."""
        if expiry is None:
            self.deadlines.pop(Timer.EXPIRE_KEYPAIR, None)
        else:
            self.deadlines[Timer.EXPIRE_KEYPAIR] = expiry

    def handshake_message_sent(self, now: float) -> None:
        """To be called after an initiation or a response is sent."""
        self._acknowledged = now
        self.deadlines.pop(Timer.SEND_KEEPALIVE, None)
        self.any_authenticated_packet_traversed(now)

    def handshake_message_received(self, now: float) -> None:
        """To be called after an authentic initiation or response is received."""
        self._answered = now
        self.deadlines.pop(Timer.NEW_HANDSHAKE, None)
        self.any_authenticated_packet_traversed(now)

    def any_authenticated_packet_traversed(self, when: float) -> None:
        """To be called after any authentic packet is sent or received at `when`, whether
        keepalive, data or handshake."""
        self._last_traversal = max(when, self._last_traversal)
        if self._persistent_keepalive:
            deadline = self._last_traversal + self._persistent_keepalive
            self.deadlines[Timer.PERSISTENT_KEEPALIVE] = deadline

    def data_traversed(self, traffic: Traffic) -> None:
        """To be called after the datapath told of new packets."""
        self.any_authenticated_packet_traversed(max(traffic.last_sent, traffic.last_received))
        self._count(
            Timer.NEW_HANDSHAKE,
            KEEPALIVE_TIMEOUT + REKEY_TIMEOUT + self._jitter(),
            since=traffic.unanswered_since,
            last=traffic.last_data_sent,
            settled=self._answered,
        )
        self._count(
            Timer.SEND_KEEPALIVE,
            KEEPALIVE_TIMEOUT,
            since=traffic.unacknowledged_since,
            last=traffic.last_data_received,
            settled=self._acknowledged,
        )

    def _count(
        self, timer: Timer, timeout: float, *, since: float, last: float, settled: float
    ) -> None:
        """Runs `timer` from the first packet that waits: `since` (0.0: none), unless it was
        settled by a handshake message or an earlier expiry and `last` came after that."""
        if since == 0.0:
            self.deadlines.pop(timer, None)
        elif last > settled:
            self.deadlines[timer] = max(since, settled) + timeout
