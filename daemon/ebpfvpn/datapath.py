"""The datapath: what moves data packets, as the daemon sees it.

One small interface, so that the kernel (eBPF) and a userspace implementation can take each
other's place. Peers are numbered by the daemon; sessions are named by their local index. All
methods are called from one thread and none blocks for longer than a few system calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, Protocol, get_args

from ebpfvpn import tai64n
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair, Session

DatapathChoice = Literal["auto", "kernel", "userspace"]
"""What the operator may ask for; auto: the best that works."""
DATAPATH_CHOICES: tuple[DatapathChoice, ...] = get_args(DatapathChoice)

REPLAY_WINDOW = 8192
"""Packets, unless told: how far behind the newest one, itself included, a packet is taken."""


class DatapathError(Exception):
    """The datapath cannot do what was asked; the text is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a peer's packets have done so far. Times are seconds of CLOCK_BOOTTIME, 0.0: never."""

    tx_packets: int
    tx_bytes: int
    """Ciphertext with its header and tag, as `wg show` counts it (no UDP or IP header)."""
    rx_packets: int
    rx_bytes: int
    last_sent: float
    """Any authenticated packet sent, keepalives included."""
    last_data_sent: float
    last_received: float
    """Any authenticated packet received, keepalives included."""
    last_data_received: float
    unanswered_since: float
    """First data packet sent after the last authenticated one received; 0.0: none waits."""
    unacknowledged_since: float
    """First data packet received after the last one sent; 0.0: none waits."""
    replayed: int = 0
    """Dropped, as their counters were seen already."""
    late: int = 0
    """Dropped, as their counters were behind the replay window."""
    max_lateness: int = 0
    """The most packets that one was behind the newest, among those accepted and those late. Like
    `replayed` and `late` not authenticated: what is dropped may have been forged."""


def added(one: Traffic, other: Traffic) -> Traffic:
    """Of a peer whose packets take two ways."""
    last_received = max(one.last_received, other.last_received)
    last_sent = max(one.last_sent, other.last_sent)
    # What one way waits for may have come by the other.
    unanswered = [t for t in (one.unanswered_since, other.unanswered_since) if t > last_received]
    unacknowledged = [
        t for t in (one.unacknowledged_since, other.unacknowledged_since) if t > last_sent
    ]
    return Traffic(
        one.tx_packets + other.tx_packets,
        one.tx_bytes + other.tx_bytes,
        one.rx_packets + other.rx_packets,
        one.rx_bytes + other.rx_bytes,
        last_sent,
        max(one.last_data_sent, other.last_data_sent),
        last_received,
        max(one.last_data_received, other.last_data_received),
        min(unanswered, default=0.0),
        min(unacknowledged, default=0.0),
        one.replayed + other.replayed,
        one.late + other.late,
        max(one.max_lateness, other.max_lateness),
    )


@dataclass(frozen=True, slots=True)
class SessionState:
    """One live session, and how far it is."""

    peer: int
    session: Session
    send_counter: int
    receive_highest: int
    """Highest authenticated counter plus one; 0: none yet."""


@dataclass(frozen=True, slots=True)
class Receiving:
    """The receiving half of a session, with its replay window: with it another datapath goes on
    where the one that gave it away stopped. (The sending half never changes hands.)"""

    peer: int
    session: Session
    key: bytes = field(repr=False)
    """32 bytes."""
    highest: int
    """Highest authenticated counter plus one."""
    base: int
    """A multiple of 64, and at most `highest`."""
    seen: int
    """Bit i: the counter `base` + i was seen. What is below `base` counts as seen."""


@dataclass(frozen=True, slots=True)
class Left:
    """What an earlier daemon left of a peer in the datapath."""

    public_key: bytes
    number: int | None
    """None: it is still to be added."""
    current: Session | None = None
    next: Session | None = None
    others: Sequence[Session] = ()
    """They still open what comes under them."""
    endpoint: Endpoint | None = None
    timestamp: bytes = tai64n.NEVER
    """See `Datapath.set_timestamp`."""
    renew: bool = False
    """It has sessions that should be replaced by new ones: in an older version's programs, or in a
    path that is left."""

    def only_opening(self) -> Left:
        """None of its sessions seals any more."""
        sessions = [one for one in (self.current, self.next, *self.others) if one]
        renew = self.renew or self.current is not None or self.next is not None
        return replace(self, current=None, next=None, others=sessions, renew=renew)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The peer's first packet under a session installed unconfirmed: it seals from now on."""

    peer: int
    local_index: int


