"""The Internet checksum (RFC 1071) by arithmetic on a long integer: in ones' complement the sum of
16-bit words is the number that they form together, modulo 2**16 - 1."""

from __future__ import annotations

_MODULUS = 0xFFFF


def of(data: bytes | bytearray | memoryview, more: int = 0) -> int:
    """For the field that is zero in `data`; an odd byte at the end counts as if a zero followed.
    `more` is added to the sum. (All zero bits it makes a checksum of zero of, where it should be
    0xffff, which is the same number.)"""
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return -(number + more) % _MODULUS
