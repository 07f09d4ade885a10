"""A peer as the userspace path has it: where its packets go, and what they have done so far."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from ebpfvpn.datapath import Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.udp import Destination

if TYPE_CHECKING:
    from ebpfvpn.userspace.session import Session


class Peer:
    """Public attributes, because every packet goes through them. Times as in Traffic."""

    __slots__ = (
        "current", "destination", "endpoint", "flow_ports", "last_data_received", "last_data_sent",
        "last_received", "last_sent", "late", "max_inner", "max_lateness", "next", "number",
        "public_key", "replayed", "rx_bytes", "rx_packets", "tx_bytes", "tx_packets",
        "unacknowledged_since", "unanswered_since", "usable",
    )  # fmt: skip

    def __init__(self, number: int, public_key: bytes) -> None:
        self.number = number
        self.public_key = public_key
        self.endpoint: Endpoint | None = None
        self.destination: Destination | None = None
        """Of the endpoint."""
        self.flow_ports = 1
        """See Datapath.set_flow_ports."""
        self.max_inner = 0
        """See Datapath.max_inner."""
        self.usable = False
        self.current: Session | None = None
        """Seals."""
        self.next: Session | None = None
        """Takes its place with its first authenticated packet."""
        self.tx_packets = self.tx_bytes = self.rx_packets = self.rx_bytes = 0
        self.last_sent = self.last_data_sent = 0.0
        self.last_received = self.last_data_received = 0.0
        self.unanswered_since = self.unacknowledged_since = 0.0
        self.replayed = self.late = self.max_lateness = 0

    def sent(self, packets: int, size: int, now: float, *, data: bool) -> None:
        """`packets` were sealed; `size` is that of their messages, in bytes."""
        self.tx_packets += packets
        self.tx_bytes += size
        self.last_sent = now
        self.unacknowledged_since = 0.0
        if data:
            self.last_data_sent = now
            self.unanswered_since = self.unanswered_since or now

    def received(self, packets: int, size: int, now: float, *, data: bool) -> None:
        """`packets` were authenticated; `size` is that of their messages, in bytes."""
        self.rx_packets += packets
        self.rx_bytes += size
        self.last_received = now
        self.unanswered_since = 0.0
        if data:
            self.last_data_received = now
            self.unacknowledged_since = self.unacknowledged_since or now

    def count_from(self, traffic: Traffic) -> None:
        """Goes on with figures of before."""
        for name, value in asdict(traffic).items():
            setattr(self, name, value)

    def traffic(self) -> Traffic:
        return Traffic(
            self.tx_packets,
            self.tx_bytes,
            self.rx_packets,
            self.rx_bytes,
            self.last_sent,
            self.last_data_sent,
            self.last_received,
            self.last_data_received,
            self.unanswered_since,
            self.unacknowledged_since,
            self.replayed,
            self.late,
            self.max_lateness,
        )
