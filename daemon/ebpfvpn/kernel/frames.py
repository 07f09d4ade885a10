"""Frames that the daemon puts on the segmenter, and takes from it (docs/architecture.md)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from ebpfvpn import checksum
from ebpfvpn.datapath import DatapathError, TooLong
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel.layout import number

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_UDP = 17
_TTL = 64
_IP_HEADER = {4: 20, 6: 40}
_UDP_HEADER = 8
_BATCH = 64
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_STATISTICS = struct.Struct("=4xI")  # tp_packets, tp_drops, both since they were last asked for
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
        ip = ip[:10] + struct.pack("!H", checksum.of(ip)) + ip[12:]
    else:
        ip = struct.pack("!IHBB", 6 << 28 | tos << 20, length, _UDP, _TTL)
        ip += source.address.packed + local
    ethernet = destination + number(source.ifindex) + bytes(2)
    ethernet += struct.pack("!H", _ETHERTYPE[source.address.version])
    return ethernet + ip + udp + message


def _bind(sock: socket.socket, ifindex: int, protocol: int) -> None:
    try:
        sock.bind((socket.if_indextoname(ifindex), protocol))
    except OSError as error:
        raise DatapathError(f"cannot bind a packet socket: {error.strerror}") from None


class FrameSocket:
    """Sends frames out of one device, through its queue."""

    def __init__(self, ifindex: int) -> None:
        """In the network namespace of this thread. DatapathError."""
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise DatapathError(f"cannot open a packet socket: {error.strerror}") from None
        self.bind(ifindex)

    def bind(self, ifindex: int) -> None:
        """To another device: to close it and open another takes the kernel far longer."""
        _bind(self._socket, ifindex, 0)

    def send(self, frame: bytes) -> bool:
        """False: the kernel did not take it."""
        try:
            self._socket.send(frame)
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


class MessageSocket:
    """Takes what `seal_tc` sends up: sealed messages that are too long for their way."""

    def __init__(self, ifindex: int, version: int) -> None:
        """For outer packets of one IP version, on the segmenter's inner end, in the network
        namespace of this thread. DatapathError."""
        try:
            # Protocol 0 until it is bound: else it would take packets of all devices.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            raise DatapathError(f"cannot open a packet socket: {error.strerror}") from None
        self._version = version
        self._lost = 0
        self.bind(ifindex)

    def bind(self, ifindex: int) -> None:
        """To another device."""
        _bind(self._socket, ifindex, _ETHERTYPE[self._version])

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> Iterator[TooLong]:
        """What waits, a batch at most."""
        for _ in range(_BATCH):
            try:
                packet = self._socket.recv(65535)
            except OSError:
                return
            yield _too_long(packet)

    def lost(self) -> int:
        """How many its full queue did not take."""
        told = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        self._lost += _STATISTICS.unpack(told)[0]
        return self._lost

    def close(self) -> None:
        self._socket.close()


def _too_long(packet: bytes) -> TooLong:
    """From an outer packet, as seal_tc writes it."""
    version = packet[0] >> 4
    local, remote = (
        (packet[12:16], packet[16:20]) if version == 4 else (packet[8:24], packet[24:40])
    )
    tos = packet[1] if version == 4 else (packet[0] & 15) << 4 | packet[1] >> 4
    udp = packet[_IP_HEADER[version] :]
    port = int.from_bytes(udp[2:4], "big")
    message = udp[_UDP_HEADER : int.from_bytes(udp[4:6], "big")]
    return TooLong(message, Endpoint(ip_address(remote), port, ip_address(local)), tos)
