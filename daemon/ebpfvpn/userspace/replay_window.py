"""The replay window: RFC 6479's ring of bitmap words, as ebpf/replay.h has it for the kernel path.

Counter c belongs to bit c mod 64 of word c / 64 mod N. Each word knows which 64 counters it stands
for, so a jump ahead clears nothing.
"""

from __future__ import annotations

from enum import Enum, auto

_BITS = 64
_WORD = (1 << _BITS) - 1


class Verdict(Enum):
    NEW = auto()
    SEEN = auto()
    TOO_OLD = auto()


class ReplayWindow:
    """Of one session."""

    __slots__ = ("_base", "_bits", "_mask", "_numbers", "_size", "highest")

    def __init__(self, size: int, highest: int = 0, base: int = 0, seen: int = 0) -> None:
        """`size` in packets, the newest included; `highest` and so on: see Receiving."""
        words = 1 << ((size + _BITS - 2) // _BITS).bit_length()
        self._size = size
        self._base = base
        self._mask = words - 1
        self._numbers = [0] * words
        self._bits = [0] * words
        self.highest = highest
        """The highest accepted counter plus one; 0: none yet."""
        first, end = base // _BITS, -(-highest // _BITS)
        for number in range(max(first, end - words), end):
            slot = number & self._mask
            self._numbers[slot] = number
            self._bits[slot] = seen >> (number - first) * _BITS & _WORD

    def check(self, counter: int) -> Verdict:
        """Whether a message is worth the decryption."""
        if counter >= self.highest:
            return Verdict.NEW
        if self.highest - counter > self._size or counter < self._base:
            return Verdict.TOO_OLD
        number = counter // _BITS
        slot = number & self._mask
        if self._numbers[slot] == number and self._bits[slot] >> counter % _BITS & 1:
            return Verdict.SEEN
        return Verdict.NEW

    def accept(self, counter: int) -> None:
        """Marks one that was found NEW, after its authentication."""
        number = counter // _BITS
        slot = number & self._mask
        if self._numbers[slot] == number:
            self._bits[slot] |= 1 << counter % _BITS
        else:
            self._numbers[slot] = number
            self._bits[slot] = 1 << counter % _BITS
        if counter >= self.highest:
            self.highest = counter + 1

    def seen(self) -> tuple[int, int]:
        """`base` and `seen`, to make an equal one of."""
        end = -(-self.highest // _BITS)
        first = max(end - len(self._numbers), self._base // _BITS, 0)
        found = 0
        for number in range(first, end):
            slot = number & self._mask
            if self._numbers[slot] == number:
                found |= self._bits[slot] << (number - first) * _BITS
        return first * _BITS, found
