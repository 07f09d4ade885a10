"""Packets of TCP and UDP flows, and super-packets of them, as bytes. Like rows.packets without
ebpfvpn, so that nothing of it is its own judge."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from rows.packets import HOP_BY_HOP, TCP, UDP, checksum, ipv4, ipv6

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
HERE = {4: "10.1.0.1", 6: "fd01::1"}
THERE = {4: "10.5.0.9", 6: "fd05::9"}
DONT_FRAGMENT = 0x4000
HOP_OPTIONS = bytes([0, 0, 1, 4, 0, 0, 0, 0])
"""A hop-by-hop header of IPv6 but for its first byte, the next header: one PadN."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What may differ between the packets of a flow; `bytes(segment)` is the packet."""

    version: int = 4
    protocol: int = TCP
    payload: bytes = b""
    sequence: int = 1000
    acknowledgement: int = 77
    flags: int = ACK
    window: int = 500
    urgent: int = 0
    options: bytes = b""
    """Of TCP: a multiple of 4 bytes."""
    port: int = 5678
    identification: int = 0
    fragment: int = DONT_FRAGMENT
    tos: int = 0
    ttl: int = 64
    ip_options: bytes = b""
    """Of IPv4: a multiple of 4 bytes."""
    extension: bool = False
    """With a hop-by-hop header, of IPv6."""
    source: dict[int, str] = field(default_factory=lambda: THERE)

    def with_(self, **changes: object) -> Segment:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def headers(self) -> int:
        """Bytes of IP header and the like before TCP or UDP."""
        if self.version == 4:
            return 20 + len(self.ip_options)
        return 48 if self.extension else 40

    def __bytes__(self) -> bytes:
        return self._around(self._transport(partial=False))

    def partial(self) -> bytes:
        """With nothing but the pseudo-header's sum in the checksum's place."""
        return self._around(self._transport(partial=True))

    def _transport(self, *, partial: bool) -> bytes:
        if self.protocol == UDP:
            head = struct.pack("!HHH", 1234, self.port, 8 + len(self.payload))
            tail = b""
        else:
            offset = (20 + len(self.options)) // 4
            head = struct.pack(
                "!HHIIBBH", 1234, self.port, self.sequence % 2**32, self.acknowledgement,
                offset << 4, self.flags, self.window,
            )  # fmt: skip
            tail = struct.pack("!H", self.urgent) + self.options
        length = len(head) + 2 + len(tail) + len(self.payload)
        pseudo = ip_address(self.source[self.version]).packed
        pseudo += ip_address(HERE[self.version]).packed + struct.pack("!II", length, self.protocol)
        if partial:
            check = ~checksum(pseudo) & 0xFFFF
        else:
            check = checksum(pseudo + head + bytes(2) + tail + self.payload)
            if self.protocol == UDP:
                check = check or 0xFFFF
        return head + struct.pack("!H", check) + tail + self.payload

    def _around(self, transport: bytes) -> bytes:
        source = self.source[self.version]
        if self.version == 4:
            return ipv4(
                source, HERE[4], transport, protocol=self.protocol, tos=self.tos, ttl=self.ttl,
                identification=self.identification % 65536, fragment=self.fragment,
                options=self.ip_options,
            )  # fmt: skip
        following = self.protocol
        if self.extension:
            transport = bytes([self.protocol]) + HOP_OPTIONS[1:] + transport
            following = HOP_BY_HOP
        return ipv6(
            source, HERE[6], transport, next_header=following, traffic_class=self.tos,
            hop_limit=self.ttl,
        )  # fmt: skip


def pieces(whole: Segment, mss: int) -> list[Segment]:
    """What Linux makes of a super-packet (tcp_gso_segment, __udp_gso_segment, inet_gso_segment)."""
    payloads = [whole.payload[at : at + mss] for at in range(0, len(whole.payload), mss)]
    found = []
    for i, payload in enumerate(payloads):
        flags = whole.flags
        if i + 1 < len(payloads):
            flags &= ~(FIN | PSH)
        if i:
            flags &= ~CWR
        found.append(
            whole.with_(
                payload=payload,
                flags=flags,
                sequence=whole.sequence + i * mss,
                identification=whole.identification + i,
            )
        )
    return found
