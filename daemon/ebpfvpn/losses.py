"""Packets that the kernel loses between the programs, the daemon and the stack. It keeps count."""

from __future__ import annotations

from dataclasses import dataclass

from ebpfvpn.datapath import Datapath
from ebpfvpn.netlink import Queue
from ebpfvpn.udp import UdpSockets

_REFUSED = "socket_refused"


@dataclass(frozen=True, slots=True)
class SocketLosses:
    """Of the UDP sockets."""

    dropped: list[int]
    """What the kernel says of each: UdpSockets.dropped. Empty: they start anew."""
    lost: int
    """Packets, of those that were lost so far."""


class Losses:
    """In the queues of the UDP sockets since this was made, and of the TUN since that was made."""

    def __init__(
        self, udp: UdpSockets, datapath: Datapath, before: SocketLosses | None = None
    ) -> None:
        """When the sockets have their filters. `before`: of the process that handed them over."""
        self._udp = udp
        self._datapath = datapath
        self._refused = datapath.drops()[_REFUSED]
        self._dropped = udp.dropped()
        self._lost_before = self._most = before.lost if before else 0
        if before and len(before.dropped) == len(self._dropped):
            self._dropped = before.dropped

    def of_sockets(self) -> SocketLosses:
        """To hand over with the sockets."""
        dropped, _ = self._count()
        return SocketLosses(dropped, self._most)

    def _count(self) -> tuple[list[int], dict[str, int]]:
        """What the sockets and what the datapath say."""
        # In this order: a filter counts what it refuses just before the socket does.
        dropped, counted = self._udp.dropped(), self._datapath.drops()
        lost = sum(
            (now - before) % 2**32 for now, before in zip(dropped, self._dropped, strict=True)
        )
        lost -= counted[_REFUSED] - self._refused
        self._most = max(self._most, self._lost_before + lost)
        return dropped, counted

    def drops(self, queue: Queue) -> dict[str, int]:
        """The datapath's, and by reasons of its own what was lost. `queue` is that of the TUN.

        "lost_in_socket": the queue of a socket was full, or (the kernel has one count for both)
        a UDP checksum wrong; "lost_in_tun": the TUN's queue was full; "lost_in_stack": the kernel's
        own queue behind the TUN was, or the TUN was down.
        """
        _, counted = self._count()
        return counted | {
            "lost_in_socket": self._most,
            "lost_in_tun": queue.tx_dropped,
            "lost_in_stack": queue.rx_dropped,
        }
