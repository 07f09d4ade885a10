"""Inner packets that the datapath hands to the daemon: reading, refusing and fragmenting them.

An ICMP error bears the packet's own destination as its source: what is written to the TUN comes,
for the stack, from the tunnel, where an address of this machine would be a martian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ebpfvpn import checksum

IPV6_LEAST_MTU = 1280
"""RFC 8200, section 5: a longer way is found for these packets, if need be in fragments."""

_IPV4, _IPV6 = 20, 40
_ICMP, _ICMPV6 = 1, 58
_FRAGMENT = 44
_EXTENSIONS = (0, 43, _FRAGMENT, 60)  # hop-by-hop options, routing, destination options
_TTL = 64
_DONT_FRAGMENT, _MORE_FRAGMENTS, _OFFSET = 0x4000, 0x2000, 0x1FFF

_UNREACHABLE4, _HOST_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 1, 4
_UNREACHABLE6, _ADDRESS_UNREACHABLE, _TOO_BIG6 = 1, 3, 2
_ICMP4_QUERIES = (0, 8, 13, 14)  # echo and timestamp: the types that may be answered with errors
_QUOTE4 = 576 - _IPV4 - 8  # RFC 1812, section 4.3.2.3
_QUOTE6 = IPV6_LEAST_MTU - _IPV6 - 8  # RFC 4443, section 2.4


@dataclass(frozen=True, slots=True)
class Inner:
    """An IP packet, whole."""

    packet: bytes
    version: int
    source: bytes
    """4 or 16 bytes, as `destination`."""
    destination: bytes


def parse(packet: bytes) -> Inner | None:
    """None: not a whole IP packet."""
    length, source = length_and_source(packet) if packet else (0, b"")
    if not length:
        return None
    version = packet[0] >> 4
    destination = packet[16:20] if version == 4 else packet[24:40]
    return Inner(packet[:length], version, source, destination)


def length_and_source(packet: bytes) -> tuple[int, bytes]:
    """Of the IP packet that `packet`, which is not empty, begins with, by its own header; a length
    of 0: it is no whole one. Every packet that is opened in userspace goes through here."""
    most = len(packet)
    version = packet[0] >> 4
    if version == 4 and most >= _IPV4:
        length = packet[2] << 8 | packet[3]
        header = (packet[0] & 15) * 4
        if _IPV4 <= header <= length <= most:
            return length, packet[12:16]
    elif version == 6 and most >= _IPV6:
        length = (packet[4] << 8 | packet[5]) + _IPV6
        if length <= most:
            return length, packet[8:24]
    return 0, b""


def limit(longest: int, version: int) -> int:
    """Bytes that a packet may have on a way that `longest` fits without outer fragments."""
    return max(longest, IPV6_LEAST_MTU) if version == 6 else longest


def may_fragment(inner: Inner) -> bool:
    """Whether a router may cut the packet: IPv4 without its don't-fragment bit."""
    return inner.version == 4 and not inner.packet[6] << 8 & _DONT_FRAGMENT


def unreachable(inner: Inner) -> bytes | None:
    """An ICMP error that says so; None where there must be none (RFC 1122, section 3.2.2)."""
    if not _may_answer(inner):
        return None
    if inner.version == 4:
        return _icmp4(inner, _UNREACHABLE4, _HOST_UNREACHABLE, 0)
    return _icmp6(inner, _UNREACHABLE6, _ADDRESS_UNREACHABLE, 0)


def too_big(inner: Inner, mtu: int) -> bytes | None:
    """An ICMP error with the MTU that fits (RFC 1191, RFC 8201); None as above."""
    if not _may_answer(inner):
        return None
    if inner.version == 4:
        return _icmp4(inner, _UNREACHABLE4, _FRAGMENTATION_NEEDED, mtu)
    return _icmp6(inner, _TOO_BIG6, 0, max(mtu, IPV6_LEAST_MTU))


