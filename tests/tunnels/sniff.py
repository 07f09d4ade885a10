"""What is on the wire: the messages that an AF_PACKET socket sees on an underlay device.

On a receiving device it sees what tc or nobody took (a native XDP program comes before it), so
look at what a device sends, or receives from a node in another mode."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from types import TracebackType

from netns import Namespace
from rows.packets import checksum
from tunnels.traffic import SO_RCVBUFFORCE

_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_UDP = 17
_ETHERNET = 14


@dataclass(frozen=True, slots=True)
class Message:
    """A UDP packet."""

    source: str
    destination: str
    tos: int
    payload: bytes
    udp_checksum: int
    """As it stands in the packet."""
    sum: int
    """Over the pseudo-header and the UDP packet, checksum included: 0 when it is right."""
    ipv4_sum: int
    """Over the IPv4 header; 0 when it is right."""


def parse(frame: bytes) -> Message | None:
    """None: no UDP packet."""
    packet = frame[_ETHERNET:]
    kind = frame[12:14]
    if kind == b"\x08\x00" and packet[9] == _UDP:
        start = (packet[0] & 15) * 4
        length = int.from_bytes(packet[2:4], "big")
        source, destination, tos = packet[12:16], packet[16:20], packet[1]
        ipv4_sum = checksum(packet[:start])
    elif kind == b"\x86\xdd" and packet[6] == _UDP:
        start = 40
        length = start + int.from_bytes(packet[4:6], "big")
        source, destination = packet[8:24], packet[24:40]
        tos = int.from_bytes(packet[:2], "big") >> 4 & 0xFF
        ipv4_sum = 0
    else:
        return None
    udp = packet[start:length]
    pseudo = source + destination + len(udp).to_bytes(4, "big") + _UDP.to_bytes(4, "big")
    return Message(
        str(ip_address(source)),
        str(ip_address(destination)),
        tos,
        udp[8:],
        int.from_bytes(udp[6:8], "big"),
        checksum(pseudo + udp),
        ipv4_sum,
    )


class Sniffer:
    """Collects frames while the `with` body runs."""

    def __init__(self, ns: Namespace, device: str, *, outgoing: bool) -> None:
        self._socket = ns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        self._socket.bind((device, _ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._outgoing = outgoing
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.frames: list[bytes] = []

    def _run(self) -> None:
        """Until it is told to stop, and nothing is waiting any more."""
        while True:
            try:
                frame, where = self._socket.recvfrom(65535)
            except TimeoutError:
                if self._done.is_set():
                    return
                continue
            if (where[2] == _PACKET_OUTGOING) == self._outgoing:
                self.frames.append(frame)

    def messages(self) -> list[Message]:
        return [message for frame in self.frames if (message := parse(frame)) is not None]

    def __enter__(self) -> Sniffer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
        self._socket.close()
