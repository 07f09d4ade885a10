"""TAI64N: the timestamp of an initiation (https://cr.yp.to/libtai/tai64.html).

12 bytes, big-endian seconds and nanoseconds, so that later ones compare greater as bytes.
"""

from __future__ import annotations

EPOCH = 2**62 + 10
"""TAI64 label of 1970-01-01 00:00:00 UTC; leap seconds since then are not counted."""

RESOLUTION = 2**24
"""Nanoseconds, 16.8 ms: the exact time is nobody's business (whitepaper section 5.1)."""

NEVER = bytes(12)
"""Less than every timestamp."""

END = bytes([0x80]) + bytes(11)
"""Greater than every timestamp."""


def encode(unix_nanoseconds: int) -> bytes:
    """The timestamp of a Unix time, rounded down to RESOLUTION."""
    seconds, nanoseconds = divmod(unix_nanoseconds, 10**9)
    rounded = nanoseconds - nanoseconds % RESOLUTION
    return (EPOCH + seconds).to_bytes(8, "big") + rounded.to_bytes(4, "big")


def successor(timestamp: bytes) -> bytes:
    """The least timestamp greater than this one."""
    return (int.from_bytes(timestamp, "big") + 1).to_bytes(12, "big")


def later(timestamp: bytes, seconds: int) -> bytes:
    """The timestamp so many seconds after this one."""
    return (int.from_bytes(timestamp, "big") + (seconds << 32)).to_bytes(12, "big")
