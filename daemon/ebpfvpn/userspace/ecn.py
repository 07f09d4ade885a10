"""Explicit congestion notification through a tunnel, RFC 6040: the outer header starts with the
inner's ECN field (normal mode); on the way out the two are combined (figure 4 there)."""

from __future__ import annotations

NOT_CAPABLE, CAPABLE_1, CAPABLE_0, CONGESTION = range(4)
MASK = 3


def combine(inner: int, outer: int) -> int | None:
    """The inner packet's new ECN field; None: it must be dropped."""
    if inner == NOT_CAPABLE:
        return None if outer == CONGESTION else inner
    if outer == CONGESTION:
        return CONGESTION
    if inner == CAPABLE_0 and outer == CAPABLE_1:
        return CAPABLE_1
    return inner


def of(packet: bytes | bytearray | memoryview) -> int:
    """The field of an IP packet."""
    return packet[1] & MASK if packet[0] >> 4 == 4 else packet[1] >> 4 & MASK


def put(packet: bytes, ecn: int) -> bytes:
    """The packet with another field, and its IPv4 checksum mended (RFC 1624, equation 3)."""
    changed = bytearray(packet)
    if packet[0] >> 4 == 6:
        changed[1] = packet[1] & ~(MASK << 4) | ecn << 4
        return bytes(changed)
    changed[1] = packet[1] & ~MASK | ecn
    total = (packet[10] << 8 | packet[11]) ^ 0xFFFF
    total += ((packet[0] << 8 | packet[1]) ^ 0xFFFF) + (changed[0] << 8 | changed[1])
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    changed[10:12] = (total ^ 0xFFFF).to_bytes(2, "big")
    return bytes(changed)
