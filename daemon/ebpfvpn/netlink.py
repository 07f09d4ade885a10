"""Links, addresses, routes and neighbours, through pyroute2; and what changes about them.

pyroute2's IPRoute cannot be used inside a running asyncio loop, so a thread of its own holds it.
The thread, and with it every request, stays in the network namespace in which it was started. (A
process that forks starts it afterwards.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ebpfvpn.genetlink import messages, subscribe, subscribe_features

Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

MAIN_TABLE = 254
PROTOCOL = 86
"""Of our addresses, routes and rules ("proto 86" in ip-route(8)): by it a later daemon knows
them."""
_ARPHRD_ETHER = 1
_SCOPE_LINK = 253
FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Link:
    """A network device."""

    ifindex: int
    name: str
    mtu: int
    mac: bytes | None
    """None: no Ethernet device, or loopback."""
    loopback: bool
    up: bool
    alias: str


@dataclass(frozen=True, slots=True)
class Queue:
    """Of a device, and how many packets it lost."""

    length: int
    """Packets that it may hold."""
    tx_dropped: int
    rx_dropped: int


class Netlink:
    """Requests to the kernel; OSError says which errno and why."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "netlink")
        self._ip = self._thread.submit(IPRoute).result()

    def close(self) -> None:
        self._thread.submit(self._ip.close).result()
        self._thread.shutdown()

    def request(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        """A method of IPRoute: `request("route", "get", dst="192.0.2.1")`."""

        def run() -> list[Any]:
            answer = getattr(self._ip, method)(*arguments, **options)
            return list(answer or ())

        try:
            return self._thread.submit(run).result()
        except NetlinkError as error:
            reason = error.args[1] if len(error.args) > 1 else ""
            raise OSError(error.code, str(reason) or os.strerror(error.code)) from None

    def links(self) -> list[Link]:
        return [_link(message) for message in self.request("get_links")]

    def link(self, ifindex: int) -> Link | None:
        """None: there is no such device."""
        try:
            return _link(self.request("link", "get", index=ifindex)[0])
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise
            return None

    def queue(self, ifindex: int) -> Queue:
        """All zero: there is no such device."""
        try:
            message = self.request("link", "get", index=ifindex)[0]
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise
            return Queue(0, 0, 0)
        counters = message.get_attr("IFLA_STATS64")
        length = message.get_attr("IFLA_TXQLEN")
        return Queue(length, counters["tx_dropped"], counters["rx_dropped"])

    def delete_link(self, ifindex: int) -> None:
        """Nothing happens if it is gone."""
        with ignoring(errno.ENODEV, errno.EINVAL):
            self.request("link", "del", index=ifindex)

    def set_mtu(self, ifindex: int, mtu: int) -> None:
        self.request("link", "set", index=ifindex, mtu=mtu)

    def set_queue_length(self, ifindex: int, packets: int) -> None:
        self.request("link", "set", index=ifindex, txqlen=packets)

    def set_up(self, ifindex: int) -> None:
        self.request("link", "set", index=ifindex, state="up")

    def set_alias(self, ifindex: int, alias: str) -> None:
        self.request("link", "set", index=ifindex, IFLA_IFALIAS=alias)

    def add_address(self, ifindex: int, interface: Interface) -> None:
        """One that is there already is left."""
        with ignoring(errno.EEXIST):
            self.request("addr", "add", index=ifindex, address=str(interface.ip),
                         prefixlen=interface.network.prefixlen, IFA_PROTO=PROTOCOL)  # fmt: skip

    def own_addresses(self, ifindex: int) -> list[Interface]:
        """Those that `add_address` added."""
        return [
            ip_interface(f"{message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}")
            for message in self.request("get_addr", index=ifindex)
            if message.get_attr("IFA_PROTO") == PROTOCOL
        ]

    def delete_address(self, ifindex: int, interface: Interface) -> None:
        """Nothing happens if it is gone."""
        with ignoring(errno.EADDRNOTAVAIL):
            self.request("addr", "del", index=ifindex, address=str(interface.ip),
                         prefixlen=interface.network.prefixlen)  # fmt: skip

    def add_route(self, network: Network, ifindex: int, table: int = MAIN_TABLE) -> None:
        """One that is there already, to the same device, is left."""
        with ignoring(errno.EEXIST):
            self.request("route", "add", **_route(network, ifindex, table))

    def delete_route(self, network: Network, ifindex: int, table: int = MAIN_TABLE) -> None:
        """One that `add_route` added; nothing happens if it is gone."""
        with ignoring(errno.ESRCH):
            self.request("route", "del", **_route(network, ifindex, table))


def _link(message: Any) -> Link:
    ethernet = message["ifi_type"] == _ARPHRD_ETHER
    mac = message.get_attr("IFLA_ADDRESS")
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mtu=message.get_attr("IFLA_MTU"),
        mac=bytes.fromhex(mac.replace(":", "")) if ethernet and mac else None,
        loopback=bool(message["flags"] & 8),
        up=bool(message["flags"] & 1),
        alias=message.get_attr("IFLA_IFALIAS") or "",
    )


