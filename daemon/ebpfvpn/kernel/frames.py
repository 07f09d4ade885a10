"""Frames that the daemon itself puts on the segmenter (docs/architecture.md)."""

from __future__ import annotations

import socket
import struct

from ebpfvpn.datapath import DatapathError
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel.layout import number

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_UDP = 17
_TTL = 64
_KEEPALIVE = bytes(20)  # as long as an IPv4 header, which is not looked at


def to_seal(mark: bytes, peer: int, packet: bytes) -> bytes:
    """An inner IP packet; empty: a keepalive."""
    version = packet[0] >> 4 if packet else 4
    ethertype = _ETHERTYPE.get(version, 0)
    source = number(peer) + bytes([not packet, 0])
    return mark + source + struct.pack("!H", ethertype) + (packet or _KEEPALIVE)


def reinjected(
    destination: bytes, message: bytes, source: Endpoint, listen_port: int, tos: int
) -> bytes:
    """A message with outer headers as it came. `destination`: a MAC address that is not the mark.
    The UDP checksum was verified by the socket and stays zero."""
    local = source.local.packed if source.local else bytes(len(source.address.packed))
    length = 8 + len(message)
    udp = struct.pack("!HHHH", source.port, listen_port, length, 0)
    if source.address.version == 4:
        ip = struct.pack("!BBHHHBBH", 0x45, tos, 20 + length, 0, 0, _TTL, _UDP, 0)
        ip += source.address.packed + local
        ip = ip[:10] + struct.pack("!H", _checksum(ip)) + ip[12:]
    else:
        ip = struct.pack("!IHBB", 6 << 28 | tos << 20, length, _UDP, _TTL)
        ip += source.address.packed + local
    ethernet = destination + number(source.ifindex) + bytes(2)
    ethernet += struct.pack("!H", _ETHERTYPE[source.address.version])
    return ethernet + ip + udp + message


def _checksum(header: bytes) -> int:
    """RFC 1071."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class FrameSocket:
    """Sends frames out of one device, through its queue."""

    def __init__(self, ifindex: int) -> None:
        """In the network namespace of this thread. DatapathError."""
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
            self._socket.bind((socket.if_indextoname(ifindex), 0))
        except OSError as error:
            raise DatapathError(f"cannot open a packet socket: {error.strerror}") from None

    def send(self, frame: bytes) -> bool:
        """False: the kernel did not take it."""
        try:
            self._socket.send(frame)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()
