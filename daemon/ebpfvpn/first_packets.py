"""Packets that the datapath left to the daemon: their peer has no usable session, or there is no
peer, or they do not fit the way to it."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from ebpfvpn import inner
from ebpfvpn.device import Device
from ebpfvpn.inner import Inner
from ebpfvpn.ratelimiter import Limiter
from ebpfvpn.setup import Interface
from ebpfvpn.staged import Staged

_ICMP_PER_SECOND = 1000
_MOST_BATCHES = 16
"""Some 4,000 packets, four times what a TUN's queue holds unless told. Who sends faster than they
are read must not hold everything up."""


class FirstPackets:
    """Stages what can be sent soon, answers the rest with ICMP."""

    def __init__(
        self, interface: Interface, device: Device, staged: Staged, counters: Counter[str]
    ) -> None:
        self._interface = interface
        self._device = device
        self._staged = staged
        self._counters = counters
        self._icmp = Limiter(_ICMP_PER_SECOND)

    def read(self, now: float) -> bool:
        """What waits on the TUN, a batch at most. Whether the device may have actions then."""
        found = False
        for packet in self._interface.datapath.packets():
            self._handle(packet, now)
            found = True
        return found

    def read_all(self, now: float) -> None:
        """As `read`, until nothing waits any more, or too much comes."""
        for _ in range(_MOST_BATCHES):
            if not self.read(now):
                return

    def _handle(self, packet: bytes, now: float) -> None:
        found = inner.parse(packet)
        if found is None:
            self._counters["malformed_inner"] += 1
            return
        peer = self._interface.allowed_ips.lookup(ip_address(found.destination))
        if peer is None or not self._has_endpoint(peer):
            self._answer(inner.unreachable(found), "unreachable", now)
            return
        longest = self._interface.datapath.max_inner(peer)
        if longest and len(found.packet) > inner.limit(longest, found.version):
            self._handle_too_big(found, peer, longest, now)
            return
        self._stage(peer, [found.packet], now)

    def _has_endpoint(self, peer: int) -> bool:
        """One is known, or a name is being resolved."""
        configured = self._interface.peers[peer].endpoint is not None
        return configured or self._device.status(peer).endpoint is not None

    def _handle_too_big(self, found: Inner, peer: int, longest: int, now: float) -> None:
        if not inner.may_fragment(found):
            self._answer(inner.too_big(found, longest), "too_big", now)
        elif pieces := inner.fragment(found, longest):
            self._stage(peer, pieces, now)
        else:
            self._answer(None, "too_big", now)

    def _stage(self, peer: int, packets: list[bytes], now: float) -> None:
        if not self._staged.waiting(peer):
            # Later packets queue up behind these, until all have been sent.
            self._interface.datapath.set_usable(peer, False)
        for packet in packets:
            if self._staged.full(peer) and self._device.has_session(peer, now):
                self._interface.datapath.send(peer, self._staged.take(peer))
            self._staged.add(peer, packet)
        self._device.want_session(peer, now)

    def _answer(self, icmp: bytes | None, reason: str, now: float) -> None:
        self._counters[reason] += 1
        if icmp is None or not self._icmp.allow(now):
            return
        if not self._interface.tun.write(icmp):
            self._counters["icmp_refused"] += 1
