"""Which numbers have been seen: of packets, of messages."""

from __future__ import annotations

from collections.abc import Iterable

_PAGE_BITS = 16
_PAGE_BYTES = (1 << _PAGE_BITS) // 8
_FULL = b"\xff" * _PAGE_BYTES


class Seen:
    """A set of numbers, a bit each in pages of 65,536: 96 million take 12 MB."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Whether it is new."""
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = bytearray(_PAGE_BYTES)
        byte, bit = number >> 3 & _PAGE_BYTES - 1, 1 << (number & 7)
        if page[byte] & bit:
            return False
        page[byte] |= bit
        return True

    def missing(self, below: int, most: int) -> list[tuple[int, int]]:
        """The first `most` stretches, (first, last), of numbers from 0 that are not there."""
        found: list[tuple[int, int]] = []
        for number in self._absent(below):
            if found and found[-1][1] == number - 1:
                found[-1] = (found[-1][0], number)
            elif len(found) == most:
                break
            else:
                found.append((number, number))
        return found

    def _absent(self, below: int) -> Iterable[int]:
        for start in range(0, below, 1 << _PAGE_BITS):
            page = self._pages.get(start >> _PAGE_BITS, bytes(_PAGE_BYTES))
            if page == _FULL:
                continue
            for number in range(start, min(start + (1 << _PAGE_BITS), below)):
                if not page[number >> 3 & _PAGE_BYTES - 1] & 1 << (number & 7):
                    yield number


class Arrivals:
    """What a receiver of numbered packets has seen."""

    def __init__(self) -> None:
        self._seen = Seen()
        self._last_time = 0
        self.unique = 0
        self.twice = 0
        """Packets delivered again, each time counted."""
        self.late = 0
        """Arrived behind a higher number, for the first time."""
        self.most_late = 0
        """The largest distance behind the highest number."""
        self.highest = -1
        self.longest_gap = 0
        """Nanoseconds between two arrivals."""
        self.recent_gap = 0
        """The same, since whoever asked set it to 0."""

    def take(self, numbers: list[int], times: list[int]) -> None:
        """Numbers and times of arrival, nanoseconds, in the order of arrival."""
        add, highest = self._seen.add, self.highest
        for number in numbers:
            if not add(number):
                self.twice += 1
                continue
            self.unique += 1
            if number > highest:
                highest = number
            else:
                self.late += 1
                self.most_late = max(self.most_late, highest - number)
        self.highest = highest
        last = self._last_time or (times[0] if times else 0)
        for time in times:
            if time - last > self.recent_gap:
                self.recent_gap = time - last
            last = time
        self.longest_gap = max(self.longest_gap, self.recent_gap)
        self._last_time = last

    @property
    def missing(self) -> int:
        """Of the numbers below the highest."""
        return self.highest + 1 - self.unique

    def lost(self, sent: int, most: int = 5) -> list[tuple[int, int]]:
        """The first `most` stretches, (first, last), of the `sent` numbers that did not come."""
        return self._seen.missing(sent, most) if self.unique < sent else []
