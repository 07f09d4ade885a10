"""The longest inner packet that fits the way to an endpoint."""

from __future__ import annotations

import logging

from ebpfvpn import wire
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.netlink import Link, Netlink
from ebpfvpn.underlay import resolve

log = logging.getLogger(__name__)

_MOST_KNOWN = 16_384

HEADERS = {4: 20 + 8 + wire.Data.OVERHEAD, 6: 40 + 8 + wire.Data.OVERHEAD}
"""IP and UDP header, and what a message adds, by the outer IP version."""


def longest_inner(mtu: int, version: int, inner_mtu: int) -> int:
    """On a way of `mtu` bytes, by the outer IP version; 0: whatever the TUN's MTU lets. Padding
    makes packets longer, but not than that."""
    room = mtu - HEADERS[version]
    # Where no packet fits the limit is one all the same, and not 0.
    return 0 if room >= inner_mtu else max(room // wire.PADDING, 1) * wire.PADDING


class PathMtu:
    """As the routing table and the devices say."""

    def __init__(self, netlink: Netlink, fwmark: int) -> None:
        self._netlink = netlink
        self._fwmark = fwmark
        self._links: dict[int, Link] = {}
        self._known: dict[object, int] = {}
        self._failure = ""
        """What was said in the log already."""

    def network_changed(self) -> None:
        self._links.clear()
        self._known.clear()

    def max_inner(self, endpoint: Endpoint, inner_mtu: int) -> int:
        """See `longest_inner`; 0 also without a way, and as long as the kernel does not tell."""
        key = endpoint.address, endpoint.local, endpoint.ifindex
        if key not in self._known:
            try:
                mtu = self._find(endpoint)
            except OSError as error:
                if self._failure != str(error):
                    log.warning("the way to %s cannot be looked up: %s", endpoint.address, error)
                self._failure = str(error)
                return 0
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = mtu
        mtu = self._known[key]
        return longest_inner(mtu, endpoint.address.version, inner_mtu) if mtu else 0

    def _find(self, endpoint: Endpoint) -> int:
        """0: there is no way. OSError."""
        for local in (endpoint.local, None):
            way = resolve(
                self._netlink, self._link, endpoint.address, local,
                ifindex=endpoint.ifindex, fwmark=self._fwmark, find_mac=False,
            )  # fmt: skip
            if way is not None:
                return way.mtu
        return 0

    def _link(self, ifindex: int) -> Link | None:
        if ifindex not in self._links:
            self._links = {link.ifindex: link for link in self._netlink.links()}
        return self._links.get(ifindex)
