"""Paths: the kernel path in front, the userspace path behind it, as one Datapath.

The userspace path is always there: it reads the TUN device and the sockets, and does what no
program of the kernel path does. While the kernel path works, new sessions are its own, and next to
nothing comes here. When it breaks and cannot be repaired, it gives its receiving halves away, and
new sessions are made in userspace; once it can be built again, new sessions are made there, while
the old ones are opened here until they are over.
"""

from __future__ import annotations

import logging
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from ebpfvpn import tai64n, wire
from ebpfvpn.datapath import (
    Confirmed,
    DatapathError,
    Event,
    Left,
    PathChanged,
    Roamed,
    SessionState,
    Traffic,
    added,
)
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel.builder import Builder
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.keypair import Keypair
from ebpfvpn.tun import Tun
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.datapath import UserspaceDatapath
from ebpfvpn.userspace.state import PeerState

Network = IPv4Network | IPv6Network
Message = tuple[bytes, Endpoint]

_DATA = wire.Data.TYPE

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """Of a peer: what a new kernel path is told."""

    public_key: bytes
    networks: Sequence[Network] = ()
    timestamp: bytes = tai64n.NEVER


class Paths:
    """See Datapath."""

    def __init__(
        self, *, tun: Tun, udp: UdpSockets, userspace: UserspaceDatapath,
        kernel: KernelDatapath | None, reason: str, build: Callable[[], KernelDatapath] | None,
        state: Sequence[PeerState] = (),
    ) -> None:  # fmt: skip
        """`kernel` in front, if there is one, for a `reason` that the operator is told; `build`
        makes one when it can, in any thread (DatapathError: why it cannot); None: no other is
        wanted. `state`: of the process before."""
        self._tun = tun
        self._udp = udp
        self._userspace = userspace
        self._kernel: KernelDatapath | None = None
        self._state = state
        self._reason = reason
        self._peers: dict[int, _Known] = {}
        self._in_userspace: set[int] = set()
        """Peers that are sealed for there, although there is a kernel path."""
        self._stamped: set[int] = set()
        """Peers whose timestamps the next kernel path may not have been told."""
        self._filtered: set[socket.socket] = set()
        self._joined = {sock for sock in udp.sockets if udp.joins(sock)}
        self._events: list[Event] = []
        self._gone_traffic: dict[int, Traffic] = {}
        self._gone_drops: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        """Repairs, changes of the path, packets that went another way than most."""
        self._builder = Builder(build)
        self._poll = select.epoll()
        self._poll.register(userspace.events_fd(), select.EPOLLIN)
        userspace.alone(kernel is None)
        if kernel is not None:
            self._take_front(kernel)
        else:
            self._joined = set(udp.sockets)
            # Those that were kept open may have the filter of an earlier daemon.
            for sock in udp.sockets:
                udp.accept_all(sock)

    def _take_front(self, kernel: KernelDatapath) -> None:
        self._kernel = kernel
        self._poll.register(kernel.events_fd(), select.EPOLLIN)

    # Packets and messages.

    def packets(self) -> Iterator[bytes]:
        """Inner packets on the TUN that no path can move: no peer, no usable session, too long."""
        return self._userspace.packets()

    def messages(self, sock: socket.socket) -> list[Message]:
        """Handshake messages, and what is no message at all, that wait on a UDP socket. Data
        messages are opened."""
        found = []
        if self._kernel is not None and sock in self._joined:
            self._joined.discard(sock)
            arrived = self._userspace.end_joining(sock)
        else:
            arrived = self._userspace.messages(sock)
        for data, source, tos in arrived:
            if data[:1] != bytes([_DATA]):
                found.append((data, source))
            elif self._kernel is not None and self._kernel.has(_receiver(data)):
                self._kernel.reinject(data, source, tos)
                self.counters["reinjected"] += 1
            else:
                self._gone_drops["unknown_index"] += 1
        return found

    def send(self, peer: int, packets: Sequence[bytes]) -> None:
        (self._userspace if self._seals_here(peer) else self._front()).send(peer, packets)

    def _front(self) -> KernelDatapath | UserspaceDatapath:
        return self._kernel or self._userspace

    def _seals_here(self, peer: int) -> bool:
        here = peer in self._in_userspace and self._userspace.seals(peer)
        return self._kernel is None or here

    # Which path.

    def check(self) -> list[str]:
        """See KernelDatapath.check, but never fails: goes down to userspace, or up again, and tells
        of that by PathChanged."""
        if self._kernel is not None:
            try:
                done = self._kernel.check()
            except (DatapathError, OSError) as error:
                self._fall(self._kernel, str(error))
                return []
            except Exception as error:  # whatever it is, the tunnel stays up
                log.exception("a bug")
                self._fall(self._kernel, type(error).__name__)
                return []
            self._filter()
            return done
        try:
            kernel = self._builder.poll(self._add_peers)
        except (DatapathError, OSError) as error:
            if _without_numbers(str(error)) != _without_numbers(self._reason):
                log.warning("still in userspace: %s", error)
            self._reason = str(error)
        else:
            if kernel is not None:
                self._go_up(kernel)
        return []

    def _add_peers(self, kernel: KernelDatapath) -> None:
        """In the builder's thread: peers are neither added nor removed there."""
        for number, known in list(self._peers.items()):
            kernel.add_peer(number, known.public_key)
            kernel.set_allowed_ips(number, known.networks)
            kernel.set_timestamp(number, known.timestamp)
            if (endpoint := self._userspace.endpoint(number)) is not None:
                kernel.set_endpoint(number, endpoint)

    def leave_kernel(self) -> None:
        """It is not wanted any more. Its sessions only open (Left.only_opening)."""
        assert self._kernel is not None
        self._go_down(self._kernel)
        self._reason = "asked for"

    def _fall(self, kernel: KernelDatapath, reason: str) -> None:
        log.error("the kernel path is broken: %s; going on in userspace", reason)
        self.counters["path_down"] += 1
        self._reason = reason
        self._go_down(kernel)
        self._events.append(PathChanged(sealing_lost=True))
        self._builder.broke()

    def _go_down(self, kernel: KernelDatapath) -> None:
        for sock in self._udp.sockets:
            self._udp.accept_all(sock)
        self._filtered.clear()
        self._userspace.alone(True)
        self._joined = set(self._udp.sockets)
        for half in kernel.release():
            self._userspace.install_receiving(half)
        for number, traffic in kernel.traffic().items():
            before = self._gone_traffic.get(number)
            self._gone_traffic[number] = added(before, traffic) if before else traffic
        self._gone_drops.update(kernel.drops())
        self._take_back()
        self._builder.discard(kernel)
        # What is left of it goes with this process.
        self._tun.persist(False)

    def _take_back(self) -> None:
        assert self._kernel is not None
        self._poll.unregister(self._kernel.events_fd())
        self._kernel = None
        self._in_userspace.clear()

    def _go_up(self, kernel: KernelDatapath) -> None:
        log.warning("the kernel path works again: new sessions are made there")
        self.counters["path_up"] += 1
        self._reason = "possible again"
        for number in self._stamped:
            kernel.set_timestamp(number, self._peers[number].timestamp)
        self._stamped.clear()
        for number in self._peers:
            endpoint = self._userspace.endpoint(number)
            if endpoint is not None and endpoint != kernel.endpoint(number):
                kernel.set_endpoint(number, endpoint)
        self._userspace.alone(False)
        self._take_front(kernel)
        self._tun.persist()
        self._now_in_front()

    def _now_in_front(self) -> None:
        """New sessions are made there, while those in userspace go on."""
        self._in_userspace = {
            state.peer for state in self._userspace.sessions() if self._userspace.seals(state.peer)
        }
        self._events.append(PathChanged(sealing_lost=False))

    def _filter(self) -> None:
        """Puts the kernel path's filter on the sockets, once userspace has nothing to open."""
        if self._kernel is not None and not self._userspace.sessions():
            for sock in self._udp.sockets:
                if sock not in self._filtered:
                    self._kernel.accept_only_messages(sock)
                    self._filtered.add(sock)

    def describe(self) -> dict[str, object]:
        return self._front().describe() | {"reason": self._reason}

    # What the daemon says.

    def left(self) -> list[Left]:
        here = {peer.number: self._userspace.restore(peer) for peer in self._state}
        found = []
        for one in self._kernel.left() if self._kernel else []:
            if one.number is None:
                found.append(one)
            elif one.number in here:
                found.append(_joined(one, here.pop(one.number)))
            else:
                self._userspace.add_peer(one.number, one.public_key)
                if one.endpoint is not None:
                    self._userspace.set_endpoint(one.number, one.endpoint)
                found.append(one)
        for number, one in here.items():
            if self._kernel is not None:
                self._add_in_front(self._kernel, number, one)
            found.append(one)
        for one in found:
            if one.number is not None:
                self._peers[one.number] = _Known(one.public_key, (), one.timestamp)
        if self._kernel is not None and self._state:
            self._now_in_front()
        return found

    def _add_in_front(self, kernel: KernelDatapath, number: int, known: Left) -> None:
        kernel.add_peer(number, known.public_key)
        kernel.set_timestamp(number, known.timestamp)
        if known.endpoint is not None:
            kernel.set_endpoint(number, known.endpoint)

    def state(self) -> list[PeerState] | None:
        """What the process that follows goes on with; None where nothing of it is here."""
        if self._kernel is not None and not (self._userspace.sessions() or self._gone_traffic):
            return None
        timestamps = {number: peer.timestamp for number, peer in self._peers.items()}
        return [self._with_gone(one) for one in self._userspace.state(timestamps)]

    def _with_gone(self, one: PeerState) -> PeerState:
        gone = self._gone_traffic.get(one.number)
        return replace(one, traffic=added(one.traffic, gone)) if gone else one

    def remove_older(self) -> None:
        if self._kernel:
            self._kernel.remove_older()

    def add_peer(self, peer: int, public_key: bytes) -> None:
        self._peers[peer] = _Known(public_key)
        for path in self._both():
            path.add_peer(peer, public_key)

    def remove_peer(self, peer: int) -> None:
        del self._peers[peer]
        self._in_userspace.discard(peer)
        self._stamped.discard(peer)
        for path in self._both():
            path.remove_peer(peer)

    def set_allowed_ips(self, peer: int, networks: Iterable[Network]) -> None:
        wanted = self._peers[peer].networks = tuple(networks)
        for path in self._both():
            path.set_allowed_ips(peer, wanted)

    def set_endpoint(self, peer: int, endpoint: Endpoint) -> None:
        for path in self._both():
            path.set_endpoint(peer, endpoint)

    def endpoint(self, peer: int) -> Endpoint | None:
        return self._front().endpoint(peer)

    def install(self, peer: int, keypair: Keypair, *, confirmed: bool) -> None:
        self._front().install(peer, keypair, confirmed=confirmed)
        if self._kernel is not None and confirmed:
            self._moved_up(peer)

    def _moved_up(self, peer: int) -> None:
        """Its current session is the kernel path's."""
        self._in_userspace.discard(peer)
        self._userspace.forget_next(peer)

    def retire(self, local_index: int) -> None:
        for path in self._both():
            path.retire(local_index)

    def set_usable(self, peer: int, usable: bool) -> None:
        if usable and self._seals_here(peer):
            self._userspace.set_usable(peer, True)
            return
        if usable:
            self._userspace.stop_sealing(peer)
        for path in self._both():
            path.set_usable(peer, usable)

    def set_timestamp(self, peer: int, timestamp: bytes) -> None:
        self._peers[peer].timestamp = timestamp
        if self._kernel is None:
            self._stamped.add(peer)
        self._front().set_timestamp(peer, timestamp)

    def max_inner(self, peer: int) -> int:
        return (self._userspace if self._seals_here(peer) else self._front()).max_inner(peer)

    def _both(self) -> list[KernelDatapath | UserspaceDatapath]:
        return [self._kernel, self._userspace] if self._kernel else [self._userspace]

    # What it tells.

    def traffic(self) -> dict[int, Traffic]:
        found = self._kernel.traffic() if self._kernel else {}
        for figures in (self._userspace.traffic(), self._gone_traffic):
            for number, traffic in figures.items():
                if number in self._peers:
                    found[number] = added(found[number], traffic) if number in found else traffic
        return found

    def sessions(self) -> list[SessionState]:
        return [state for path in self._both() for state in path.sessions()]

    def drops(self) -> dict[str, int]:
        total = Counter({"socket_refused": 0})
        total.update(self._gone_drops)
        for path in self._both():
            total.update(path.drops())
        return dict(total)

    def accept_only_messages(self, sock: socket.socket) -> None:
        """See `_filter`."""
        self._filter()

    def events_fd(self) -> int:
        return self._poll.fileno()

    def events(self) -> list[Event]:
        found, self._events = self._events, []
        if self._kernel is not None:
            for event in self._kernel.events():
                if isinstance(event, Confirmed):
                    self._moved_up(event.peer)
                elif isinstance(event, Roamed):
                    endpoint = self._kernel.endpoint(event.peer)
                    if endpoint is not None:
                        self._userspace.set_endpoint(event.peer, endpoint)
                found.append(event)
        for event in self._userspace.events():
            if self._kernel is not None and isinstance(event, Roamed):
                endpoint = self._userspace.endpoint(event.peer)
                if endpoint is not None:
                    self._kernel.set_endpoint(event.peer, endpoint)
            elif self._kernel is not None and isinstance(event, Confirmed):
                # It waited for its first packet when the kernel path came.
                self._in_userspace.add(event.peer)
            found.append(event)
        return found

    def network_changed(self) -> None:
        for path in self._both():
            path.network_changed()

    def close(self) -> None:
        self._builder.close()
        for path in self._both():
            path.close()

    def remove(self) -> None:
        self._builder.close()
        for path in self._both():
            path.remove()


def _joined(front: Left, here: Left) -> Left:
    """Of a peer that has sessions in both paths; new ones are the kernel path's."""
    current, following = front.current or here.current, front.next or here.next
    others = [
        session
        for session in (front.current, front.next, here.current, here.next)
        if session and session not in (current, following)
    ]
    return replace(
        front, current=current, next=following, others=[*others, *front.others, *here.others]
    )


def _receiver(data: bytes) -> int:
    """Of a data message; 0, which is no index, if it is too short for one."""
    whole = len(data) >= wire.Data.LAYOUT.size + wire.TAG_LENGTH
    return wire.Data.LAYOUT.unpack_from(data)[1] if whole else 0


def _without_numbers(reason: str) -> str:
    """Each try has devices of its own: their numbers are no news."""
    return re.sub(r"\d+", "", reason)
