"""Attachment to underlay devices: where the messages of a tunnel come in.

Per device: native XDP, generic XDP or tc, the first that the device takes, or the one that is
asked for. XDP goes through the device's dispatcher (dispatcher.py), which tunnels share. What
somebody else has attached stays: no program is replaced, no qdisc removed that is not ours.

A device's directory on bpffs says who is there, for tunnels of all processes:

    @NETNS-IFINDEX/tunnel-NAME%0/  generation 0 of the tunnel NAME is attached
    @NETNS-IFINDEX/clsact/         the device's clsact qdisc was made by a tunnel
    @NETNS-IFINDEX/rps...          see rps.py
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self, get_args

from ebpfvpn.failures import logged
from ebpfvpn.kernel import bpffs, cpumap, dispatcher, hooks, rps
from ebpfvpn.kernel.features import takes_redirect
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.kernel.hooks import Filter
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.program import Program
from ebpfvpn.kernel.segmenter import XDP_MTU
from ebpfvpn.netlink import Link, Netlink

AttachMode = Literal["auto", "native", "generic", "tc"]
ATTACH_MODES: tuple[AttachMode, ...] = get_args(AttachMode)
"""The first is any of the others: the best that works, in this order."""
OpenMode = Literal["native", "generic", "tc", "socket"]

_XDP_MODES = {"native": hooks.XDP_NATIVE, "generic": hooks.XDP_GENERIC}
_XDP_NAMES: dict[int, OpenMode] = {hooks.XDP_NATIVE: "native", hooks.XDP_GENERIC: "generic"}
CLSACT = "clsact"
_TUNNEL = "tunnel-"
_TC_PARENTS = (0xFFFFFFF2, 0xFFFFFFF3)  # ingress, egress


class _RefusedError(Exception):
    """We refuse, not the kernel."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What attaching and detaching need to know of a generation."""

    marker: str
    """Name of the directory that says that it is attached."""
    handle: int
    """Of its tc filters."""
    listen_port: int
    ours: Map
    """By it programs are known as this generation's, whichever start of the daemon loaded them."""

    @classmethod
    def of(cls, generation: Generation) -> Self:
        """BpfError if it has not come so far as to be attached."""
        facts = generation.facts
        return cls(_marker(generation), facts.handle, facts.port, generation.config())


@dataclass(frozen=True, slots=True)
class Programs:
    """What is attached."""

    mark: bytes
    deliver: Program
    deliver_generic: Program
    """Behind generic XDP."""
    open_tc: Program
    open_xdp: Program | None
    """None: tc only."""

    @classmethod
    def of(cls, mark: bytes, loaded: Mapping[str, Program]) -> Self:
        return cls(
            mark, loaded["deliver"], loaded["deliver_generic"], loaded["open_tc"],
            loaded.get("open_xdp"),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attachment:
    """One device, and what was chosen for it."""

    ifindex: int
    device: str
    open: OpenMode
    """socket: nothing could be attached; messages come through the UDP socket."""
    reason: str
    redirect: bool
    """`seal` in XDP may redirect to it."""
    rps: bool = False
    """Its one receive queue is shared among CPUs, which is better than XDP."""
    may_spread: bool = False
    """`open` may hand messages to other CPUs."""


def attach(
    netlink: Netlink, tunnel: Tunnel, programs: Programs, link: Link, mode: AttachMode,
    *, flow_ports: bool,
) -> Attachment:  # fmt: skip
    """Never fails: at worst messages go through the UDP socket, and the reason says why. What an
    earlier daemon attached is replaced without a gap. `flow_ports`: messages come from several
    ports, so that CPUs can share them."""
    if link.mac is None or link.loopback:
        return Attachment(link.ifindex, link.name, "socket", "no Ethernet device", False)
    refusals: list[str] = []
    chosen: OpenMode = "socket"
    with bpffs.devices_lock():
        directory = _directory(link.ifindex)
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / tunnel.marker).mkdir(exist_ok=True)
        # Native XDP shares by itself, while the device is busy.
        waits = mode == "auto" and _can_spread(link)
        shared = flow_ports and not waits and _share(directory, tunnel, link, mode, refusals)
        candidates = _candidates(mode, shared, link.mtu)
        while candidates:
            candidate, *candidates = candidates
            try:
                if candidate == "tc":
                    _attach_tc(tunnel, programs, link.ifindex)
                    chosen = "tc"
                else:
                    exact = mode != "auto"
                    chosen = _attach_xdp(tunnel, programs, link.ifindex, candidate, exact=exact)
                break
            except (BpfError, _RefusedError) as error:
                kind = "tc" if candidate == "tc" else f"{candidate} XDP"
                reason = error.reason if isinstance(error, BpfError) else str(error)
                refusals.append(f"{kind} refused: {reason}")
                if candidate == "native" and flow_ports and waits:
                    shared = _share(directory, tunnel, link, mode, refusals)
                    candidates = ["tc", "generic"] if shared else candidates
        shared = shared and chosen == "tc"
        if not shared:
            _stop_sharing(directory, tunnel, link.ifindex)
        _take_away_unused(netlink, tunnel, link.ifindex, chosen)
    reason = "; ".join(refusals) or ("first choice" if mode == "auto" else "asked for")
    if shared:
        reason += ", RPS shares its one receive queue"
    found = Attachment(link.ifindex, link.name, chosen, reason, False, shared)
    return look_again(found, link) if chosen == "native" else found


