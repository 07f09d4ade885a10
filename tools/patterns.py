"""What a relay does to the messages of one direction: loses, copies, delays, reorders, replays.

A pattern is given each message and the time (seconds), and says what to send instead, in order.
It has no socket and no clock. A message is the payload of a UDP packet of WireGuard's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ebpfvpn import wire

DATA = wire.Data.TYPE
INITIATION = wire.Initiation.TYPE
HANDSHAKE = (wire.Initiation.TYPE, wire.Response.TYPE, wire.CookieReply.TYPE)


class Pattern:
    """This one lets everything pass."""

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        """What to send now that `message` came."""
        return (message,)

    def due(self, now: float) -> Sequence[bytes]:
        """What was kept until now."""
        return ()

    def deadline(self) -> float | None:
        """When `due` has something; None: not as far as is known."""
        return None

    def release(self) -> Sequence[bytes]:
        """Everything that is held back, for the end."""
        return ()


@dataclass
class Lose(Pattern):
    """Each `every`-th of the messages of these types is lost, from the one after `passing`: 2 and 0
    lose the first, the third, ...; 1 loses all."""

    types: Sequence[int]
    every: int = 1
    passing: int = 0
    lost: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        if message[0] not in self.types:
            return (message,)
        self._count += 1
        if self._count > self.passing and (self._count - self.passing - 1) % self.every == 0:
            self.lost += 1
            return ()
        return (message,)


@dataclass
class Copies(Pattern):
    """Each data message is sent `number` times."""

    number: int

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        return (message,) * (self.number if message[0] == DATA else 1)


@dataclass
class Jump(Pattern):
    """Each `every`-th data message overtakes the `ahead` before it. For that, all others are held
    back until as many have followed them: a steady flow, so that no burst loses anything."""

    ahead: int
    every: int
    jumped: int = field(default=0, init=False)
    _held: deque[bytes] = field(default_factory=deque, init=False)
    _count: int = field(default=0, init=False)

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        if message[0] != DATA:
            return (message,)
        self._count += 1
        if self._count % self.every == 0 and len(self._held) == self.ahead:
            self.jumped += 1
            return (message,)
        self._held.append(message)
        return (self._held.popleft(),) if len(self._held) > self.ahead else ()

    def release(self) -> Sequence[bytes]:
        held = list(self._held)
        self._held.clear()
        return held


@dataclass
class Delay(Pattern):
    """Every message arrives `seconds` later."""

    seconds: float
    _held: deque[tuple[float, bytes]] = field(default_factory=deque, init=False)

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        self._held.append((now + self.seconds, message))
        return ()

    def due(self, now: float) -> Sequence[bytes]:
        held = self._held
        found = []
        while held and held[0][0] <= now:
            found.append(held.popleft()[1])
        return found

    def deadline(self) -> float | None:
        return self._held[0][0] if self._held else None

    def release(self) -> Sequence[bytes]:
        held = [message for _, message in self._held]
        self._held.clear()
        return held


@dataclass
class Playback(Pattern):
    """Records `length` data messages and, when `after` more have passed, plays them back, one with
    each message; over and over."""

    length: int
    after: int
    played: int = field(default=0, init=False)
    _recorded: deque[bytes] = field(default_factory=deque, init=False)
    _count: int = field(default=0, init=False)

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        if message[0] != DATA:
            return (message,)
        position = self._count % (2 * self.length + self.after)
        self._count += 1
        if position < self.length:
            self._recorded.append(message)
        elif position >= self.length + self.after:
            self.played += 1
            return (message, self._recorded.popleft())
        return (message,)


class Chain(Pattern):
    """Each pattern takes what the one before it sends."""

    def __init__(self, patterns: Iterable[Pattern]) -> None:
        self.patterns = list(patterns)

    def take(self, message: bytes, now: float) -> Sequence[bytes]:
        return self._through((message,), 0, now)

    def due(self, now: float) -> Sequence[bytes]:
        return self._collect(lambda pattern: pattern.due(now), now)

    def deadline(self) -> float | None:
        known = [pattern.deadline() for pattern in self.patterns]
        return min((deadline for deadline in known if deadline is not None), default=None)

    def release(self) -> Sequence[bytes]:
        return self._collect(lambda pattern: pattern.release(), 0.0)

    def _through(self, messages: Sequence[bytes], first: int, now: float) -> Sequence[bytes]:
        for pattern in self.patterns[first:]:
            messages = [out for message in messages for out in pattern.take(message, now)]
        return messages

    def _collect(self, ask: Callable[[Pattern], Sequence[bytes]], now: float) -> list[bytes]:
        found: list[bytes] = []
        for i, pattern in enumerate(self.patterns):
            found += self._through(ask(pattern), i + 1, now)
        return found