def fragment(inner: Inner, mtu: int) -> list[bytes]:
    """An IPv4 packet in pieces of at most `mtu` bytes (RFC 791, section 2.3). Options go into
    the first alone if they are not to be copied; here all are, which receivers ignore. None at
    all where `mtu` has no room for any of the payload."""
    packet = inner.packet
    header_length = (packet[0] & 15) * 4
    header, payload = packet[:header_length], packet[header_length:]
    flags = int.from_bytes(packet[6:8], "big")
    step = (mtu - header_length) // 8 * 8
    if step <= 0:
        return []
    pieces = []
    for start in range(0, len(payload), step):
        piece = payload[start : start + step]
        more = flags & _MORE_FRAGMENTS or (_MORE_FRAGMENTS if start + step < len(payload) else 0)
        offset = (flags & _OFFSET) + start // 8
        pieces.append(_ipv4_header(header, len(piece), more | offset) + piece)
    return pieces


def _ipv4_header(header: bytes, payload: int, flags: int) -> bytes:
    changed = bytearray(header)
    struct.pack_into("!H", changed, 2, len(header) + payload)
    struct.pack_into("!H", changed, 6, flags)
    struct.pack_into("!H", changed, 10, 0)
    struct.pack_into("!H", changed, 10, checksum.of(changed))
    return bytes(changed)


def _may_answer(inner: Inner) -> bool:
    packet = inner.packet
    if inner.version == 4:
        if int.from_bytes(packet[6:8], "big") & _OFFSET:
            return False
        if inner.destination[0] >= 224 or inner.source[0] >= 224 or not any(inner.source):
            return False
        at = (packet[0] & 15) * 4
        return not (packet[9] == _ICMP and packet[at : at + 1] not in map(_byte, _ICMP4_QUERIES))
    if inner.destination[0] == 0xFF or inner.source[0] == 0xFF or not any(inner.source):
        return False
    protocol, at = _upper_layer(packet)
    # Types below 128 are errors. In a later fragment it is not to be seen.
    return not (protocol == _ICMPV6 and packet[at : at + 1] < b"\x80")


def _upper_layer(packet: bytes) -> tuple[int, int]:
    """Of an IPv6 packet: the protocol behind its extension headers (RFC 8200, section 4), and
    where that begins; behind the packet's end, if it is in another fragment or further back than
    an error would quote."""
    protocol, at = packet[6], _IPV6
    while protocol in _EXTENSIONS:
        if at + 8 > min(len(packet), _QUOTE6):
            return protocol, len(packet)
        if protocol == _FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") & ~7:
            return packet[at], len(packet)
        # Of a fragment header, that byte is reserved.
        more = 0 if protocol == _FRAGMENT else packet[at + 1]
        protocol, at = packet[at], at + 8 * (more + 1)
    return protocol, at


def _byte(value: int) -> bytes:
    return bytes([value])


def _icmp4(inner: Inner, kind: int, code: int, last: int) -> bytes:
    body = struct.pack("!BBHI", kind, code, 0, last) + inner.packet[:_QUOTE4]
    body = body[:2] + struct.pack("!H", checksum.of(body)) + body[4:]
    header = struct.pack("!BBHHHBBH", 0x45, 0xC0, _IPV4 + len(body), 0, 0, _TTL, _ICMP, 0)
    header += inner.destination + inner.source
    return header[:10] + struct.pack("!H", checksum.of(header)) + header[12:] + body


def _icmp6(inner: Inner, kind: int, code: int, last: int) -> bytes:
    body = struct.pack("!BBHI", kind, code, 0, last) + inner.packet[:_QUOTE6]
    addresses = inner.destination + inner.source
    pseudo = addresses + struct.pack("!II", len(body), _ICMPV6)
    body = body[:2] + struct.pack("!H", checksum.of(pseudo + body)) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), _ICMPV6, _TTL)
    return header + addresses + body
