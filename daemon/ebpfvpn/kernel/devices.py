"""Underlay devices under watch: what tunnels have attached to them, and others may take away.

A device whose first choice is taken or refused is looked at again: a second after it changed, and
then less and less often.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from ebpfvpn.kernel import attach, bpffs, dispatcher, hooks, layout
from ebpfvpn.kernel.attach import Attachment
from ebpfvpn.kernel.backoff import Backoff
from ebpfvpn.kernel.hooks import Filter
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.links import Links, State
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.program import Program, uses
from ebpfvpn.kernel.ways import Ways
from ebpfvpn.netlink import Netlink
from ebpfvpn.ratelimiter import Limiter

_REPAIRS_PER_SECOND = 4
"""Of a device: against somebody who takes away again what is put back."""
_XDP = ("native", "generic")


@dataclass(slots=True)
class _Watched:
    """One device."""

    attachment: Attachment
    """As it was when it was looked at last."""
    state: State
    backoff: Backoff
    limiter: Limiter = field(default_factory=lambda: Limiter(_REPAIRS_PER_SECOND))
    ports: Map | None = None
    """Of the dispatcher: as long as it is held here, its entries outlive its pin."""
    dispatcher: int = 0
    """Program id."""
    marks: set[str] = field(default_factory=set)
    """Names in the device's directory, which are to stay."""
    tried: tuple[int, bool] = (0, False)
    """MTU, and whether it was up, when something better was tried last."""


