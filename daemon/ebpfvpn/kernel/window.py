"""The size of replay windows, as ebpf/replay.h is told it: set before an object is loaded."""

from __future__ import annotations

from ebpfvpn.kernel import layout

MAP = "windows"
CONSTANTS = ".rodata.window"
"""The section with struct window_geometry."""

_COUNTERS = 32
"""Whose bits are in one word."""
_WORD_BYTES = 8


def geometry(packets: int) -> layout.WindowGeometry:
    """The smallest ring that holds a window of so many packets, wherever in a word it begins."""
    words = -(-(packets - 1) // _COUNTERS) + 1
    return layout.WindowGeometry(size=packets, order=(words - 1).bit_length())


def ring_bytes(packets: int) -> int:
    """Of an entry of the map; all zero: nothing was received."""
    return _WORD_BYTES << int(geometry(packets).order)


def seen(ring: bytes, highest: int) -> tuple[int, int]:
    """What an entry of the map says of the counters below `highest`: see Receiving."""
    words = memoryview(ring).cast("Q")
    order = (len(words) - 1).bit_length()
    end = -(-highest // _COUNTERS)
    # Of what came before a ring of words nothing is known: it counts as seen.
    known = max(end - len(words), 0)
    first = known // 2 * 2
    bits = bytearray(b"\xff" * (_COUNTERS // 8) * (known - first))
    for word in range(known, end):
        entry = words[word % len(words)]
        is_its_own = entry >> 32 == word >> order & 0xFFFFFFFF
        bits += (entry & 0xFFFFFFFF if is_its_own else 0).to_bytes(_COUNTERS // 8, "little")
    return first * _COUNTERS, int.from_bytes(bits, "little")