def ignoring(*codes: int) -> _Ignoring:
    return _Ignoring(codes)


class _Ignoring(contextlib.AbstractContextManager[None]):
    def __init__(self, codes: tuple[int, ...]) -> None:
        self._codes = codes

    def __exit__(self, _: object, error: BaseException | None, traceback: object) -> bool:
        return isinstance(error, OSError) and error.errno in self._codes


def family_of(network: Network) -> int:
    return socket.AF_INET if network.version == 4 else socket.AF_INET6


def _route(network: Network, ifindex: int, table: int) -> dict[str, object]:
    scope = _SCOPE_LINK if network.version == 4 else 0  # IPv6 has no scopes
    return {
        "dst": str(network),
        "oif": ifindex,
        "table": table,
        "family": family_of(network),
        "scope": scope,
        "proto": PROTOCOL,
    }


_RTM_KINDS = {
    **dict.fromkeys((16, 17), "link"),
    **dict.fromkeys((20, 21), "address"),
    **dict.fromkeys((24, 25), "route"),
    **dict.fromkeys((28, 29), "neighbour"),
    **dict.fromkeys((32, 33), "rule"),
    **dict.fromkeys((36, 37, 44, 45), "tc"),  # qdiscs, filters
}
# link, neigh, tc, v4 addr, route, rule, v6 addr, route, rule
_RTNL_GROUPS = (1, 3, 4, 5, 7, 8, 9, 11, 19)


class Monitor:
    """Tells that something about the network changed, in the namespace of the thread that made
    it."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._route = subscribe(socket.NETLINK_ROUTE, _RTNL_GROUPS)
        self._poll.register(self._route, select.EPOLLIN)
        self._features: socket.socket | None = None
        # Kernels before 6.3 do not have it.
        with contextlib.suppress(OSError):
            self._features = subscribe_features()
            self._poll.register(self._features, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def read(self) -> set[str]:
        """What changed since the last call: "link", "address", "route", "neighbour", "rule",
        "tc", "features" (what a device's XDP can do)."""
        changed: set[str] = set()
        for data in _datagrams(self._route):
            if data is None:  # some were lost
                changed.update(_RTM_KINDS.values())
                continue
            changed.update(_RTM_KINDS[kind] for kind, _ in messages(data) if kind in _RTM_KINDS)
        if self._features is not None and any(True for _ in _datagrams(self._features)):
            changed.add("features")
        return changed

    def close(self) -> None:
        self._poll.close()
        self._route.close()
        if self._features is not None:
            self._features.close()


def _datagrams(sock: socket.socket) -> Iterable[bytes | None]:
    """What waits; None where the kernel says that some were lost."""
    while True:
        try:
            yield sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None
