"""Packets as bytes: what the rows put in and what they expect out.

Written with struct and cryptography alone, from the RFCs, so that nothing of ebpfvpn is its own
judge. Addresses are strings or anything that ip_address takes.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

HOP_BY_HOP = 0
ICMP = 1
TCP = 6
UDP = 17

ETHERTYPE = {4: 0x0800, 6: 0x86DD}
VLAN = 0x8100
QINQ = 0x88A8

HERE = bytes.fromhex("0200000000aa")
THERE = bytes.fromhex("0200000000bb")


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    protocol: int = UDP,
    tos: int = 0,
    identification: int = 0,
    fragment: int = 0,
    ttl: int = 64,
    options: bytes = b"",
) -> bytes:
    """`fragment`: flags and offset, as in the header. `options`: a multiple of 4 bytes."""
    header = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + len(options) // 4,
        tos,
        20 + len(options) + len(payload),
        identification,
        fragment,
        ttl,
        protocol,
        0,
        ip_address(source).packed,
        ip_address(destination).packed,
    )
    header += options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def ipv6(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    next_header: int = UDP,
    traffic_class: int = 0,
    hop_limit: int = 64,
) -> bytes:
    head = struct.pack("!IHBB", 6 << 28 | traffic_class << 20, len(payload), next_header, hop_limit)
    return head + ip_address(source).packed + ip_address(destination).packed + payload


def ip(
    source: str, destination: str, payload: bytes = b"", *, protocol: int = UDP, tos: int = 0
) -> bytes:
    """IPv4 or IPv6, as the addresses are. `tos`: TOS byte or traffic class."""
    if ip_address(source).version == 4:
        return ipv4(source, destination, payload, protocol=protocol, tos=tos)
    return ipv6(source, destination, payload, next_header=protocol, traffic_class=tos)


def udp(
    source: str, source_port: int, destination: str, destination_port: int, payload: bytes
) -> bytes:
    """With the checksum over its pseudo-header (RFC 768; RFC 8200 section 8.1)."""
    length = 8 + len(payload)
    pseudo = ip_address(source).packed + ip_address(destination).packed
    pseudo += struct.pack("!II", length, UDP)
    header = struct.pack("!HHH", source_port, destination_port, length)
    check = checksum(pseudo + header + bytes(2) + payload) or 0xFFFF
    return header + struct.pack("!H", check) + payload


def ethernet(
    payload: bytes,
    *,
    destination: bytes = HERE,
    source: bytes = THERE,
    tags: tuple[tuple[int, int], ...] = (),
    ethertype: int | None = None,
) -> bytes:
    """`tags`: VLAN tags from the outermost, each (ethertype, VLAN). `ethertype`: None means that
    of the IP packet in it."""
    if ethertype is None:
        ethertype = ETHERTYPE[payload[0] >> 4]
    header = destination + source
    for kind, vlan in tags:
        header += struct.pack("!HH", kind, vlan)
    return header + struct.pack("!H", ethertype) + payload


def pad(packet: bytes) -> bytes:
    return packet + bytes(-len(packet) % 16)


def data_message(key: bytes, receiver: int, counter: int, text: bytes) -> bytes:
    """WireGuard's type 4 (whitepaper section 5.4.6) with `text` as it is, padded or not."""
    sealed = ChaCha20Poly1305(key).encrypt(struct.pack("<4xQ", counter), text, b"")
    return struct.pack("<IIQ", 4, receiver, counter) + sealed


def open_data_message(key: bytes, message: bytes) -> tuple[int, int, bytes]:
    """Receiver, counter and text; cryptography.exceptions.InvalidTag."""
    kind, receiver, counter = struct.unpack("<IIQ", message[:16])
    assert kind == 4
    return (
        receiver,
        counter,
        ChaCha20Poly1305(key).decrypt(struct.pack("<4xQ", counter), message[16:], b""),
    )
