"""The underlay: by which device and next hop an endpoint is reached, as the kernel would route it.

bpf_fib_lookup knows neither mark nor source before Linux 6.10 and never asks a stale neighbour
again, so the daemon resolves and keeps fresh what the programs use.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from ebpfvpn.netlink import Link, Netlink

Address = IPv4Address | IPv6Address
Neighbours = dict[tuple[Address, int], bytes | None]
"""MAC addresses by address and ifindex; None: not resolved."""

_UNICAST, _LOCAL = 1, 2  # RTN_*
_NTF_USE = 1
_NUD_STALE = 0x04
_NUD_VALID = 0xC0 | 0x02 | _NUD_STALE | 0x08 | 0x10
"""Permanent, noarp, reachable, stale, delay, probe: its MAC address may be used."""


@dataclass(frozen=True, slots=True)
class Way:
    """To one endpoint."""

    link: Link
    source: Address | None
    """The kernel's choice of our address."""
    gateway: Address
    """The next hop: the endpoint itself where it is on link."""
    mtu: int
    """Of an outer IP packet."""
    neighbour: bytes | None
    """The next hop's MAC address; all zero where the device needs none. None: not resolved."""


def resolve(
    netlink: Netlink,
    link_of: Callable[[int], Link | None],
    remote: Address,
    local: Address | None,
    *,
    ifindex: int = 0,
    fwmark: int = 0,
    neighbours: Neighbours | None = None,
    find_mac: bool = True,
) -> Way | None:
    """None: there is no route, or it is a blackhole or the like. `ifindex` matters for link-local
    addresses alone. A next hop whose MAC address is missing or stale is asked for it, which ends
    in a netlink event, unless not `find_mac`. `neighbours`: those that were looked up just now, for
    many have the same."""
    route = _route(netlink, remote, local, ifindex, fwmark)
    if route is None or (local is not None and not _is_ours(netlink, local, ifindex)):
        return None
    link = link_of(route.get_attr("RTA_OIF"))
    if link is None:
        return None
    source = route.get_attr("RTA_PREFSRC")
    gateway = _gateway(route) or remote
    metrics = route.get_attr("RTA_METRICS")
    route_mtu = metrics.get_attr("RTAX_MTU") if metrics else None
    return Way(
        link=link,
        source=ip_address(source) if source else None,
        gateway=gateway,
        mtu=min(route_mtu or link.mtu, link.mtu),
        neighbour=_mac(netlink, gateway, link, {} if neighbours is None else neighbours)
        if find_mac
        else None,
    )


def _route(
    netlink: Netlink, remote: Address, local: Address | None, ifindex: int, fwmark: int
) -> Any | None:
    question: dict[str, object] = {"dst": str(remote)}
    if local is not None:
        question["src"] = str(local)
    if fwmark:
        question["mark"] = fwmark
    if remote.is_link_local and ifindex:
        question["oif"] = ifindex
    try:
        route = netlink.request("route", "get", **question)[0]
    except OSError as error:
        # Unreachable, prohibited, blackhole; EINVAL also where `local` is not ours (any more).
        if error.errno in (
            errno.ENETUNREACH,
            errno.EHOSTUNREACH,
            errno.EACCES,
            errno.EINVAL,
            errno.EADDRNOTAVAIL,
            errno.ENODEV,
        ):
            return None
        raise
    return route if route["type"] in (_UNICAST, _LOCAL) else None


def _is_ours(netlink: Netlink, local: Address, ifindex: int) -> bool:
    """The routing of IPv4 has seen to that, that of IPv6 takes any source."""
    if local.version == 4:
        return True
    route = _route(netlink, local, None, ifindex, 0)
    return route is not None and route["type"] == _LOCAL


def _gateway(route: Any) -> Address | None:
    via = route.get_attr("RTA_VIA")
    address = via["addr"] if via else route.get_attr("RTA_GATEWAY")
    return ip_address(address) if address else None


def _mac(netlink: Netlink, gateway: Address, link: Link, known: Neighbours) -> bytes | None:
    if link.mac is None:
        return bytes(6)
    key = gateway, link.ifindex
    if key not in known:
        known[key] = _neighbour(netlink, *key)
    return known[key]


def _neighbour(netlink: Netlink, gateway: Address, ifindex: int) -> bytes | None:
    try:
        entry = netlink.request("neigh", "get", dst=str(gateway), ifindex=ifindex)[0]
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        entry = None
    if entry is None or not entry["state"] & _NUD_VALID or entry["state"] & _NUD_STALE:
        _use(netlink, gateway, ifindex)
    if entry is None or not entry["state"] & _NUD_VALID:
        return None
    mac = entry.get_attr("NDA_LLADDR")
    return bytes.fromhex(mac.replace(":", "")) if mac else None


def _use(netlink: Netlink, gateway: Address, ifindex: int) -> None:
    """Says that the neighbour is in use, so that the kernel finds it or confirms it."""
    try:
        netlink.request("neigh", "set", dst=str(gateway), ifindex=ifindex, flags=_NTF_USE, state=0)
    except OSError as error:
        # The device went down or away meanwhile; that too ends in an event.
        if error.errno not in (errno.ENETDOWN, errno.ENODEV, errno.EINVAL, errno.ENOBUFS):
            raise
