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
