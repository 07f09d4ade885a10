"""Bringing an interface up: everything the daemon needs before its event loop runs.

What an earlier daemon left is gone on with, as far as the configuration still wants it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from ebpfvpn import handover, path_choice, resolver, underlay
from ebpfvpn.allowed_ip_routes import AllowedIpRoutes, free_table, remove_orphaned_rules
from ebpfvpn.allowed_ips import AllowedIps
from ebpfvpn.config import Config, PeerConfig
from ebpfvpn.datapath import Left
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel import adoption, bpffs, generation
from ebpfvpn.kernel.adoption import Found
from ebpfvpn.losses import Losses, SocketLosses
from ebpfvpn.netlink import Monitor, Netlink
from ebpfvpn.path_choice import Made
from ebpfvpn.path_mtu import HEADERS
from ebpfvpn.paths import Paths
from ebpfvpn.tun import Tun, TunError, alias
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.state import State, read, write

Network = IPv4Network | IPv6Network

DEFAULT_MTU = 1420
_LEAST_MTU = 1280
_TUN, _SESSIONS = "tun", "sessions"


@dataclass(frozen=True, slots=True)
class Interface:
    """What is up."""

    config: Config
    tun: Tun
    udp: UdpSockets
    monitor: Monitor
    netlink: Netlink
    datapath: Paths
    routes: AllowedIpRoutes
    losses: Losses
    peers: dict[int, PeerConfig]
    """By number."""
    left: dict[int, Left]
    """What an earlier daemon left of them, by number."""
    is_new: bool
    """Nothing of an earlier daemon is gone on with."""
    allowed_ips: AllowedIps
    mtu: int
    fwmark: int

    def remove(self) -> None:
        """Takes everything away, each part whatever happens to the others."""
        with contextlib.ExitStack() as parts:
            netlink = Netlink()
            parts.callback(netlink.close)
            parts.callback(self.tun.persist, False)
            parts.callback(AllowedIpRoutes.remove_rules, netlink, self.fwmark)
            parts.callback(self.datapath.remove)

    def descriptors_of_restart(self) -> dict[str, int]:
        """The same and, where this process has sessions, those. They are moved no more."""
        found = {name: os.dup(fd) for name, fd in self.descriptors().items()}
        peers = self.datapath.state()
        if peers is not None:
            networks = [str(network) for network in self.config.networks()]
            identity, losses = path_choice.identity(self.config), self.losses.of_sockets()
            state = State(identity, self.udp.port, self.fwmark, networks, losses, peers)
            found[_SESSIONS] = write(state)
        return found

    def descriptors(self) -> dict[str, int]:
        """What the next daemon goes on with (handover.py)."""
        sockets = {f"udp{i}": sock.fileno() for i, sock in enumerate(self.udp.sockets)}
        return {_TUN: self.tun.fileno()} | sockets


def bring_up(config: Config, undo: contextlib.ExitStack) -> Interface:
    """In the network namespace of this thread. `undo` then holds what lets go of everything; what
    is in the kernel stays, until `Datapath.remove`. If this fails, nothing new is left.
    OperatorError, DatapathError, OSError."""
    undo.callback(bpffs.NameLock(config.name).release)
    monitor = Monitor()
    undo.callback(monitor.close)
    netlink = Netlink()
    undo.callback(netlink.close)
    mtu = config.interface.mtu or _mtu(netlink, config)
    kept = handover.inherited()
    state = _state(config, kept.pop(_SESSIONS, None))
    found, missing = path_choice.find(netlink, config, mtu, tun_stays=state is not None)
    before = _before(found, state)
    tun = _tun(netlink, config.name, kept.pop(_TUN, None), found, goes_on=before is not None)
    undo.callback(tun.close)
    remove_orphaned_rules(netlink)
    routes = AllowedIpRoutes(netlink, tun.ifindex, config.interface.table)
    fwmark = _fwmark(netlink, config, routes, before)
    port = config.interface.listen_port or (before.port if before else 0)
    udp = UdpSockets(
        port,
        fwmark,
        kept.values(),
        send_buffer=config.interface.send_buffer,
        recv_buffer=config.interface.recv_buffer,
        flow_ports=config.flow_ports(),
    )
    undo.callback(udp.close)
    _no_link_local(config.name)
    netlink.set_mtu(tun.ifindex, mtu)
    netlink.set_queue_length(tun.ifindex, config.interface.tx_queue_length)
    datapath = path_choice.choose(
        Made(config, netlink, tun, udp, mtu, fwmark), found, missing, state.peers if state else ()
    )
    with contextlib.ExitStack() as failed:
        if before:
            failed.callback(datapath.close)
        else:
            failed.callback(AllowedIpRoutes.remove_rules, netlink, fwmark)
            failed.callback(datapath.remove)
        peers, left = _peers(config, datapath)
        datapath.filter_sockets()
        losses = Losses(udp, datapath, _losses(state, udp, found))
        _address(config, netlink, tun)
        _route(config, routes, fwmark)
        if before:
            routes.remove(before.networks, before.fwmark, config.networks(), fwmark)
        if state and state.port != udp.port:
            # Peers learn it from a new handshake.
            left = {number: replace(one, renew=True) for number, one in left.items()}
        if found.newest and config.interface.datapath == "userspace":
            datapath.leave_kernel()
            left = {number: one.only_opening() for number, one in left.items()}
        failed.pop_all()
    undo.callback(datapath.close)
    return Interface(
        config=config,
        tun=tun,
        udp=udp,
        monitor=monitor,
        netlink=netlink,
        datapath=datapath,
        routes=routes,
        losses=losses,
        peers=peers,
        left=left,
        is_new=before is None,
        allowed_ips=_lookup(peers),
        mtu=mtu,
        fwmark=fwmark,
    )


@dataclass(frozen=True, slots=True)
class _Before:
    """What an earlier daemon's interface was, that is gone on with."""

    port: int
    fwmark: int
    networks: Iterable[Network]
    """Allowed-ips of all peers."""


