"""The longest inner packet that fits the way to an endpoint."""

from __future__ import annotations

from ebpfvpn import wire
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.netlink import Link, Netlink
from ebpfvpn.underlay import resolve

_MOST_KNOWN = 16_384

HEADERS = {4: 20 + 8 + 32, 6: 40 + 8 + 32}
"""IP, UDP, header and tag of a message."""


def longest_inner(mtu: int, version: int, inner_mtu: int) -> int:
    """On a way of `mtu` bytes, by the outer IP version; 0: whatever the TUN's MTU lets. Padding
    makes packets longer, but not than that."""
    room = max(mtu - HEADERS[version], 0)
    return 0 if room >= inner_mtu else room // wire.PADDING * wire.PADDING


class PathMtu:
    """As the routing table and the devices say."""

    def __init__(self, netlink: Netlink, fwmark: int) -> None:
        self._netlink = netlink
        self._fwmark = fwmark
        self._links: dict[int, Link] = {}
        self._known: dict[object, int] = {}

    def network_changed(self) -> None:
        self._links.clear()
        self._known.clear()

    def max_inner(self, endpoint: Endpoint, inner_mtu: int) -> int:
        """See `longest_inner`; 0 also without a way."""
        key = endpoint.address, endpoint.local, endpoint.ifindex
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._find(endpoint)
        mtu = self._known[key]
        return longest_inner(mtu, endpoint.address.version, inner_mtu) if mtu else 0

    def _find(self, endpoint: Endpoint) -> int:
        """0: there is no way."""
        for local in (endpoint.local, None):
            try:
                way = resolve(
                    self._netlink, self._link, endpoint.address, local,
                    ifindex=endpoint.ifindex, fwmark=self._fwmark, find_mac=False,
                )  # fmt: skip
            except OSError:
                return 0
            if way is not None:
                return way.mtu
        return 0

    def _link(self, ifindex: int) -> Link | None:
        if ifindex not in self._links:
            self._links = {link.ifindex: link for link in self._netlink.links()}
        return self._links.get(ifindex)
