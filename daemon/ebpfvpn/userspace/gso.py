"""Generic segmentation offload: cutting super-packets, as the TUN device hands them over, into IP
packets. What a network card does, in numpy, for all packets of one at once.

Source: Linux' Documentation/networking/segmentation-offloads.rst.
"""

from __future__ import annotations

from struct import Struct

import numpy as np

from ebpfvpn import checksum
from ebpfvpn.virtio_net import ECN, NEEDS_CHECKSUM, TCPV4, TCPV6, UDP, Header
from ebpfvpn.wire import PADDING

_IPV4_HEADER, _IPV6_HEADER, _TCP_HEADER, _UDP_HEADER = 20, 40, 20, 8
_VERSIONS = {TCPV4: (4,), TCPV6: (6,), UDP: (4, 6)}
_TCP_SEQUENCE, _TCP_OFFSET, _TCP_FLAGS, _TCP_CHECKSUM = 4, 12, 13, 16
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_UDP_LENGTH, _UDP_CHECKSUM = 4, 6
_IPV4_ID, _IPV4_CHECKSUM = 4, 10
_PROTOCOL_TCP, _PROTOCOL_UDP = 6, 17
_FIELD = Struct("!H")

Packet = tuple[memoryview | bytes, int]
"""An IP packet's buffer, and its length: behind it are zeros up to a multiple of PADDING."""


class GsoError(Exception):
    """Not a super-packet that can be cut; the kernel makes none such."""


def pieces(length: int, header: Header) -> int:
    """As how many packets a super-packet of `length` bytes counts, whether it can be cut or not."""
    return max(-(-(length - header.headers) // header.gso_size), 1) if header.gso_size else 1


def cut(packet: memoryview, header: Header) -> list[Packet]:
    """The packets of a super-packet (`header.gso_type`). GsoError."""
    start, mss, headers = header.checksum_start, header.gso_size, _headers(packet, header)
    tcp = header.gso_type & ~ECN != UDP
    length = len(packet) - headers
    if length <= 0 or not mss:
        raise GsoError("no payload")
    count = -(-length // mss)
    # Rows of even length, for they are also looked at as 16-bit words, with room for the padding.
    width = (headers + mss + PADDING) // PADDING * PADDING
    rows = np.zeros((count, width), np.uint8)
    data = np.frombuffer(packet, np.uint8)
    rows[:, :headers] = data[:headers]
    full = length // mss
    rows[:full, headers : headers + mss] = data[headers : headers + full * mss].reshape(full, mss)
    last = length - full * mss
    if last:
        rows[full, headers : headers + last] = data[headers + full * mss :]
    lengths = np.full(count, headers + mss)
    lengths[-1] = headers + (last or mss)
    _number(rows, lengths, start, mss, tcp=tcp)
    flat = memoryview(rows.reshape(-1).data)
    return [(flat[i * width : (i + 1) * width], size) for i, size in enumerate(lengths.tolist())]


def _headers(packet: memoryview, header: Header) -> int:
    """Bytes of a super-packet before its payload. GsoError."""
    start, kind = header.checksum_start, header.gso_type & ~ECN
    tcp = kind != UDP
    if kind not in _VERSIONS or len(packet) < start + (_TCP_HEADER if tcp else _UDP_HEADER):
        raise GsoError(f"GSO type {kind}")
    version = packet[0] >> 4
    ip = (packet[0] & 15) * 4 if version == 4 else _IPV6_HEADER
    if version not in _VERSIONS[kind] or not _IPV4_HEADER <= ip <= start or start % 2:
        raise GsoError(f"IP version {version}")
    transport = (packet[start + _TCP_OFFSET] >> 4) * 4 if tcp else _UDP_HEADER
    if tcp and transport < _TCP_HEADER:
        raise GsoError("TCP header")
    return start + transport


def _number(rows: np.ndarray, lengths: np.ndarray, start: int, mss: int, *, tcp: bool) -> None:
    """Writes what differs between the packets' headers."""
    words = rows.view(">u2")
    index = np.arange(len(rows), dtype=np.uint32)
    if rows[0, 0] >> 4 == 4:
        words[:, 1] = lengths
        words[:, _IPV4_ID // 2] += index.astype(np.uint16)
        _set_checksum(rows, rows[:, : (rows[0, 0] & 15) * 4], _IPV4_CHECKSUM, 0)
        addresses = rows[0, 12:20]
    else:
        words[:, 2] = lengths - 40
        addresses = rows[0, 8:40]
    if tcp:
        at = (start + _TCP_SEQUENCE) // 2
        sequence = (int(words[0, at]) << 16 | int(words[0, at + 1])) + index * np.uint32(mss)
        words[:, at] = sequence >> 16
        words[:, at + 1] = sequence
        rows[:-1, start + _TCP_FLAGS] &= 0xFF & ~(_FIN | _PSH)
        rows[1:, start + _TCP_FLAGS] &= 0xFF & ~_CWR
    else:
        words[:, (start + _UDP_LENGTH) // 2] = lengths - start
    protocol = _PROTOCOL_TCP if tcp else _PROTOCOL_UDP
    pseudo = _native(addresses).sum(dtype=np.uint64) + _swap(protocol + lengths - start)
    field = _TCP_CHECKSUM if tcp else _UDP_CHECKSUM
    _set_checksum(rows, rows[:, start:], start + field, pseudo)
    if not tcp:
        sums = words[:, (start + field) // 2]
        sums[sums == 0] = 0xFFFF  # zero means none


def _native(data: np.ndarray) -> np.ndarray:
    """As 16-bit words in the machine's order, in which they are added fastest; the sum is the same
    (RFC 1071, section 2 B)."""
    return data.view(np.uint16)


def _swap(values: np.ndarray) -> np.ndarray:
    """Words in the machine's order."""
    words = values.astype(">u2")
    return words.view(np.uint16).astype(np.uint64)


def _set_checksum(
    rows: np.ndarray, covered: np.ndarray, field: int, pseudo: np.ndarray | int
) -> None:
    fields = _native(rows)[:, field // 2]
    fields[:] = 0
    sums = _native(covered).sum(axis=1, dtype=np.uint64) + np.uint64(pseudo)
    for _ in range(3):
        sums = (sums & 0xFFFF) + (sums >> 16)
    fields[:] = ~sums & 0xFFFF


def complete(packet: memoryview, header: Header) -> None:
    """Writes the checksum that a packet which is no super-packet may lack."""
    start, offset = header.checksum_start, header.checksum_offset
    if not header.flags & NEEDS_CHECKSUM or start + offset + 2 > len(packet):
        return
    # What stands in the field is the pseudo-header's sum.
    value = checksum.of(packet[start:])
    if offset == _UDP_CHECKSUM:
        value = value or 0xFFFF
    _FIELD.pack_into(packet, start + offset, value)