def _before(found: Found, state: State | None) -> _Before | None:
    if found.newest:
        facts = found.newest.facts
        # Now, before peers are removed and another generation takes its place.
        return _Before(facts.port, facts.fwmark, adoption.read_allowed_ips(found.newest))
    if state:
        return _Before(state.port, state.fwmark, [ip_network(one) for one in state.networks])
    return None


def _state(config: Config, kept: int | None) -> State | None:
    """Of sessions in userspace, in the process before."""
    state = None if kept is None else read(kept)
    return state if state and state.identity == path_choice.identity(config) else None


def _losses(state: State | None, udp: UdpSockets, found: Found) -> SocketLosses | None:
    """In the process before. Sockets on another port count from zero; and how many of those that
    they did not take since then were refused by a kernel path's filter is not known."""
    if state and (state.port != udp.port or found.newest):
        return replace(state.losses, dropped=[])
    return state.losses if state else None


def _fwmark(
    netlink: Netlink, config: Config, routes: AllowedIpRoutes, before: _Before | None
) -> int:
    fwmark = config.interface.fwmark or (before.fwmark if before else 0)
    if not fwmark and routes.fwmark_needed(config.networks()):
        return free_table(netlink)
    return fwmark


def _peers(config: Config, datapath: Paths) -> tuple[dict[int, PeerConfig], dict[int, Left]]:
    """By number: those that are wanted, and what was left of them. Others are removed."""
    left = datapath.left()
    peers = number_peers(config.peers, left)
    for one in left:
        if one.number is not None and one.number not in peers:
            datapath.remove_peer(one.number)
    by_key = {one.public_key: one for one in left}
    kept = {n: by_key[peer.public_key] for n, peer in peers.items() if peer.public_key in by_key}
    return peers, kept


