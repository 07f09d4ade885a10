"""A schedule: which of many keys is due next, without looking at the others."""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class Schedule:
    """One deadline per key. Setting one and taking what is due cost O(log n)."""

    def __init__(self) -> None:
        self._deadlines: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []
        """May hold deadlines that have changed since; `_deadlines` is right."""

    def set(self, key: int, deadline: float | None) -> None:
        """None: the key has no deadline any more."""
        if deadline == self._deadlines.get(key):
            return
        if deadline is None:
            del self._deadlines[key]
            return
        self._deadlines[key] = deadline
        heappush(self._heap, (deadline, key))
        if len(self._heap) > 2 * len(self._deadlines) + 64:
            self._heap = [(deadline, key) for key, deadline in self._deadlines.items()]
            heapify(self._heap)

    def next(self) -> float | None:
        """The earliest deadline."""
        while self._heap:
            deadline, key = self._heap[0]
            if self._deadlines.get(key) == deadline:
                return deadline
            heappop(self._heap)
        return None

    def due(self, now: float) -> list[int]:
        """The keys whose deadline has come, earliest first; they have none any more."""
        keys = []
        while (deadline := self.next()) is not None and deadline <= now:
            _, key = heappop(self._heap)
            del self._deadlines[key]
            keys.append(key)
        return keys