class Devices:
    """Those to which one tunnel is attached."""

    def __init__(self, netlink: Netlink, links: Links, ways: Ways) -> None:
        self._netlink = netlink
        self._links = links
        self._tunnel = ways.tunnel
        self._programs = ways.programs
        self._mode = ways.mode
        self._ways = ways
        self._watched: dict[int, _Watched] = {}
        self._gone: set[str] = set()
        """Names of devices that were attached and are no more."""

    def check(self, now: float) -> list[str]:
        """What was found and done, by device. `now`: seconds of a clock that never goes back."""
        done = []
        attachments = self._ways.attachments
        # What is gone is the ways' business, which may not have heard of it, or in this loop.
        states = {ifindex: self._links.state(ifindex) for ifindex in attachments}
        for ifindex in [each for each in self._watched if states.get(each) is None]:
            self._gone.add(self._watched.pop(ifindex).attachment.device)
        for ifindex, state in states.items():
            if state is not None and ifindex in attachments:
                done += self._check(ifindex, state, now)
        return done

    def refusals(self) -> str:
        """Why nothing at all could be attached; empty: something is, or nothing was to be."""
        found = self._ways.attachments.values()
        if any(each.open != "socket" for each in found):
            return ""
        return "; ".join(f"{each.device}: {each.reason}" for each in found)

    def close(self) -> None:
        self._watched.clear()

    def _check(self, ifindex: int, state: State, now: float) -> list[str]:
        watched = self._watched.get(ifindex)
        if watched is None:
            return self._begin(ifindex, state, now)
        if watched.state != state:
            watched.state = state
            watched.backoff.restart(now)
        attachment = self._ways.attachments[ifindex]
        missing = self._missing(watched, attachment)
        if missing:
            if not watched.limiter.allow(now):
                return []  # at the next look
        elif not self._may_do_better(watched, attachment, now):
            return []
        return self._attach(watched, attachment, missing, now)

    def _begin(self, ifindex: int, state: State, now: float) -> list[str]:
        attachment = self._ways.attachments[ifindex]
        self._watched[ifindex] = _Watched(attachment, state, Backoff(now))
        self._note(self._watched[ifindex], attachment)
        if attachment.device not in self._gone:
            return []
        self._gone.discard(attachment.device)
        return [f"{attachment.device}: it was gone, and is attached again: {attachment.open}"]

    def _note(self, watched: _Watched, attachment: Attachment) -> None:
        """What is there now, to be found there later."""
        ifindex = attachment.ifindex
        watched.attachment = attachment
        watched.state = self._links.state(ifindex) or watched.state
        watched.tried = watched.state.mtu, watched.state.up
        watched.marks = attach.marks(self._tunnel, attachment) | attach.lasting(_names(ifindex))
        watched.dispatcher = 0
        watched.ports = None
        if attachment.open in _XDP:
            # Else it was taken away at once, and will be missed.
            with contextlib.suppress(BpfError):
                watched.ports = dispatcher.ports_map(_directory(ifindex))

    def _missing(self, watched: _Watched, attachment: Attachment) -> list[str]:
        """What of that which the chosen mode needs."""
        if attachment.open == "socket":
            return []
        missing = []
        if attachment.open in _XDP:
            missing += self._missing_xdp(watched, attachment)
        missing += [
            f"filter {program.name}"
            for priority, program in self._filters(attachment)
            if Filter(attachment.ifindex, hooks.INGRESS, self._tunnel.handle, priority).program_id()
            != program.id
        ]
        if not watched.marks <= _names(attachment.ifindex):
            missing.append("pins")
        return missing

    def _missing_xdp(self, watched: _Watched, attachment: Attachment) -> list[str]:
        native = attachment.open == "native"
        there = watched.state.native if native else watched.state.generic
        if watched.ports is None or not there:
            return ["XDP program"]
        if there != watched.dispatcher:
            # Another version's dispatcher in its place uses the same map.
            if not uses(there, watched.ports.id):
                return ["XDP program"]
            watched.dispatcher = there
        program = watched.ports.lookup(layout.number(self._tunnel.listen_port))
        opens = self._programs.open_xdp
        if opens is None or program != layout.number(opens.id):
            return [f"dispatcher's entry of port {self._tunnel.listen_port}"]
        return []

    def _filters(self, attachment: Attachment) -> list[tuple[int, Program]]:
        """By priority."""
        programs = self._programs
        found = []
        if attachment.open in _XDP:
            native = attachment.open == "native"
            deliver = programs.deliver if native else programs.deliver_generic
            found.append((hooks.DELIVER_PRIORITY, deliver))
        if attachment.open in ("generic", "tc"):
            found.append((hooks.OPEN_PRIORITY, programs.open_tc))
        return found

    def _may_do_better(self, watched: _Watched, attachment: Attachment, now: float) -> bool:
        """Whether it is worth trying again what was refused, without disturbing anything."""
        first = "native" if self._mode == "auto" else self._mode
        if attachment.open == first or attachment.rps or not watched.backoff.due(now):
            return False
        if attachment.open == "generic":
            # To find out what the driver says takes the program off: once, after each change.
            return watched.tried != (watched.state.mtu, watched.state.up)
        if not watched.state.xdp:
            return True
        return bool(dispatcher.attached_mode(_directory(attachment.ifindex), attachment.ifindex))

    def _attach(
        self, watched: _Watched, before: Attachment, missing: list[str], now: float
    ) -> list[str]:
        ifindex = before.ifindex
        link = self._netlink.link(ifindex)
        if link is None:
            return []
        if not missing and before.open == "generic":
            attach.free_for_native(self._tunnel, ifindex)
        after = self._ways.attach(link)
        if after.open != "socket":
            for name in attach.lasting(watched.marks):
                (_directory(ifindex) / name).mkdir(exist_ok=True)
        self._note(watched, after)
        if missing:
            watched.backoff.restart(now)
        else:
            watched.backoff.failed(now)
        if after.redirect != before.redirect:
            self._ways.network_changed()
        return _told(before, after, missing)


def _told(before: Attachment, after: Attachment, missing: list[str]) -> list[str]:
    what = f"{after.device}: "
    if missing:
        what += f"{', '.join(missing)} missing; "
    if after.open != before.open:
        return [f"{what}open by {after.open} now, not {before.open} ({after.reason})"]
    return [f"{what}put back ({after.open})"] if missing else []


def _directory(ifindex: int) -> Path:
    return bpffs.device_directory(bpffs.netns_inode(), ifindex)


def _names(ifindex: int) -> set[str]:
    try:
        return set(os.listdir(_directory(ifindex)))
    except FileNotFoundError:
        return set()
