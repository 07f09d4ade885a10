"""Paths: the kernel path in front, the userspace path behind it, as one Datapath.

The userspace path is always there: it reads the TUN device and the sockets, and does what no
program of the kernel path does. While the kernel path works, new sessions are its own, and next to
nothing comes here. When it breaks and cannot be repaired, it gives its receiving halves away, and
new sessions are made in userspace; once it can be built again, new sessions are made there, while
the old ones are opened here until they are over.
"""

from __future__ import annotations

import contextlib
import logging
import re
import select
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.keypair import Keypair
from ebpfvpn.tun import Tun
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.datapath import UserspaceDatapath

Network = IPv4Network | IPv6Network
Message = tuple[bytes, Endpoint]

_FIRST_TRY, _LAST_TRY = 1.0, 60.0
"""Seconds until the kernel path is tried again: doubled each time, up to this."""
_HELD = 60.0
"""Seconds after which a kernel path that works is taken for lasting."""
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
    ) -> None:  # fmt: skip
        """`kernel` in front, if there is one, for a `reason` that the operator is told; `build`
        makes one when it can, in any thread (DatapathError: why it cannot); None: no other is
        wanted."""
        self._tun = tun
        self._udp = udp
        self._userspace = userspace
        self._kernel: KernelDatapath | None = None
        self._build = build
        self._reason = reason
        self._peers: dict[int, _Known] = {}
        self._in_userspace: set[int] = set()
        """Peers that are sealed for there, although there is a kernel path."""
        self._filtered: set[socket.socket] = set()
        self._events: list[Event] = []
        self._gone_traffic: dict[int, Traffic] = {}
        self._gone_drops: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        """Repairs, changes of the path, packets that went another way than most."""
        self._builder = ThreadPoolExecutor(1, "kernel-path")
        self._building: Future[KernelDatapath] | None = None
        self._pause = _FIRST_TRY
        self._next_try = _now() + _FIRST_TRY
        self._since = _now()
        self._poll = select.epoll()
        self._poll.register(userspace.events_fd(), select.EPOLLIN)
        if kernel is None:
            # Those that were kept open may have the filter of an earlier daemon.
            for sock in udp.sockets:
                udp.accept_all(sock)
            userspace.alone(True)
        else:
            userspace.alone(False)
            self._take_front(kernel)

    def _take_front(self, kernel: KernelDatapath) -> None:
        self._kernel = kernel
        self._poll.register(kernel.events_fd(), select.EPOLLIN)
        self._since = _now()

    # Packets and messages.

    def packets(self) -> Iterator[bytes]:
        """Inner packets on the TUN that no path can move: no peer, no usable session, too long."""
        return self._userspace.packets()

    def messages(self, sock: socket.socket) -> list[Message]:
        """Handshake messages, and what is no message at all, that wait on a UDP socket. Data
        messages are opened."""
        found = []
        for data, source, tos in self._userspace.messages(sock):
            if data[:1] != bytes([_DATA]):
                found.append((data, source))
            elif self._kernel is not None:
                # The socket's filter let in those of live sessions alone.
                self._kernel.reinject(data, source, tos)
                self.counters["reinjected"] += 1
            else:
                self._gone_drops["unknown_index"] += 1
        return found

    def send(self, peer: int, packets: Sequence[bytes]) -> None:
        (self._userspace if self._seals_here(peer) else self._front()).send(peer, packets)

    def reinject(self, message: bytes, source: Endpoint, tos: int) -> None:
        self._front().reinject(message, source, tos)

    def _front(self) -> KernelDatapath | UserspaceDatapath:
        return self._kernel or self._userspace

    def _seals_here(self, peer: int) -> bool:
        return self._kernel is None or peer in self._in_userspace

    # Which path.

    def check(self) -> None:
        """To be called twice a second, and when something about the network changed: repairs the
        kernel path, goes down to userspace, or up again. Tells of a change by PathChanged."""
        if self._kernel is not None:
            try:
                for line in self._kernel.check():
                    log.warning("repaired: %s", line)
                    self.counters["repairs"] += 1
            except (DatapathError, OSError) as error:
                self._go_down(self._kernel, str(error))
                return
            self._filter()
            if _now() > self._since + _HELD:
                self._pause = _FIRST_TRY
        elif self._building is not None:
            if self._building.done():
                self._finish_building(self._building)
        elif self._build is not None and _now() >= self._next_try:
            self._building = self._builder.submit(self._build_front, dict(self._peers))

    def _go_down(self, kernel: KernelDatapath, reason: str) -> None:
        log.error("the kernel path is broken: %s; going on in userspace", reason)
        self.counters["path_down"] += 1
        self._reason = reason
        for sock in self._filtered:
            self._udp.accept_all(sock)
        self._filtered.clear()
        self._userspace.alone(True)
        for half in kernel.release():
            self._userspace.install_receiving(half)
        for number, traffic in kernel.traffic().items():
            before = self._gone_traffic.get(number)
            self._gone_traffic[number] = added(before, traffic) if before else traffic
        self._gone_drops.update(kernel.drops())
        self._take_back()
        # In a thread, so that packets go on meanwhile.
        self._builder.submit(self._discard, kernel)
        # What is left of it goes with this process.
        self._tun.persist(False)
        self._events.append(PathChanged(sealing_lost=True))
        self._try_later()

    def _discard(self, kernel: KernelDatapath) -> None:
        try:
            kernel.discard()
        except (DatapathError, OSError) as error:
            log.error("what is left of the kernel path cannot be taken away: %s", error)

    def _take_back(self) -> None:
        assert self._kernel is not None
        self._poll.unregister(self._kernel.events_fd())
        self._kernel = None
        self._in_userspace.clear()

    def _try_later(self) -> None:
        self._next_try = _now() + self._pause
        self._pause = min(2 * self._pause, _LAST_TRY)

    def _build_front(self, peers: dict[int, _Known]) -> KernelDatapath:
        """In a thread, so that packets go on meanwhile."""
        assert self._build is not None
        kernel = self._build()
        try:
            for number, known in peers.items():
                kernel.add_peer(number, known.public_key)
                kernel.set_allowed_ips(number, known.networks)
                kernel.set_timestamp(number, known.timestamp)
                if (endpoint := self._userspace.endpoint(number)) is not None:
                    kernel.set_endpoint(number, endpoint)
            kernel.check()
        except BaseException:
            kernel.discard()
            raise
        return kernel

    def _finish_building(self, building: Future[KernelDatapath]) -> None:
        self._building = None
        try:
            kernel = building.result()
        except (DatapathError, OSError) as error:
            log.debug("the kernel path cannot be built: %s", error)
            if _without_numbers(str(error)) != _without_numbers(self._reason):
                log.warning("still in userspace: %s", error)
            self._reason = str(error)
            self._try_later()
            return
        self._go_up(kernel)

    def _go_up(self, kernel: KernelDatapath) -> None:
        log.warning("the kernel path works again: new sessions are made there")
        self.counters["path_up"] += 1
        self._reason = "possible again"
        for number in self._peers:
            endpoint = self._userspace.endpoint(number)
            if endpoint is not None and endpoint != kernel.endpoint(number):
                kernel.set_endpoint(number, endpoint)
        self._in_userspace = {
            state.peer for state in self._userspace.sessions() if self._userspace.seals(state.peer)
        }
        self._userspace.alone(False)
        self._take_front(kernel)
        self._tun.persist()
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
        found = self._kernel.left() if self._kernel else []
        for one in found:
            if one.number is not None:
                self._peers[one.number] = _Known(one.public_key, (), one.timestamp)
                self._userspace.add_peer(one.number, one.public_key)
                if one.endpoint is not None:
                    self._userspace.set_endpoint(one.number, one.endpoint)
        return found

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
            found.append(event)
        return found

    def network_changed(self) -> None:
        for path in self._both():
            path.network_changed()

    def close(self) -> None:
        self._end_building()
        for path in self._both():
            path.close()

    def remove(self) -> None:
        self._end_building()
        for path in self._both():
            path.remove()

    def _end_building(self) -> None:
        if self._building is not None:
            with contextlib.suppress(DatapathError, OSError):
                self._building.result().discard()
            self._building = None
        self._builder.shutdown()


def _without_numbers(reason: str) -> str:
    """Each try has devices of its own: their numbers are no news."""
    return re.sub(r"\d+", "", reason)


def _now() -> float:
    return time.monotonic()
