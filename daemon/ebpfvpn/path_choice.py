"""Which path a tunnel gets: the kernel path where it can be and is wanted, or else userspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2s

from ebpfvpn import keys
from ebpfvpn.config import Config
from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import adoption, features, generation, leftovers
from ebpfvpn.kernel.adoption import NOTHING, Found, Wanted
from ebpfvpn.kernel.datapath import KernelDatapath, shape
from ebpfvpn.netlink import Netlink
from ebpfvpn.path_mtu import PathMtu
from ebpfvpn.paths import Paths
from ebpfvpn.tun import Tun
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.datapath import UserspaceDatapath
from ebpfvpn.userspace.state import PeerState


@dataclass(frozen=True, slots=True)
class Made:
    """What the interface has so far."""

    config: Config
    netlink: Netlink
    tun: Tun
    udp: UdpSockets
    mtu: int
    fwmark: int


def find(netlink: Netlink, config: Config, mtu: int, *, tun_stays: bool) -> tuple[Found, str]:
    """What an earlier daemon left of a kernel path, and why there can be none; "": no reason is
    known yet. What is not gone on with is taken away, with the TUN device unless it stays.
    DatapathError."""
    if config.interface.datapath == "userspace" and not generation.directories(config.name):
        return NOTHING, ""
    try:
        features.require()
    except DatapathError as error:
        if generation.directories(config.name):
            raise
        return NOTHING, str(error)
    wanted = _wanted(config, mtu)
    return adoption.find(netlink, config.name, wanted, tun_stays=tun_stays), ""


def choose(made: Made, found: Found, missing: str, state: Sequence[PeerState]) -> Paths:
    """`found` and `missing`: see `find`; `state`: of sessions in userspace, in the process before.
    DatapathError: there must be a kernel path, and there cannot."""
    interface = made.config.interface
    kernel, reason = None, "asked for"
    # One that is there already is left in order (Paths.leave_kernel).
    if interface.datapath != "userspace" or found.newest:
        try:
            if missing:
                raise DatapathError(missing)
            kernel = _build(made, found)
            reason = "first choice" if interface.datapath == "auto" else reason
        except (DatapathError, OSError) as error:
            if interface.datapath == "kernel" and not state:
                raise DatapathError(f"Datapath = kernel cannot be: {error}") from None
            # The pinned programs would go on beside the other path.
            if found.newest:
                raise
            reason = str(error)
    made.tun.persist(kernel is not None)
    userspace = UserspaceDatapath(
        tun=made.tun,
        udp=made.udp,
        path_mtu=PathMtu(made.netlink, made.fwmark),
        mtu=made.mtu,
        rekey_after_messages=interface.rekey_after_messages,
        replay_window=interface.replay_window,
    )
    return Paths(
        tun=made.tun,
        udp=made.udp,
        userspace=userspace,
        kernel=kernel,
        reason=reason,
        build=None if interface.datapath == "userspace" else lambda: _build_again(made),
        state=state,
    )


def _build_again(made: Made) -> KernelDatapath:
    """When another path moves the packets. DatapathError."""
    for one in generation.find(made.config.name):  # what could not be taken away
        leftovers.remove_generation(made.netlink, one)
    return _build(made, NOTHING)


def _build(made: Made, found: Found) -> KernelDatapath:
    """In any thread. DatapathError."""
    features.require()
    link = made.netlink.link(made.tun.ifindex)
    if link is None or link.name != made.config.name:
        raise DatapathError("the TUN device is in another network namespace, or has another name")
    interface = made.config.interface
    return KernelDatapath(
        made.config.name,
        tun_ifindex=made.tun.ifindex,
        listen_port=made.udp.port,
        mtu=made.mtu,
        fwmark=made.fwmark,
        peers=len(made.config.peers),
        identity=identity(made.config),
        attach_mode=interface.attach_mode,
        rekey_after_messages=interface.rekey_after_messages,
        replay_window=interface.replay_window,
        flow_ports=made.config.flow_ports(),
        found=found,
    )


def _wanted(config: Config, mtu: int) -> Wanted:
    return Wanted(
        identity(config),
        shape(mtu, config.interface.attach_mode, config.interface.replay_window),
        config.interface.listen_port,
        len(config.peers),
        frozenset((peer.public_key, n) for peer in config.peers for n in peer.allowed_ips),
    )


def identity(config: Config) -> str:
    """What must not change under a tunnel that is gone on with. What table its routes were in
    nobody remembers; and with the mark of a default route changes how everything is routed."""
    interface = config.interface
    routing = f"{interface.table}{interface.fwmark or ''}".encode()
    public_key = keys.public_key(interface.private_key)
    return blake2s(public_key + routing, digest_size=8).hexdigest()
