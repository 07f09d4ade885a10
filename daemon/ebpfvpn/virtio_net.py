"""The virtio-net header, which stands before each packet of a TUN device opened with IFF_VNET_HDR.

Source: VIRTIO 1.2, section 5.1.6, in its legacy form (10 bytes, the machine's byte order), as
Linux' include/linux/virtio_net.h reads and writes it.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

_LAYOUT = Struct("=BBHHHH")
LENGTH = _LAYOUT.size
MOST = LENGTH + 65535
"""Bytes of a header and the longest packet."""

NEEDS_CHECKSUM = 1
NOT_GSO, TCPV4, TCPV6, UDP = 0, 1, 4, 5
ECN = 0x80
"""With one of TCP: the first piece alone keeps CWR."""


class Header(NamedTuple):
    """What is left to do on a packet."""

    flags: int = 0
    """NEEDS_CHECKSUM: what is in the checksum's place is the pseudo-header's sum."""
    gso_type: int = NOT_GSO
    """Else the packet is a super-packet, to be cut into pieces."""
    headers: int = 0
    """Bytes of IP and TCP or UDP header: a hint."""
    gso_size: int = 0
    """Bytes of payload of each piece but the last."""
    checksum_start: int = 0
    checksum_offset: int = 0
    """From `checksum_start` on."""

    def encode(self) -> bytes:
        return _LAYOUT.pack(*self)


def decode(buffer: bytes | bytearray | memoryview) -> Header:
    """From the first LENGTH bytes; struct.error if there are fewer."""
    return Header._make(_LAYOUT.unpack_from(buffer))