def _candidates(mode: AttachMode, shared: bool, mtu: int) -> list[AttachMode]:
    """In their order. Native XDP comes before RPS: one CPU would decrypt everything."""
    if mode != "auto":
        return [mode]
    if shared:
        return ["tc", "native", "generic"]
    # Generic XDP has no GRO behind it; tc has, on the segmenter. Where one packet fills a page
    # there is little else to be said for it.
    return ["native", "tc", "generic"] if mtu > XDP_MTU else [*ATTACH_MODES[1:]]


def _share(
    directory: Path, tunnel: Tunnel, link: Link, mode: AttachMode, refusals: list[str]
) -> bool:
    if mode not in ("auto", "tc"):
        return False
    try:
        return rps.share(directory, link.name, tunnel.marker)
    except OSError as error:
        refusals.append(f"RPS refused: {error}, so one CPU receives for all flow ports")
        return False


def _stop_sharing(directory: Path, tunnel: Tunnel, ifindex: int) -> None:
    with logged("RPS, which nobody needs any more, stays on"):
        rps.stop(directory, ifindex, tunnel.marker)


def look_again(native: Attachment, link: Link) -> Attachment:
    """What the device can do may have changed."""
    return replace(
        native, device=link.name, redirect=takes_redirect(link),
        may_spread=_can_spread(link),
    )  # fmt: skip


def _can_spread(link: Link) -> bool:
    return bool(cpumap.usable_cpus()) and cpumap.may_spread(link.ifindex)


def free_for_native(tunnel: Tunnel, ifindex: int) -> None:
    """Takes generic XDP off, beside which native cannot be: what is there in tc opens until
    `attach` has put another in its place. Nothing happens where other tunnels need it."""
    directory = _directory(ifindex)
    with bpffs.devices_lock():
        if dispatcher.ports_in_use(directory) <= {tunnel.listen_port}:
            dispatcher.detach(directory, ifindex)


def marks(tunnel: Tunnel, attachment: Attachment) -> set[str]:
    """Names that must be in the device's directory."""
    if attachment.open == "socket":
        return set()
    if attachment.open == "tc":
        return {tunnel.marker}
    return {tunnel.marker, dispatcher.port_mark(tunnel.listen_port), *dispatcher.PINS}


def lasting(names: set[str]) -> set[str]:
    """Of a device's directory: what says how the device was before any tunnel."""
    return {name for name in names if name == CLSACT or name.startswith(rps.WRITTEN)}


def detach(netlink: Netlink, tunnel: Tunnel, ifindex: int) -> None:
    """Takes the tunnel off a device, and with the last tunnel all that tunnels put there. A
    device that is gone is forgotten."""
    with bpffs.devices_lock():
        try:
            dispatcher.unset_port(_directory(ifindex), tunnel.listen_port, tunnel.ours)
        finally:
            # `deliver` before XDP: what is decrypted meanwhile dies by its MAC address.
            _detach_filters(ifindex, tunnel)
        _stop_sharing(_directory(ifindex), tunnel, ifindex)
        _leave(netlink, tunnel.marker, ifindex)


def stop_opening(tunnel: Tunnel, ifindex: int) -> None:
    """Messages go up to the daemon from now on; what is opened already is delivered."""
    with bpffs.devices_lock():
        try:
            dispatcher.unset_port(_directory(ifindex), tunnel.listen_port, tunnel.ours)
        finally:
            _filter(tunnel, ifindex, hooks.OPEN_PRIORITY).detach(tunnel.ours)


def open_in_tc(tunnel: Tunnel, open_tc: Program, ifindex: int, following: AttachMode) -> None:
    """From now on it can do without the dispatcher, in which the generation that follows takes its
    place, or which it wants in another mode. Nothing happens if the device is gone."""
    directory = _directory(ifindex)
    with bpffs.devices_lock(), contextlib.suppress(BpfError):
        _filter(tunnel, ifindex, hooks.OPEN_PRIORITY).attach(open_tc, tunnel.ours)
        wanted = _XDP_MODES["generic" if following == "generic" else "native"]
        if following != "tc" and dispatcher.attached_mode(directory, ifindex) != wanted:
            dispatcher.unset_port(directory, tunnel.listen_port, tunnel.ours)
            if not dispatcher.in_use(directory):
                dispatcher.remove(directory, ifindex)


