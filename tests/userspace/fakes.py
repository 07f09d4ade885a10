"""What the userspace path does its I/O with, in memory: a TUN device, UDP sockets, ways."""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import cast

from ebpfvpn import virtio_net
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.path_mtu import PathMtu
from ebpfvpn.tun import Tun
from ebpfvpn.udp import Arrival, Destination, UdpSockets

PLAIN = bytes(virtio_net.LENGTH)


class FakeTun(Tun):
    def __init__(self) -> None:
        self.waiting: deque[bytes] = deque()
        """For `read_into`, each behind its header."""
        self.written: list[bytes] = []
        self.up = True
        self.offloads = False

    def leaves(self, *packets: bytes, header: bytes = PLAIN) -> None:
        """The stack sends packets into the tunnel."""
        self.waiting.extend(header + packet for packet in packets)

    def read_into(self, buffer: bytearray) -> int:
        if not self.waiting:
            return 0
        packet = self.waiting.popleft()
        buffer[: len(packet)] = packet
        return len(packet)

    def write_parts(self, parts: Sequence[bytes | memoryview]) -> bool:
        assert len(parts) <= 1024
        if self.up:
            self.written.append(b"".join(parts))
        return self.up

    def offload(self, on: bool) -> bool:
        self.offloads = on
        return on

    def took(self) -> list[bytes]:
        """What the stack was given since the last call, where nothing was joined."""
        taken, self.written = self.written, []
        assert all(one.startswith(PLAIN) for one in taken)
        return [one[virtio_net.LENGTH :] for one in taken]


class FakeDestination(Destination):
    def __init__(self, udp: FakeUdp, to: Endpoint) -> None:
        self._udp = udp
        self._to = to

    def send(self, parts: Sequence[bytes | memoryview], tos: int, segment: int = 0) -> None:
        data = b"".join(parts)
        refusal = self._udp.refuses(data, segment)
        if refusal:
            raise OSError(refusal, os.strerror(refusal))
        self._udp.sent.append((data, tos, segment, self._to))

    def wait(self, seconds: float) -> None:
        self._udp.waited.append(seconds)


class FakeUdp(UdpSockets):
    """Sockets are told apart by nothing: `messages` may be given any."""

    def __init__(self, *families: int) -> None:
        """Of IP versions; none: both."""
        self._families = families or (4, 6)
        self.arrivals: deque[tuple[bytes, int, Endpoint, int]] = deque()
        """Data, length of those that were joined (0: one alone), source, TOS byte."""
        self.sent: list[tuple[bytes, int, int, Endpoint]] = []
        """Data, TOS byte, length of each for UDP_SEGMENT or 0, destination."""
        self.refusals: deque[int] = deque()
        """An errno for each of the next calls; 0: it goes."""
        self.longest = 65507
        """What the way takes of UDP payload in one packet; more is refused to UDP_SEGMENT."""
        self.waited: list[float] = []
        self.joined = False
        self.sockets = [cast(socket.socket, None)]

    def refuses(self, data: bytes, segment: int) -> int:
        if self.refusals and (refusal := self.refusals.popleft()):
            return refusal
        if len(data) > 65507:
            return errno.EMSGSIZE
        if segment and (segment > self.longest or len(data) > 64 * segment):
            return errno.EINVAL
        return 0

    def join(self, sock: socket.socket, on: bool) -> None:
        self.joined = on

    def segments(self) -> bool:
        return True

    def joins(self, sock: socket.socket) -> bool:
        return self.joined

    def receive_into(self, sock: socket.socket, buffer: bytearray) -> Arrival | None:
        if not self.arrivals:
            return None
        data, segment, source, tos = self.arrivals.popleft()
        buffer[: len(data)] = data
        return Arrival(len(data), segment or len(data), source, tos)

    def destination(self, to: Endpoint) -> Destination | None:
        return FakeDestination(self, to) if to.address.version in self._families else None

    def messages(self) -> list[bytes]:
        """What was sent since the last call, cut as the kernel cuts it."""
        taken, self.sent = self.sent, []
        return [
            data[at : at + (segment or len(data))]
            for data, _, segment, _ in taken
            for at in range(0, len(data), segment or len(data))
        ]


class FakePathMtu(PathMtu):
    def __init__(self) -> None:
        self.longest = 0
        self.asked: list[Endpoint] = []

    def network_changed(self) -> None:
        pass

    def max_inner(self, endpoint: Endpoint, inner_mtu: int) -> int:
        self.asked.append(endpoint)
        return self.longest
