"""Which of two paths is in front, and how one follows the other: down to userspace when the kernel
path breaks, and up again when it can be built."""

from __future__ import annotations

import logging
import re
import select
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network

from ebpfvpn import failures, tai64n
from ebpfvpn.datapath import Event, PathChanged, Roamed
from ebpfvpn.failures import logged
from ebpfvpn.gone import Gone
from ebpfvpn.kernel.builder import Builder
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.tun import Tun
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.datapath import UserspaceDatapath
from ebpfvpn.userspace.state import PeerState

Network = IPv4Network | IPv6Network

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Known:
    """Of a peer: what a new kernel path is told."""

    public_key: bytes
    networks: Sequence[Network] = ()
    flow_ports: int = 1
    timestamp: bytes = tai64n.NEVER


class PathChanges:
    """What Paths is made of."""

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
        self._peers: dict[int, Known] = {}
        self._in_userspace: set[int] = set()
        """Peers that are sealed for there, although there is a kernel path."""
        self._stamped: set[int] = set()
        """Peers whose timestamps the next kernel path may not have been told."""
        self._filtered: set[socket.socket] = set()
        self._joined = {sock for sock in udp.sockets if udp.joins(sock)}
        self._events: list[Event] = []
        self._gone = Gone()
        self._drops: Counter[str] = Counter()
        """Messages that are of neither path."""
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

    def check(self) -> list[str]:
        """See KernelDatapath.check, but never fails: goes down to userspace, or up again, and tells
        of that by PathChanged."""
        if self._kernel is not None:
            try:
                done = self._kernel.check()
                self.filter_sockets()
            except Exception as error:  # whatever it is, the tunnel stays up
                self._fall(self._kernel, failures.reason(error))
                return []
            return done
        try:
            kernel = self._builder.poll(self._add_peers)
            if kernel is not None:
                self._go_up(kernel)
        except Exception as error:
            why = failures.reason(error)
            if _without_numbers(why) != _without_numbers(self._reason):
                log.warning("still in userspace: %s", why)
            self._reason = why
        return []

    def _add_peers(self, kernel: KernelDatapath) -> None:
        """In the builder's thread: peers are neither added nor removed there."""
        for number, known in list(self._peers.items()):
            kernel.add_peer(number, known.public_key)
            kernel.set_allowed_ips(number, known.networks)
            kernel.set_flow_ports(number, known.flow_ports)
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
        """Whatever fails: userspace goes on."""
        for sock in self._udp.sockets:
            self._udp.accept_all(sock)
        self._filtered.clear()
        self._userspace.alone(True)
        self._joined = set(self._udp.sockets)
        with logged("not all sessions go on"):
            for half in kernel.release():
                self._userspace.install_receiving(half)
        with logged("what is too long for its way is lost"):
            self._events += kernel.unread()
        with logged("peers may be elsewhere by now"):
            self._follow(kernel)
        self._gone.add(kernel)
        self._take_back(kernel)
        self._builder.discard(kernel)
        # What is left of it goes with this process.
        self._tun.persist(False)

    def _follow(self, kernel: KernelDatapath) -> None:
        """Peers that roamed, whether that was told or not."""
        for number in self._peers:
            endpoint = kernel.endpoint(number)
            if endpoint is not None and endpoint != self._userspace.endpoint(number):
                self._userspace.set_endpoint(number, endpoint)
                self._events.append(Roamed(number))

    def _take_back(self, kernel: KernelDatapath) -> None:
        self._kernel = None
        with logged("cannot stop listening to the kernel path"):
            self._poll.unregister(kernel.events_fd())
        self._in_userspace.clear()

    def _go_up(self, kernel: KernelDatapath) -> None:
        """Or stays where it is: what the kernel path raises."""
        try:
            self._catch_up(kernel)
        except BaseException:
            self._builder.broke()
            self._builder.discard(kernel)
            raise
        log.warning("the kernel path works again: new sessions are made there")
        self.counters["path_up"] += 1
        self._reason = "possible again"
        self._stamped.clear()
        self._userspace.alone(False)
        self._take_front(kernel)
        self._tun.persist()
        self._now_in_front()

    def _catch_up(self, kernel: KernelDatapath) -> None:
        """With what happened since `_add_peers`."""
        for number in self._stamped:
            kernel.set_timestamp(number, self._peers[number].timestamp)
        for number in self._peers:
            endpoint = self._userspace.endpoint(number)
            if endpoint is not None and endpoint != kernel.endpoint(number):
                kernel.set_endpoint(number, endpoint)
        kernel.network_changed()

    def _now_in_front(self) -> None:
        """New sessions are made there, while those in userspace go on."""
        self._in_userspace = {
            state.peer for state in self._userspace.sessions() if self._userspace.seals(state.peer)
        }
        self._events.append(PathChanged(sealing_lost=False))

    def filter_sockets(self) -> None:
        """Puts the kernel path's filter on the sockets, once userspace has nothing to open."""
        if self._kernel is not None and not self._userspace.sessions():
            for sock in self._udp.sockets:
                if sock not in self._filtered:
                    self._kernel.accept_only_messages(sock)
                    self._filtered.add(sock)

    def _front(self) -> KernelDatapath | UserspaceDatapath:
        return self._kernel or self._userspace


def _without_numbers(reason: str) -> str:
    """Each try has devices of its own: their numbers are no news."""
    return re.sub(r"\d+", "", reason)
