"""Generic receive offload: consecutive packets of a TCP or UDP flow go up as one super-packet, for
the stack's work on it, and a system call, cost as much as those of a single packet.

Only what can be cut again into the same packets is joined (Linux' net/ipv4/tcp_offload.c). The
packets are authenticated, so their checksums are not looked at: the kernel fills in new ones.
"""

from __future__ import annotations

from ebpfvpn import checksum
from ebpfvpn.tun import Tun
from ebpfvpn.virtio_net import LENGTH, NEEDS_CHECKSUM, TCPV4, TCPV6, UDP, Header

_MOST = 65535
_IP = {0x45: 20, **{0x60 | n: 40 for n in range(16)}}
"""Length of the IP header by its first byte: neither options nor extensions."""
_TCP, _UDP = 6, 17
_MOST_PARTS = {_TCP: 500, _UDP: 64}
"""By protocol. Of UDP the kernel takes UDP_MAX_SEGMENTS, 64 until Linux 6.9; of TCP what one system
call does."""
_PSH, _ACK = 0x08, 0x10
_CHECKSUM = {_TCP: 16, _UDP: 6}
_PLAIN = bytes(LENGTH)


def _mask(ip: int, headers: int, *varying: tuple[int, int]) -> int:
    """Of both headers, ones where packets that are joined are foreseen."""
    mask = bytearray(b"\xff" * headers)
    if ip == 20:
        varying += ((4, 6), (10, 12))  # identification, checksum
    for start, end in varying:
        mask[start:end] = bytes(end - start)
    return int.from_bytes(mask, "big")


def _masks(ip: int) -> dict[tuple[int, int, int], int]:
    """By protocol, length of the IP header and of both."""
    tcp = [(ip + 13, ip + 14), (ip + 16, ip + 18)]  # flags, checksum
    found = {(_TCP, ip, ip + n): _mask(ip, ip + n, *tcp) for n in range(20, 61, 4)}
    return found | {(_UDP, ip, ip + 8): _mask(ip, ip + 8, (ip + 6, ip + 8))}


_MASKS = _masks(20) | _masks(40)


