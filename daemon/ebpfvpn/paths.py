"""Paths: the kernel path in front, the userspace path behind it, as one Datapath.

The userspace path is always there: it reads the TUN device and the sockets, and does what no
program of the kernel path does. While the kernel path works, new sessions are its own, and next to
nothing comes here. When it breaks and cannot be repaired, it gives its receiving halves away, and
new sessions are made in userspace; once it can be built again, new sessions are made there, while
the old ones are opened here until they are over.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from ebpfvpn import wire
from ebpfvpn.datapath import Confirmed, Event, Left, Roamed, SessionState, Traffic, added
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import generation, leftovers
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.keypair import Keypair
from ebpfvpn.netlink import Netlink
from ebpfvpn.path_changes import Known, PathChanges
from ebpfvpn.peer import NO_TRAFFIC
from ebpfvpn.userspace.datapath import UserspaceDatapath
from ebpfvpn.userspace.state import PeerState

Network = IPv4Network | IPv6Network
Message = tuple[bytes, Endpoint]

_DATA = wire.Data.TYPE


class Paths(PathChanges):
    """See Datapath."""

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
                self._drops["unknown_index"] += 1
        return found

    def send(self, peer: int, packets: Sequence[bytes]) -> None:
        (self._userspace if self._seals_here(peer) else self._front()).send(peer, packets)

    def _seals_here(self, peer: int) -> bool:
        here = peer in self._in_userspace and self._userspace.seals(peer)
        return self._kernel is None or here

    def describe(self) -> dict[str, object]:
        return self._front().describe() | {"reason": self._reason}

    # What the daemon says.

    def left(self) -> list[Left]:
        here = {peer.number: self._userspace.restore(peer) for peer in self._state}
        numbers = {one.public_key: number for number, one in here.items()}
        found = []
        for one in self._kernel.left() if self._kernel else []:
            if one.number is None and one.public_key in numbers:
                number = numbers[one.public_key]
                here[number] = _renewed(here[number], one)
            elif one.number is None:
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
                self._peers[one.number] = Known(one.public_key, timestamp=one.timestamp)
        if self._kernel is not None and self._userspace.sessions():
            self._now_in_front()
        return found

    def _add_in_front(self, kernel: KernelDatapath, number: int, known: Left) -> None:
        kernel.add_peer(number, known.public_key)
        kernel.set_timestamp(number, known.timestamp)
        if known.endpoint is not None:
            kernel.set_endpoint(number, known.endpoint)

    def state(self) -> list[PeerState] | None:
        """What the process that follows goes on with; None where nothing of it is here."""
        counted = self._gone.traffic or set(self._userspace.traffic().values()) - {NO_TRAFFIC}
        if self._kernel is not None and not (self._userspace.sessions() or counted):
            return None
        timestamps = {number: peer.timestamp for number, peer in self._peers.items()}
        return [self._gone.with_traffic(one) for one in self._userspace.state(timestamps)]

    def remove_older(self) -> None:
        if self._kernel:
            self._kernel.remove_older()

    def add_peer(self, peer: int, public_key: bytes) -> None:
        self._peers[peer] = Known(public_key)
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

    def set_flow_ports(self, peer: int, count: int) -> None:
        self._peers[peer].flow_ports = count
        for path in self._both():
            path.set_flow_ports(peer, count)

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
        for figures in (self._userspace.traffic(), self._gone.traffic):
            for number, traffic in figures.items():
                if number in self._peers:
                    found[number] = added(found[number], traffic) if number in found else traffic
        return found

    def sessions(self) -> list[SessionState]:
        return [state for path in self._both() for state in path.sessions()]

    def drops(self) -> dict[str, int]:
        total = Counter({"socket_refused": 0})
        total.update(self._gone.drops)
        total.update(self._drops)
        for path in self._both():
            total.update(path.drops())
        return dict(total)

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

    def stop_building(self) -> Future[None]:
        """What there is stays as it is; done when no thread is at work."""
        return self._builder.stop()

    def close(self) -> None:
        self._builder.close()
        for path in self._both():
            path.close()
        self._poll.close()

    def remove(self) -> None:
        self._builder.close()
        for path in self._both():
            path.remove()
        self._poll.close()
        name = self._tun.name
        if generation.directories(name):  # of a kernel path that could not be taken away
            netlink = Netlink()
            try:
                leftovers.remove(netlink, name)
            finally:
                netlink.close()


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


def _renewed(here: Left, older: Left) -> Left:
    """Of a peer that the kernel path in front does not have yet, but an older one did."""
    return replace(
        here,
        endpoint=here.endpoint or older.endpoint,
        timestamp=max(here.timestamp, older.timestamp),
        renew=older.renew,
    )


def _receiver(data: bytes) -> int:
    """Of a data message; 0, which is no index, if it is too short for one."""
    whole = len(data) >= wire.Data.LAYOUT.size + wire.TAG_LENGTH
    return wire.Data.LAYOUT.unpack_from(data)[1] if whole else 0
