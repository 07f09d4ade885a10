"""What an earlier daemon left, and what becomes of it: gone on with, left beside, or taken away."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network

from ebpfvpn import tun
from ebpfvpn.datapath import Left
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import attach, bpffs, generation, layout, leftovers
from ebpfvpn.kernel.attach import AttachMode, Tunnel
from ebpfvpn.kernel.btf import value_fields
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import BPF_F_LOCK, Map
from ebpfvpn.kernel.program import Program
from ebpfvpn.netlink import Netlink

Network = IPv4Network | IPv6Network

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the tunnel is to be."""

    identity: str
    """Of another identity nothing is gone on with."""
    shape: str
    port: int
    """0: any."""
    peers: int
    allowed_ips: frozenset[tuple[bytes, Network]]
    """By public key."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is gone on with; its TUN device is there."""

    current: Generation | None = None
    """The start takes its place: same maps, new programs."""
    older: list[Generation] = field(default_factory=list)
    """Live on beside the one that is made, newest first."""

    @property
    def newest(self) -> Generation | None:
        return self.current or next(iter(self.older), None)


NOTHING = Found()


def find(netlink: Netlink, name: str, wanted: Wanted, *, tun_stays: bool) -> Found:
    """Looks at what is pinned, and takes away what is not gone on with. For who holds the lock of
    NAME; in its network namespace. `tun_stays`: others go on with the device. DatapathError."""
    usable = [one for one in generation.find(name) if _is_usable(netlink, one, wanted)]
    if not usable:
        leftovers.remove(netlink, name, tun_stays=tun_stays)
        return NOTHING
    current = None
    if usable[0].pins == bpffs.pin_directory(name) and _fits(usable[0], wanted):
        current = usable.pop(0)
    older = [one for one in usable if _serves_only(one, wanted)]
    if not (current or older):
        log.warning("%s: the configuration took something away: sessions start anew", name)
        leftovers.remove(netlink, name, tun_stays=tun_stays)
        return NOTHING
    kept = {current.pins} if current else set()
    kept |= {one.pins for one in older}
    for one in generation.find(name):
        if one.pins not in kept:
            leftovers.remove_generation(netlink, one)
    for directory in generation.directories(name):
        if directory not in kept:  # begun, or almost removed
            bpffs.remove(directory)
    return Found(current, older)


def put_aside(one: Generation, following: AttachMode) -> Generation:
    """Before the generation that follows is made, which is to be attached so."""
    open_tc = Program.pinned(one.pins / "open_tc")
    for netns, ifindex in attach.attached_devices(one):
        if netns == one.facts.netns:
            attach.open_in_tc(Tunnel.of(one), open_tc, ifindex, following)
    return generation.put_aside(one)


def left(older: Iterable[Generation]) -> list[Left]:
    """What is known of the peers of older generations; of what cannot be read, nothing."""
    found: dict[bytes, Left] = {}
    for one in older:
        try:
            for peer in _read(one):
                found.setdefault(peer.public_key, peer)
        except (BpfError, KeyError, ValueError) as error:
            log.warning("%s: an older generation cannot be read: %s", one.name, error)
    return list(found.values())


def _is_usable(netlink: Netlink, one: Generation, wanted: Wanted) -> bool:
    link = netlink.link(one.facts.tun)
    return (
        one.complete
        and one.facts.netns == bpffs.netns_inode()
        and one.facts.identity == wanted.identity
        and link is not None
        and (link.alias, link.name) == (tun.alias(one.name), one.name)
        and all((one.pins / pin).exists() for pin in ("config", "open_tc", "sessions"))
    )


def _fits(one: Generation, wanted: Wanted) -> bool:
    return (
        one.facts.shape == wanted.shape
        and wanted.port in (0, one.facts.port)
        and wanted.peers <= Map.pinned(one.pins / "peers").max_entries
    )


def _serves_only(one: Generation, wanted: Wanted) -> bool:
    """Whether it moves packets only of whom the configuration still lets: nobody changes it any
    more."""
    try:
        numbers = {number: peer.public_key for number, peer in _read_peers(one).items()}
        served = {
            (numbers.get(peer, b""), network) for network, peer in read_allowed_ips(one).items()
        }
    except (BpfError, KeyError, ValueError):
        return False
    return served <= wanted.allowed_ips


def read_allowed_ips(one: Generation) -> dict[Network, int]:
    found: dict[Network, int] = {}
    for name in ("allowed_ips4", "allowed_ips6"):
        for key, value in Map.pinned(one.pins / name).items():
            network = ip_network((key[4:], layout.from_number(key[:4])))
            found[network] = layout.from_number(value)
    return found


@dataclass(frozen=True, slots=True)
class _Peer:
    public_key: bytes
    timestamp: bytes


def _read_peers(one: Generation) -> dict[int, _Peer]:
    """By the names that the fields have in that version."""
    map_ = Map.pinned(one.pins / "peers")
    fields = value_fields(map_)
    return {
        layout.from_number(key): _Peer(
            fields["public_key"].of(value), fields["timestamp"].of(value)
        )
        for key, value in map_.items()
    }


def _read(one: Generation) -> list[Left]:
    endpoints = _read_endpoints(one)
    live = _read_live(one)
    return [
        Left(
            peer.public_key, None, endpoint=endpoints.get(number), timestamp=peer.timestamp,
            renew=number in live,
        )
        for number, peer in _read_peers(one).items()
    ]  # fmt: skip


def _read_endpoints(one: Generation) -> dict[int, Endpoint]:
    map_ = Map.pinned(one.pins / "endpoints")
    fields = value_fields(map_)
    found = {}
    for key, value in map_.items(BPF_F_LOCK):
        address = layout.unpack_address(fields["remote"].of(value))
        port = int.from_bytes(fields["remote_port"].of(value), "big")
        if address is not None and port:
            found[layout.from_number(key)] = Endpoint(address, port)
    return found


def _read_live(one: Generation) -> set[int]:
    """Peers that have a session."""
    map_ = Map.pinned(one.pins / "sessions")
    fields = value_fields(map_)
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return {
        layout.from_number(fields["peer"].of(value))
        for _, value in map_.items()
        if layout.from_number(fields["expires"].of(value)) > now
    }
