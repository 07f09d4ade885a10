"""When to try again what has failed."""

from __future__ import annotations

FIRST, LONGEST = 1.0, 60.0
"""Seconds."""


class Backoff:
    """A second after the first failure, and twice as long after each that follows, a minute at
    most. Times are seconds of one clock that never goes back."""

    def __init__(self, now: float) -> None:
        self.restart(now)

    def restart(self, now: float) -> None:
        """Something changed, so that the next try may not fail."""
        self._pause = FIRST
        self._next = now + FIRST

    def failed(self, now: float) -> None:
        self._pause = min(2 * self._pause, LONGEST)
        self._next = now + self._pause

    def due(self, now: float) -> bool:
        return now >= self._next
