"""What a Device wants done, in order, by whoever owns the socket and the datapath."""

from __future__ import annotations

from dataclasses import dataclass

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair


@dataclass(frozen=True, slots=True)
class Send:
    """A handshake message or cookie reply for the UDP socket."""

    peer: int | None
    """None: a cookie reply, to whoever it was."""
    data: bytes
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Install:
    """A new session for the datapath, see Datapath.install."""

    peer: int
    keypair: Keypair
    confirmed: bool


@dataclass(frozen=True, slots=True)
class Retire:
    """The session is over: once for each that was installed."""

    local_index: int


@dataclass(frozen=True, slots=True)
class TimestampReceived:
    """The greatest of the peer's initiations: to be kept for `Device.adopt`."""

    peer: int
    timestamp: bytes
    """12 bytes, see tai64n."""


@dataclass(frozen=True, slots=True)
class SessionReady:
    """Packets that wait may be sent."""

    peer: int
    confirm: bool
    """We initiated: if none wait, a keepalive is to be sent, by which the peer confirms."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """An empty packet is to be sent under the current session."""

    peer: int


@dataclass(frozen=True, slots=True)
class EndpointMoved:
    """The peer is to be reached there from now on: an authentic handshake message came from it,
    or (address and port are the same, `local` is None) our own address may be the trouble."""

    peer: int
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The peer did not answer for REKEY_ATTEMPT_TIME: packets that wait are to be dropped."""

    peer: int


Action = (
    Send | Install | Retire | TimestampReceived | SessionReady | Keepalive | EndpointMoved | GaveUp
)
