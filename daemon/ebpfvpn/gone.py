"""What kernel paths that are gone had counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from ebpfvpn.datapath import Traffic, added
from ebpfvpn.failures import logged
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.userspace.state import PeerState


class Gone:
    """Of one tunnel."""

    def __init__(self) -> None:
        self.traffic: dict[int, Traffic] = {}
        """By peer."""
        self.drops: Counter[str] = Counter()

    def add(self, kernel: KernelDatapath) -> None:
        """One that goes. What it does not tell is forgotten, and that is logged."""
        with logged("the traffic of the kernel path is forgotten"):
            for number, traffic in kernel.traffic().items():
                before = self.traffic.get(number)
                self.traffic[number] = added(before, traffic) if before else traffic
        with logged("the drops of the kernel path are forgotten"):
            self.drops.update(kernel.drops())

    def with_traffic(self, one: PeerState) -> PeerState:
        """A peer as it is in userspace, and with what it had before."""
        gone = self.traffic.get(one.number)
        return replace(one, traffic=added(one.traffic, gone)) if gone else one
