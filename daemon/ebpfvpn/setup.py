"""Bringing an interface up: everything the daemon needs before its event loop runs."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ebpfvpn.allowed_ips import AllowedIps
from ebpfvpn.config import Config
from ebpfvpn.datapath import Datapath
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel import underlay
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.netlink import AllowedIpRoutes, Monitor, Netlink, free_table
from ebpfvpn.tun import Tun, TunError
from ebpfvpn.udp import UdpSockets

OVERHEAD = 80
"""Of a message over IPv6: 40 + 8 + 16 + 16 bytes."""
DEFAULT_MTU = 1420
_LEAST_MTU = 1280


@dataclass(frozen=True, slots=True)
class Interface:
    """What is up."""

    tun: Tun
    udp: UdpSockets
    monitor: Monitor
    datapath: Datapath
    allowed_ips: AllowedIps
    mtu: int
    fwmark: int


def bring_up(config: Config, undo: contextlib.ExitStack) -> Interface:
    """In the network namespace of this thread. What `undo` then holds takes everything away
    again. OperatorError, DatapathError, OSError."""
    monitor = Monitor()
    undo.callback(monitor.close)
    netlink = Netlink()
    undo.callback(netlink.close)
    networks = [network for peer in config.peers for network in peer.allowed_ips]
    tun = _tun(config.name)
    undo.callback(tun.close)
    routes = AllowedIpRoutes(netlink, tun.ifindex, config.interface.table)
    undo.callback(routes.remove)
    fwmark = config.interface.fwmark
    if not fwmark and routes.fwmark_needed(networks):
        fwmark = free_table(netlink)
    udp = UdpSockets(config.interface.listen_port, fwmark)
    undo.callback(udp.close)
    mtu = config.interface.mtu or _mtu(netlink, config, fwmark)
    _no_link_local(config.name)
    netlink.set_mtu(tun.ifindex, mtu)
    datapath = KernelDatapath(
        config.name,
        tun_ifindex=tun.ifindex,
        listen_port=udp.port,
        mtu=mtu,
        fwmark=fwmark,
        peers=len(config.peers),
        attach_mode=config.interface.attach_mode,
        rekey_after_messages=config.interface.rekey_after_messages,
        replay_window=config.interface.replay_window,
    )
    undo.callback(datapath.close)
    for sock in udp.sockets:
        datapath.accept_only_messages(sock)
    _address(config, netlink, tun, routes, fwmark)
    allowed_ips = AllowedIps()
    for number, peer in enumerate(config.peers):
        for network in peer.allowed_ips:
            allowed_ips.insert(network, number)
    return Interface(tun, udp, monitor, datapath, allowed_ips, mtu, fwmark)


def _tun(name: str) -> Tun:
    try:
        return Tun(name)
    except TunError as error:
        raise OperatorError(str(error)) from error


def _no_link_local(name: str) -> None:
    """Peers could not answer to such an address, and its router solicitations have no peer. Best
    effort: /proc/sys may be read-only in a container."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1\n")


def _address(
    config: Config, netlink: Netlink, tun: Tun, routes: AllowedIpRoutes, fwmark: int
) -> None:
    for address in config.interface.addresses:
        try:
            netlink.add_address(tun.ifindex, address)
        except OSError as error:
            raise OperatorError(f"{config.path}: Address {address}: {error.strerror}") from error
    netlink.set_up(tun.ifindex)
    try:
        routes.add([network for peer in config.peers for network in peer.allowed_ips], fwmark)
    except OSError as error:
        message = f"{config.path}: routes to AllowedIPs: {error.strerror}; Table = off makes none"
        raise OperatorError(message) from error


def _mtu(netlink: Netlink, config: Config, fwmark: int) -> int:
    """As wg-quick: the largest MTU of the ways to the endpoints, or else of the default route,
    less what a message over IPv6 adds. Endpoints with less get their own limit."""
    links = {link.ifindex: link for link in netlink.links()}
    remotes = [*_literal_endpoints(config)] or [IPv4Address("0.0.0.0"), IPv6Address("::")]
    mtus = []
    for remote in remotes:
        with contextlib.suppress(OSError):
            way = underlay.resolve(netlink, links, remote, None, fwmark=fwmark)
            if way is not None and not way.link.loopback:
                mtus.append(way.mtu)
    return max(max(mtus) - OVERHEAD, _LEAST_MTU) if mtus else DEFAULT_MTU


def _literal_endpoints(config: Config) -> list[IPv4Address | IPv6Address]:
    found = []
    for peer in config.peers:
        if peer.endpoint is not None:
            with contextlib.suppress(ValueError):
                found.append(ip_address(peer.endpoint.host))
    return found