def number_peers(peers: Sequence[PeerConfig], left: Iterable[Left]) -> dict[int, PeerConfig]:
    """Peers keep the numbers that they have in the datapath."""
    numbers = {one.public_key: one.number for one in left if one.number is not None}
    taken = set(numbers.values())
    free = (number for number in itertools.count() if number not in taken)
    found = {}
    for peer in peers:
        number = numbers.get(peer.public_key)
        found[next(free) if number is None else number] = peer
    return found


def _lookup(peers: dict[int, PeerConfig]) -> AllowedIps:
    allowed_ips = AllowedIps()
    # In the file's order: of peers that have the same network, the last has it.
    for number, peer in peers.items():
        for network in peer.allowed_ips:
            allowed_ips.insert(network, number)
    return allowed_ips


def _tun(netlink: Netlink, name: str, kept: int | None, found: Found, *, goes_on: bool) -> Tun:
    """`kept`: its descriptor, from an earlier daemon; `goes_on`: so does what is moved by it."""
    if kept is not None:
        tun = Tun.inherit(kept, name)
        if tun and goes_on:
            return tun
        if tun:  # a supervisor may have its descriptor too
            netlink.delete_link(tun.ifindex)
        os.close(kept)
    try:
        if found.newest:
            return Tun.attach(name)
        tun = Tun.create(name)
    except TunError as error:
        raise OperatorError(str(error)) from error
    netlink.set_alias(tun.ifindex, alias(name))
    return tun


def _no_link_local(name: str) -> None:
    """Peers could not answer to such an address, and its router solicitations have no peer. Best
    effort: /proc/sys may be read-only in a container."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/addr_gen_mode").write_text("1\n")


def _address(config: Config, netlink: Netlink, tun: Tun) -> None:
    # Else with the first address of an IPv4 network go the others, and all routes with them.
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv4/conf/{tun.name}/promote_secondaries").write_text("1\n")
    before = set(netlink.own_addresses(tun.ifindex))
    for address in config.interface.addresses:
        try:
            netlink.add_address(tun.ifindex, address)
        except OSError as error:
            raise OperatorError(f"{config.path}: Address {address}: {error.strerror}") from error
    for address in before - set(config.interface.addresses):
        netlink.delete_address(tun.ifindex, address)
    netlink.set_up(tun.ifindex)


def _route(config: Config, routes: AllowedIpRoutes, fwmark: int) -> None:
    try:
        routes.add(config.networks(), fwmark)
    except OSError as error:
        message = f"{config.path}: routes to AllowedIPs: {error.strerror}; Table = off makes none"
        raise OperatorError(message) from error


def _mtu(netlink: Netlink, config: Config) -> int:
    """As wg-quick: the largest MTU of the ways to the endpoints, or else of the default route,
    less what a message over IPv6 adds. Endpoints with less get their own limit."""
    links = {link.ifindex: link for link in netlink.links()}
    # A default route of the tunnel itself, which an earlier daemon made, is not the way.
    known = next(iter(generation.find(config.name)), None)
    fwmark = config.interface.fwmark or (known.facts.fwmark if known else 0)
    anywhere = (Endpoint(ip_address(address), 0) for address in ("0.0.0.0", "::"))
    mtus = []
    for remote in _literal_endpoints(config) or set(anywhere):
        with contextlib.suppress(OSError):
            way = underlay.resolve(
                netlink,
                links.get,
                remote.address,
                None,
                ifindex=remote.ifindex,
                fwmark=fwmark,
                find_mac=False,
            )
            if way is not None and not way.link.loopback:
                mtus.append(way.mtu)
    return max(max(mtus) - HEADERS[6], _LEAST_MTU) if mtus else DEFAULT_MTU


def _literal_endpoints(config: Config) -> set[Endpoint]:
    endpoints = (resolver.literal(peer.endpoint) for peer in config.peers if peer.endpoint)
    return {endpoint for endpoint in endpoints if endpoint is not None}