@dataclass(frozen=True, slots=True)
class Roamed:
    """An authenticated data packet moved the peer's endpoint; `Datapath.endpoint` tells where."""

    peer: int


@dataclass(frozen=True, slots=True)
class TooLong:
    """A sealed message that the way to its endpoint does not take in one packet. The daemon sends
    it by its socket, for the kernel fragments what comes from there."""

    message: bytes
    endpoint: Endpoint
    tos: int
    """TOS byte or traffic class of the outer packet."""


@dataclass(frozen=True, slots=True)
class MessagesUsed:
    """The session has sealed as many messages as call for a new one; told once."""

    peer: int
    local_index: int


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Another path moves packets from now on: every peer that has a session needs a new one."""

    sealing_lost: bool
    """What there are of sessions only open."""


Event = Confirmed | Roamed | TooLong | MessagesUsed | PathChanged


class Datapath(Protocol):
    """Moves data packets of one tunnel: what both paths have in common."""

    def describe(self) -> dict[str, object]:
        """What was chosen and why: {"path": "kernel", "devices": [{"name", "open", "seal",
        "reason"}, ...]}, ready for JSON."""

    def add_peer(self, peer: int, public_key: bytes) -> None: ...

    def remove_peer(self, peer: int) -> None:
        """Also retires its sessions and removes its allowed-ips and endpoint."""

    def set_allowed_ips(self, peer: int, networks: Iterable[IPv4Network | IPv6Network]) -> None:
        """Replaces the peer's. A network that another peer has moves to this one."""

    def set_flow_ports(self, peer: int, count: int) -> None:
        """The peer seals from so many source ports, by inner flow: from its endpoint's on. So do we
        for the peer, from ours on, where the path does that (one is what every WireGuard has)."""

    def set_endpoint(self, peer: int, endpoint: Endpoint) -> None: ...

    def endpoint(self, peer: int) -> Endpoint | None: ...

    def install(self, peer: int, keypair: Keypair, *, confirmed: bool) -> None:
        """Confirmed (we initiated): seals from now on. Else (we responded): opens from now on,
        and seals from its first authenticated packet on (event Confirmed)."""

    def retire(self, local_index: int) -> None:
        """Forgets a session, and overwrites its keys where they lie in a map; what Python held it
        can only let go of. Unknown indices are ignored."""

    def set_usable(self, peer: int, usable: bool) -> None:
        """Whether the peer's packets may take the datapath by themselves. Off until the first
        packets, which waited for the handshake, have been given to `send` in order."""

    def set_timestamp(self, peer: int, timestamp: bytes) -> None:
        """Keeps the greatest timestamp of the peer's initiations for the next daemon."""

    def max_inner(self, peer: int) -> int:
        """The longest inner packet that fits the way to the peer; 0: whatever the MTU lets."""

    def send(self, peer: int, packets: Sequence[bytes]) -> None:
        """Seals and sends inner IP packets under the current session, in order; an empty packet
        is a keepalive."""

    def traffic(self) -> dict[int, Traffic]:
        """Of every peer that is added."""

    def sessions(self) -> list[SessionState]: ...

    def drops(self) -> dict[str, int]:
        """Packets dropped or handed on, by reason; every reason is there, zeros included.
        "socket_refused" is what filters on the daemon's UDP sockets refused."""

    def events_fd(self) -> int:
        """Readable when `events` has something."""

    def events(self) -> list[Event]: ...

    def network_changed(self) -> None:
        """Links, addresses, routes or neighbours changed: resolve the ways to all endpoints
        again and attach where packets of this tunnel may now arrive."""

    def close(self) -> None:
        """Lets go. Packets go on, as long as their sessions may, for a later daemon to find."""

    def remove(self) -> None:
        """Forgets all sessions as `retire` does, lets go, and takes away every program, map, filter
        and device of this tunnel, the TUN device too."""
