"""What the daemon that follows a restart needs, to go on with sessions that live in this process.

It holds keys. So it goes through an anonymous file in memory, whose descriptor the process keeps
over its own execve (handover.py), and never to a supervisor or to disk.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from typing import Any

from ebpfvpn.datapath import Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.losses import SocketLosses

_MOST = 1 << 30
_MFD_NOEXEC_SEAL = 8


@dataclass(frozen=True, slots=True)
class SessionState:
    """Of one session; a half that this process does not have has no key."""

    local_index: int
    remote_index: int
    initiator: bool
    created: float
    send_key: str | None = field(repr=False)
    """Hexadecimal, as `receive_key`."""
    receive_key: str = field(repr=False)
    send_counter: int
    highest: int
    base: int
    seen: str
    """These three: see Receiving. Hexadecimal: Python writes no decimal number of 65,536 bits."""


@dataclass(frozen=True, slots=True)
class PeerState:
    number: int
    public_key: str
    timestamp: str
    """As Datapath.set_timestamp, hexadecimal."""
    endpoint: list[Any] | None
    """Address, port, our address or None, ifindex."""
    current: int
    """Local index, 0: none; as `next`."""
    next: int
    sessions: list[SessionState]
    traffic: Traffic


@dataclass(frozen=True, slots=True)
class State:
    identity: str
    """As in adoption.py: of another identity nothing is gone on with."""
    port: int
    """UDP port it listens on."""
    fwmark: int
    networks: list[str]
    """Allowed-ips of all peers, for their routes."""
    losses: SocketLosses
    peers: list[PeerState]


def pack_endpoint(endpoint: Endpoint | None) -> list[Any] | None:
    if endpoint is None:
        return None
    local = None if endpoint.local is None else str(endpoint.local)
    return [str(endpoint.address), endpoint.port, local, endpoint.ifindex]


def unpack_endpoint(packed: list[Any] | None) -> Endpoint | None:
    if packed is None:
        return None
    address, port, local, ifindex = packed
    return Endpoint(ip_address(address), port, ip_address(local) if local else None, ifindex)


def write(state: State) -> int:
    """A descriptor to hand over."""
    fd = _memory()
    with open(fd, "wb", closefd=False) as file:
        file.write(json.dumps(asdict(state)).encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd


def _memory() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("ebpfvpn-sessions", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:  # before Linux 6.3
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("ebpfvpn-sessions", flags)


def read(fd: int) -> State | None:
    """Closes it. None: another version wrote it."""
    with open(fd, "rb") as file:
        file.seek(0)
        data = file.read(_MOST)
    try:
        found = json.loads(data)
        losses = SocketLosses(**found.pop("losses"))
        return State(peers=[_peer(peer) for peer in found.pop("peers")], losses=losses, **found)
    except (ValueError, KeyError, TypeError):
        return None


def _peer(found: dict[str, Any]) -> PeerState:
    sessions = [SessionState(**session) for session in found.pop("sessions")]
    return PeerState(sessions=sessions, traffic=Traffic(**found.pop("traffic")), **found)
