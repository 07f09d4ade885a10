"""When handshakes are too many: all of them together, and those from one address."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv6Address

from ebpfvpn.wire import HANDSHAKES_PER_SOURCE, HANDSHAKES_UNDER_LOAD, MAX_SOURCES


class LoadMeter:
    """How many handshake messages came in the last second, taken from two counts.

    The last full second counts by the part of it that is not a second ago yet.
    """

    def __init__(self) -> None:
        self._second = 0
        self._count = 0
        self._previous = 0

    def count(self, now: float) -> None:
        self._advance(now)
        self._count += 1

    def under_load(self, now: float) -> bool:
        self._advance(now)
        return self._count + self._previous * (1 - now % 1) >= HANDSHAKES_UNDER_LOAD

    def _advance(self, now: float) -> None:
        second = int(now)
        if second != self._second:
            self._previous = self._count if second == self._second + 1 else 0
            self._count = 0
            self._second = second


class SourceLimiter:
    """Lets so many handshake messages a second of each address pass; bounded in memory."""

    def __init__(self) -> None:
        self._second = 0
        self._counts: Counter[bytes] = Counter()

    def allow(self, address: IPv4Address | IPv6Address, now: float) -> bool:
        if int(now) != self._second:
            self._second = int(now)
            self._counts.clear()
        source = address.packed if address.version == 4 else address.packed[:8]
        if source not in self._counts and len(self._counts) >= MAX_SOURCES:
            return False
        self._counts[source] += 1
        return self._counts[source] <= HANDSHAKES_PER_SOURCE


class Limiter:
    """Lets so many a second pass, of whatever."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._second = 0
        self._count = 0

    def allow(self, now: float) -> bool:
        if int(now) != self._second:
            self._second = int(now)
            self._count = 0
        self._count += 1
        return self._count <= self._per_second
