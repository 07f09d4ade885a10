"""Ways to endpoints: the map `routes`, and the devices that are attached for them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from ebpfvpn.datapath import DatapathError
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.failures import logged
from ebpfvpn.kernel import attach, layout
from ebpfvpn.kernel.attach import Attachment, AttachMode, Programs, Tunnel
from ebpfvpn.kernel.cpumap import CpuMap
from ebpfvpn.kernel.layout import number, octets, pack_address, unpack_address
from ebpfvpn.kernel.map import BPF_F_LOCK
from ebpfvpn.kernel.objects import Object
from ebpfvpn.netlink import Link, Netlink
from ebpfvpn.path_mtu import longest_inner
from ebpfvpn.underlay import Neighbours, Way, resolve

log = logging.getLogger(__name__)

_BURST = 0.1
"""Seconds for which a neighbour that was looked up serves all peers behind it."""


class Ways:
    """Of one tunnel. Endpoints are kept in their map alone, where packets move them."""

    def __init__(
        self, loaded: Object, netlink: Netlink, tunnel: Tunnel, programs: Programs, mtu: int,
        fwmark: int, mode: AttachMode, *, flow_ports: bool,
    ) -> None:  # fmt: skip
        self._endpoints = loaded.maps["endpoints"]
        self._routes = loaded.maps["routes"]
        self._set_peer = loaded.programs["set_peer"]
        self._cpumap = CpuMap(loaded.maps, loaded.programs)
        self._netlink = netlink
        self.tunnel = tunnel
        self.programs = programs
        self._mtu = mtu
        self._fwmark = fwmark
        self.mode: AttachMode = mode
        self._flow_ports = flow_ports
        self._links: dict[int, Link] = {}
        self._neighbours: Neighbours = {}
        self._neighbours_known = 0.0
        self._keys: dict[int, bytes] = {}
        self._users: Counter[bytes] = Counter()
        self._chosen: dict[int, Endpoint] = {}
        """By peer: what was written where the kernel chose our address. As long as no packet has
        changed it, the kernel may choose again."""
        self._failed: dict[int, str] = {}
        """By peer: what was said in the log already."""
        self.attachments: dict[int, Attachment] = {}
        self.spread: dict[int, int] = {}
        """By device, over how many CPUs its messages are spread while it is busy."""

    def adopt(self, devices: Iterable[int]) -> None:
        """Goes on with the endpoints that are known, and on devices where an earlier daemon was."""
        self._find_links()
        for ifindex in devices:
            if ifindex in self._links:
                self._attach(ifindex)
            else:
                attach.detach(self._netlink, self.tunnel, ifindex)
        self._cpumap.keep(self.attachments)
        routes = set(self._routes.keys())
        for key in [*self._endpoints.keys()]:
            self._resolve(layout.from_number(key))
        for key in routes - set(self._users):
            self._routes.delete(key)

    def set_endpoint(self, peer: int, endpoint: Endpoint) -> None:
        self._chosen.pop(peer, None)
        self._resolve(peer, endpoint)

    def endpoint(self, peer: int) -> Endpoint | None:
        raw = self._endpoints.lookup(number(peer), BPF_F_LOCK)
        if raw is None:
            return None
        entry = layout.Endpoint.from_buffer_copy(raw)
        address = unpack_address(bytes(entry.remote))
        if not entry.remote_port or address is None:
            return None
        local = unpack_address(bytes(entry.local))
        found = Endpoint(address, entry.remote_port, local, entry.ifindex)
        return replace(found, local=None) if found == self._chosen.get(peer) else found

    def forget(self, peer: int) -> None:
        """The peer is removed."""
        self._endpoints.delete(number(peer))
        self._chosen.pop(peer, None)
        self._use(peer, None)

    def roamed(self, peers: set[int]) -> None:
        """Packets moved these peers' endpoints."""
        for peer in peers:
            self._chosen.pop(peer, None)  # the peer chose
            self._resolve(peer)

    def network_changed(self) -> None:
        """Resolves everything again, and asks devices again what they can do."""
        self._find_links()
        self._neighbours.clear()
        for ifindex, attachment in list(self.attachments.items()):
            link = self._links.get(ifindex)
            if link is None:
                attach.detach(self._netlink, self.tunnel, ifindex)
                self._detached(ifindex)
            elif attachment.open == "native":
                self.attached(attach.look_again(attachment, link))
        for key in self._endpoints.keys():  # noqa: SIM118
            self._resolve(layout.from_number(key))

    def stop_opening(self) -> None:
        for ifindex in self.attachments:
            with logged("messages may still be opened by the kernel path"):
                attach.stop_opening(self.tunnel, ifindex)
        with logged("what is on its way to another CPU may still be opened by the kernel path"):
            self._cpumap.keep(())

    def detach(self) -> None:
        """From all devices. What fails is logged."""
        for ifindex in list(self.attachments):
            with logged("what is left on a device cannot be taken away"):
                attach.detach(self._netlink, self.tunnel, ifindex)
            self._detached(ifindex)

    def attached(self, attachment: Attachment) -> None:
        """Takes note of what was done to a device."""
        ifindex = attachment.ifindex
        self.attachments[ifindex] = attachment
        self.spread[ifindex] = self._cpumap.spread(ifindex, attachment.may_spread)

    def _detached(self, ifindex: int) -> None:
        del self.attachments[ifindex], self.spread[ifindex]
        self._cpumap.spread(ifindex, False)

    def _find_links(self) -> None:
        self._links = {link.ifindex: link for link in self._netlink.links()}

    def _write(self, peer: int, endpoint: Endpoint) -> None:
        entry = layout.Endpoint(
            ifindex=endpoint.ifindex,
            remote=octets(pack_address(endpoint.address)),
            local=octets(pack_address(endpoint.local)),
            remote_port=endpoint.port,
        )
        key = number(peer)
        # With the lock it is written whole; a new entry has no lock to take.
        flags = BPF_F_LOCK if self._endpoints.lookup(key, BPF_F_LOCK) is not None else 0
        self._endpoints.update(key, bytes(entry), flags)

    def _resolve(self, peer: int, new: Endpoint | None = None) -> None:
        """The way to the peer's endpoint, or to a `new` one, not written yet. What goes wrong
        concerns this peer alone, whose packets go the slower way meanwhile."""
        try:
            self._find_way(peer, new)
        except (DatapathError, OSError) as error:
            if new is not None:
                self._write(peer, new)
            if self._failed.get(peer) != str(error):
                log.warning("the way to peer number %d cannot be set: %s", peer, error)
            self._failed[peer] = str(error)
        else:
            self._failed.pop(peer, None)

    def _find_way(self, peer: int, new: Endpoint | None) -> None:
        endpoint = new or self.endpoint(peer)
        if endpoint is None:
            return
        way = self._way(endpoint, endpoint.local)
        if way is None and endpoint.local is not None:
            # Our address is gone, or does not lead there any more: the kernel chooses anew.
            way = self._way(endpoint, None)
            endpoint = replace(endpoint, local=None)
        if way is None:
            if new is not None:
                self._write(peer, new)
            self._use(peer, None)
            return
        local = endpoint.local or way.source
        for ifindex in (way.link.ifindex, endpoint.ifindex):
            self._attach(ifindex)
        key = pack_address(endpoint.address) + pack_address(local)
        # The route first: packets to an endpoint without one would be lost, as long as nothing
        # says by which device to send them.
        self._routes.update(key, self._entry(way))
        if endpoint.local is None:
            self._chosen[peer] = replace(endpoint, local=local)
            self._write(peer, self._chosen[peer])
        elif new is not None:
            self._write(peer, endpoint)
        self._use(peer, key)
        self._limit(peer, endpoint, way)

    def _way(self, endpoint: Endpoint, local: layout.Address | None) -> Way | None:
        now = time.monotonic()
        if now > self._neighbours_known + _BURST:
            self._neighbours.clear()
            self._neighbours_known = now
        return resolve(
            self._netlink, self._link, endpoint.address, local,
            ifindex=endpoint.ifindex, fwmark=self._fwmark, neighbours=self._neighbours,
        )  # fmt: skip

    def _link(self, ifindex: int) -> Link | None:
        """As it was when the network last changed, or as it is if it was not there then."""
        if ifindex not in self._links:
            self._find_links()
        return self._links.get(ifindex)

    def _attach(self, ifindex: int) -> None:
        link = self._links.get(ifindex)
        if link is not None and ifindex not in self.attachments:
            self.attach(link)

    def attach(self, link: Link) -> Attachment:
        """Also again, for what is better now, or gone."""
        found = attach.attach(
            self._netlink, self.tunnel, self.programs, link, self.mode,
            flow_ports=self._flow_ports,
        )  # fmt: skip
        self.attached(found)
        return found

    def _entry(self, way: Way) -> bytes:
        attachment = self.attachments[way.link.ifindex]
        route = layout.Route(
            ifindex=way.link.ifindex,
            mtu=way.mtu,
            source_mac=octets(way.link.mac or bytes(6)),
            gateway=octets(pack_address(way.gateway)),
        )
        if way.neighbour is not None:
            route.flags |= layout.ROUTE_NEIGHBOUR
            route.destination_mac = octets(way.neighbour)
        if attachment.redirect:
            route.flags |= layout.ROUTE_XDP
        return bytes(route)

    def _use(self, peer: int, key: bytes | None) -> None:
        """Counts who uses which entry of `routes`; what nobody uses goes."""
        old = self._keys.pop(peer, None)
        if key is not None:
            self._keys[peer] = key
            self._users[key] += 1
        if old is not None:
            self._users[old] -= 1
            if not self._users[old]:
                del self._users[old]
                self._routes.delete(old)

    def _limit(self, peer: int, endpoint: Endpoint, way: Way) -> None:
        longest = longest_inner(way.mtu, endpoint.address.version, self._mtu)
        self._set_peer.syscall(
            layout.SetPeer(peer=peer, fields=layout.SET_MAX_INNER, max_inner=longest)
        )