def attached_devices(generation: Generation) -> list[tuple[int, int]]:
    """Network namespace (inode) and ifindex of the devices on which it is, dead or alive."""
    found = []
    for directory in bpffs.PINS.glob("@*"):
        if (directory / _marker(generation)).exists():
            netns, _, ifindex = directory.name.removeprefix("@").partition("-")
            found.append((int(netns), int(ifindex)))
    return found


def _directory(ifindex: int) -> Path:
    return bpffs.device_directory(bpffs.netns_inode(), ifindex)


def _marker(generation: Generation) -> str:
    return f"{_TUNNEL}{bpffs.pin_directory(generation.name).name}%{generation.facts.number}"


def _attach_xdp(
    tunnel: Tunnel, programs: Programs, ifindex: int, mode: str, *, exact: bool
) -> OpenMode:
    """Returns the mode in which the dispatcher is, which may be another unless `exact`."""
    if programs.open_xdp is None:
        raise _RefusedError("XDP programs are not loaded")
    directory = _directory(ifindex)
    dispatcher.pin_again(directory, ifindex, programs.mark)
    found = dispatcher.attached_mode(directory, ifindex)
    if found and exact and found != _XDP_MODES[mode]:
        raise _RefusedError(f"another tunnel has attached {_XDP_NAMES[found]} XDP")
    if found:
        dispatcher.renew(directory, ifindex, found)
    else:
        found = _XDP_MODES[mode]
        dispatcher.create(directory, ifindex, found, programs.mark)
    try:
        generic = found == hooks.XDP_GENERIC
        deliver = programs.deliver_generic if generic else programs.deliver
        _add_filter(tunnel, deliver, ifindex, hooks.DELIVER_PRIORITY)
        if generic:
            # The kernel does not show it packets that tc redirected on their way here, from
            # another namespace over veth, say.
            _attach_tc(tunnel, programs, ifindex)
        dispatcher.set_port(directory, tunnel.listen_port, programs.open_xdp)
    except BpfError:
        dispatcher.unset_port(directory, tunnel.listen_port, tunnel.ours)
        _detach_filters(ifindex, tunnel)
        if not dispatcher.in_use(directory):
            dispatcher.remove(directory, ifindex)
        raise
    return _XDP_NAMES[found]


def _attach_tc(tunnel: Tunnel, programs: Programs, ifindex: int) -> None:
    _add_filter(tunnel, programs.open_tc, ifindex, hooks.OPEN_PRIORITY)


def _add_filter(tunnel: Tunnel, program: Program, ifindex: int, priority: int) -> None:
    if hooks.add_clsact(ifindex):
        (_directory(ifindex) / CLSACT).mkdir(exist_ok=True)
    _filter(tunnel, ifindex, priority).attach(program, tunnel.ours)


def _filter(tunnel: Tunnel, ifindex: int, priority: int) -> Filter:
    return Filter(ifindex, hooks.INGRESS, tunnel.handle, priority)


def _take_away_unused(netlink: Netlink, tunnel: Tunnel, ifindex: int, chosen: OpenMode) -> None:
    """What an earlier choice needed: now that the new one is in place, nothing is lost."""
    directory = _directory(ifindex)
    if chosen in ("tc", "socket"):
        dispatcher.unset_port(directory, tunnel.listen_port, tunnel.ours)
        _filter(tunnel, ifindex, hooks.DELIVER_PRIORITY).detach(tunnel.ours)
        if not dispatcher.in_use(directory):
            dispatcher.remove(directory, ifindex)
    if chosen in ("native", "socket"):
        _filter(tunnel, ifindex, hooks.OPEN_PRIORITY).detach(tunnel.ours)
    if chosen == "socket":
        _leave(netlink, tunnel.marker, ifindex)


def _detach_filters(ifindex: int, tunnel: Tunnel) -> None:
    for priority in (hooks.DELIVER_PRIORITY, hooks.OPEN_PRIORITY):
        _filter(tunnel, ifindex, priority).detach(tunnel.ours)


def _leave(netlink: Netlink, marker: str, ifindex: int) -> None:
    directory = _directory(ifindex)
    with contextlib.suppress(FileNotFoundError):
        (directory / marker).rmdir()
    if not dispatcher.in_use(directory):
        dispatcher.remove(directory, ifindex)
    if (directory / CLSACT).exists() and not _filters(netlink, ifindex):
        hooks.remove_clsact(ifindex)
        (directory / CLSACT).rmdir()
    if not any(directory.glob(f"{_TUNNEL}*")):
        bpffs.remove(directory)


def _filters(netlink: Netlink, ifindex: int) -> bool:
    """Whether the device has any tc filter at all."""
    try:
        return any(
            netlink.request("get_filters", index=ifindex, parent=parent) for parent in _TC_PARENTS
        )
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
            raise
        return False
