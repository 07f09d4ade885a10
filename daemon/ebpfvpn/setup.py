"""Bringing an interface up: everything the daemon needs before its event loop runs.

What an earlier daemon left is gone on with, as far as the configuration still wants it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from ebpfvpn import handover, keys, underlay
from ebpfvpn.allowed_ip_routes import AllowedIpRoutes, free_table, remove_orphaned_rules
from ebpfvpn.allowed_ips import AllowedIps
from ebpfvpn.config import Config, PeerConfig
from ebpfvpn.datapath import DatapathError, Left
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel import adoption, bpffs, features, generation, leftovers
from ebpfvpn.kernel.adoption import NOTHING, Found, Wanted
from ebpfvpn.kernel.datapath import KernelDatapath, shape
from ebpfvpn.losses import Losses
from ebpfvpn.netlink import Monitor, Netlink
from ebpfvpn.path_mtu import PathMtu
from ebpfvpn.paths import Paths
from ebpfvpn.tun import Tun, TunError, alias
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.datapath import UserspaceDatapath

OVERHEAD = 80
"""Of a message over IPv6: 40 + 8 + 16 + 16 bytes."""
DEFAULT_MTU = 1420
_LEAST_MTU = 1280
_TUN = "tun"


@dataclass(frozen=True, slots=True)
class Interface:
    """What is up."""

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
        """Takes everything away."""
        self.datapath.remove()
        netlink = Netlink()
        try:
            AllowedIpRoutes.remove_rules(netlink, self.fwmark)
            self.tun.persist(False)
        finally:
            netlink.close()

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
    found, missing = _find(netlink, config, mtu)
    kept = handover.inherited()
    tun = _tun(netlink, config.name, found, kept.pop(_TUN, None))
    undo.callback(tun.close)
    remove_orphaned_rules(netlink)
    routes = AllowedIpRoutes(netlink, tun.ifindex, config.interface.table)
    fwmark = _fwmark(netlink, config, routes, found)
    port = config.interface.listen_port or (found.newest.facts.port if found.newest else 0)
    udp = UdpSockets(
        port,
        fwmark,
        kept.values(),
        send_buffer=config.interface.send_buffer,
        recv_buffer=config.interface.recv_buffer,
    )
    undo.callback(udp.close)
    _no_link_local(config.name)
    netlink.set_mtu(tun.ifindex, mtu)
    netlink.set_queue_length(tun.ifindex, config.interface.tx_queue_length)
    # Now, before peers are removed and another generation takes its place.
    before = adoption.read_allowed_ips(found.newest) if found.newest else {}
    datapath = _paths(config, found, missing, tun, udp, PathMtu(netlink, fwmark), mtu, fwmark)
    with contextlib.ExitStack() as failed:
        if found.newest:
            failed.callback(datapath.close)
        else:
            failed.callback(AllowedIpRoutes.remove_rules, netlink, fwmark)
            failed.callback(datapath.remove)
        for sock in udp.sockets:
            datapath.accept_only_messages(sock)
        losses = Losses(udp, datapath)
        peers, left = _peers(config, datapath)
        _address(config, netlink, tun)
        _route(config, routes, fwmark)
        if found.newest:
            routes.remove(before, found.newest.facts.fwmark, config.networks(), fwmark)
        failed.pop_all()
    undo.callback(datapath.close)
    return Interface(
        tun=tun,
        udp=udp,
        monitor=monitor,
        netlink=netlink,
        datapath=datapath,
        routes=routes,
        losses=losses,
        peers=peers,
        left=left,
        is_new=not found.newest,
        allowed_ips=_lookup(peers),
        mtu=mtu,
        fwmark=fwmark,
    )


def _fwmark(netlink: Netlink, config: Config, routes: AllowedIpRoutes, found: Found) -> int:
    fwmark = config.interface.fwmark or (found.newest.facts.fwmark if found.newest else 0)
    if not fwmark and routes.fwmark_needed(config.networks()):
        return free_table(netlink)
    return fwmark


def _find(netlink: Netlink, config: Config, mtu: int) -> tuple[Found, str]:
    """What an earlier daemon left of a kernel path, and why there can be none; "": no reason is
    known yet. DatapathError."""
    if config.interface.datapath == "userspace":
        if generation.directories(config.name):
            # It would go on beside the other path.
            leftovers.remove(netlink, config.name)
        return NOTHING, ""
    try:
        features.require()
    except DatapathError as error:
        if generation.directories(config.name):
            raise
        return NOTHING, str(error)
    return adoption.find(netlink, config.name, _wanted(config, mtu)), ""


def _paths(
    config: Config, found: Found, missing: str, tun: Tun, udp: UdpSockets, path_mtu: PathMtu,
    mtu: int, fwmark: int,
) -> Paths:  # fmt: skip
    """DatapathError: there must be a kernel path, and there cannot."""
    interface = config.interface

    def build(found: Found = NOTHING) -> KernelDatapath:
        features.require()
        return KernelDatapath(
            config.name,
            tun_ifindex=tun.ifindex,
            listen_port=udp.port,
            mtu=mtu,
            fwmark=fwmark,
            peers=len(config.peers),
            identity=_identity(config),
            attach_mode=interface.attach_mode,
            rekey_after_messages=interface.rekey_after_messages,
            replay_window=interface.replay_window,
            found=found,
        )

    kernel, reason = None, "asked for"
    if interface.datapath != "userspace":
        try:
            if missing:
                raise DatapathError(missing)
            kernel = build(found)
            reason = "first choice" if interface.datapath == "auto" else reason
        except (DatapathError, OSError) as error:
            if interface.datapath == "kernel":
                raise DatapathError(f"Datapath = kernel cannot be: {error}") from None
            # The pinned programs would go on beside the other path.
            if found.newest:
                raise
            reason = str(error)
    if kernel:
        tun.persist()
    return Paths(
        tun=tun,
        udp=udp,
        userspace=UserspaceDatapath(
            tun=tun,
            udp=udp,
            path_mtu=path_mtu,
            mtu=mtu,
            rekey_after_messages=interface.rekey_after_messages,
            replay_window=interface.replay_window,
        ),
        kernel=kernel,
        reason=reason,
        build=None if interface.datapath == "userspace" else build,
    )


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


def _wanted(config: Config, mtu: int) -> Wanted:
    return Wanted(
        _identity(config),
        shape(mtu, config.interface.attach_mode, config.interface.replay_window),
        config.interface.listen_port,
        len(config.peers),
        frozenset((peer.public_key, n) for peer in config.peers for n in peer.allowed_ips),
    )


def _identity(config: Config) -> str:
    """What must not change under a tunnel that is gone on with. What table its routes were in
    nobody remembers; and with the mark of a default route changes how everything is routed."""
    interface = config.interface
    routing = f"{interface.table}{interface.fwmark or ''}".encode()
    public_key = keys.public_key(interface.private_key)
    return blake2s(public_key + routing, digest_size=8).hexdigest()


def _tun(netlink: Netlink, name: str, found: Found, kept: int | None) -> Tun:
    if kept is not None:
        tun = Tun.inherit(kept, name) if found.newest else None
        if tun:
            return tun
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
    remotes = _literal_endpoints(config) or {IPv4Address("0.0.0.0"), IPv6Address("::")}
    neighbours: underlay.Neighbours = {}
    mtus = []
    for remote in remotes:
        with contextlib.suppress(OSError):
            way = underlay.resolve(
                netlink, links.get, remote, None, fwmark=fwmark, neighbours=neighbours
            )
            if way is not None and not way.link.loopback:
                mtus.append(way.mtu)
    return max(max(mtus) - OVERHEAD, _LEAST_MTU) if mtus else DEFAULT_MTU


def _literal_endpoints(config: Config) -> set[IPv4Address | IPv6Address]:
    found = set()
    for peer in config.peers:
        if peer.endpoint is not None:
            with contextlib.suppress(ValueError):
                found.add(ip_address(peer.endpoint.host))
    return found