class Gro:
    """Collects one super-packet at a time: what does not fit to it sends it on its way."""

    def __init__(self, tun: Tun) -> None:
        self._tun = tun
        self.udp = False
        """Whether the kernel takes super-packets of UDP."""
        self.refused = 0
        """Packets that the stack did not take."""
        self._first = b""
        self._parts: list[memoryview] = []
        self._protocol = self._ip = self._headers = self._length = self._total = 0
        self._most = 0
        # The headers that the next packet must have, as a number, where the mask has ones; and what
        # is then added to it. No header is less than zero: then none may follow.
        self._expected, self._mask, self._step = -1, 0, 0
        self._last_flags = 0

    def add(self, packet: bytes, length: int) -> None:
        """A whole IP packet, of `length` bytes; what stands behind is not looked at."""
        headers = self._headers
        if (
            length == self._length
            and int.from_bytes(packet[:headers], "big") & self._mask == self._expected
        ):
            if self._protocol == _TCP:
                flags = packet[self._ip + 13]
                if flags & ~_PSH != _ACK:
                    self._start(packet, length)
                    return
                self._last_flags = flags
                if flags & _PSH:
                    self._expected, self._step = -1, 0
            self._parts.append(memoryview(packet)[headers:length])
            self._total += length - headers
            self._expected += self._step
            if self._total + length > _MOST or len(self._parts) == self._most:
                self.flush()
            return
        self._start(packet, length)

    def _start(self, packet: bytes, length: int) -> None:
        """With a packet that is not what was foreseen."""
        ip = _IP.get(packet[0], 0)
        protocol = packet[9] if ip == 20 else packet[6]
        headers = self._joinable(packet, length, ip, protocol)
        if not headers:
            self.flush()
            self._write_plain(packet, length)
            return
        if self._is_last(packet, length, headers):
            self._parts.append(memoryview(packet)[headers:length])
            self._total += length - headers
            if protocol == _TCP:
                self._last_flags = packet[ip + 13]
            self._expected, self._step = -1, 0
            return
        self.flush()
        self._first = packet
        self._parts.append(memoryview(packet)[headers:length])
        self._protocol, self._ip, self._headers = protocol, ip, headers
        self._length = self._total = length
        self._most = _MOST_PARTS[protocol]
        self._mask = _MASKS[protocol, ip, headers]
        self._expected = int.from_bytes(packet[:headers], "big") & self._mask
        self._step = self._last_flags = 0
        runs_over = False
        if protocol == _TCP:
            self._last_flags = packet[ip + 13]
            self._step = length - headers << (headers - ip - 8) * 8
            self._expected += self._step
            # A sequence number that ran over would carry into the port.
            runs_over = packet[ip + 4 : ip + 6] == b"\xff\xff"
        if 2 * length - headers > _MOST or runs_over or self._last_flags & _PSH:
            self._expected, self._step = -1, 0

    def _joinable(self, packet: bytes, length: int, ip: int, protocol: int) -> int:
        """Length of the headers of one that others may follow; 0: it goes up by itself."""
        # No fragment, nor to become one: where the kernel cuts it again, it gets another id, which
        # then means nothing (RFC 6864, section 4.1).
        if not ip or (ip == 20 and (packet[6] & 0x7F != 0x40 or packet[7])):
            return 0
        if protocol == _TCP and length >= ip + 20:
            headers = ip + (packet[ip + 12] >> 2 & 0x3C)
            plain = packet[ip + 13] & ~_PSH == _ACK and (_TCP, ip, headers) in _MASKS
            return headers if plain and length > headers else 0
        if protocol == _UDP and self.udp and length > ip + 8:
            whole = length == ip + int.from_bytes(packet[ip + 4 : ip + 6], "big")
            return ip + 8 if whole else 0
        return 0

    def _is_last(self, packet: bytes, length: int, headers: int) -> bool:
        """Whether it is as foreseen, but shorter."""
        if self._expected < 0 or headers != self._headers or length >= self._length:
            return False
        found = bytearray(packet[:headers])
        at = 2 if self._ip == 20 else 4
        found[at : at + 2] = self._first[at : at + 2]
        if self._protocol == _UDP:
            found[self._ip + 4 : self._ip + 6] = self._first[self._ip + 4 : self._ip + 6]
        return int.from_bytes(found, "big") & self._mask == self._expected

    def flush(self) -> None:
        """Sends what was collected on its way."""
        count = len(self._parts)
        if not count:
            return
        length, self._length = self._length, 0
        self._expected, self._step = -1, 0
        if count == 1:
            parts: list[bytes | memoryview] = [_PLAIN, self._first[: self._total]]
        else:
            parts = [self._header(length), self._patched(), *self._parts]
        self._parts.clear()
        if not self._tun.write_parts(parts):
            self.refused += count

    def _write_plain(self, packet: bytes, length: int) -> None:
        if not self._tun.write_parts((_PLAIN, packet[:length])):
            self.refused += 1

    def _header(self, length: int) -> bytes:
        """`length`: of the first packet."""
        kind = UDP if self._protocol == _UDP else TCPV4 if self._ip == 20 else TCPV6
        size, offset = length - self._headers, _CHECKSUM[self._protocol]
        return Header(NEEDS_CHECKSUM, kind, self._headers, size, self._ip, offset).encode()

    def _patched(self) -> bytes:
        """The headers of the first packet, for all of them."""
        ip, total = self._ip, self._total
        found = bytearray(self._first[: self._headers])
        if ip == 20:
            found[2:4] = total.to_bytes(2, "big")
            found[10:12] = bytes(2)
            found[10:12] = checksum.of(found[:20]).to_bytes(2, "big")
            addresses = found[12:20]
        else:
            found[4:6] = (total - ip).to_bytes(2, "big")
            addresses = found[8:40]
        if self._protocol == _UDP:
            found[ip + 4 : ip + 6] = (total - ip).to_bytes(2, "big")
        else:
            found[ip + 13] |= self._last_flags & _PSH
        pseudo = 0xFFFF - checksum.of(addresses, self._protocol + total - ip)
        at = ip + _CHECKSUM[self._protocol]
        found[at : at + 2] = pseudo.to_bytes(2, "big")
        return bytes(found)
