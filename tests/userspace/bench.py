"""A UserspaceDatapath with one peer and one session, as the rows of the kernel path have it, but
for the I/O, which is in memory, and the clock, which stands still."""

from __future__ import annotations

import contextlib
import select
import socket
import weakref
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import cast

from ebpfvpn import clock
from ebpfvpn.datapath import REPLAY_WINDOW, Event, Receiving, Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair
from ebpfvpn.keypair import Session as Known
from ebpfvpn.userspace.datapath import UserspaceDatapath
from ebpfvpn.userspace.open import Message
from ebpfvpn.userspace.peer import Peer
from ebpfvpn.userspace.session import Session
from ebpfvpn.wire import REKEY_AFTER_MESSAGES
from rows import packets
from userspace.fakes import PLAIN, FakePathMtu, FakeTun, FakeUdp

MTU = 1420
PORT = 51820
PEER, OTHER_PEER = 5, 6
LOCAL_INDEX, REMOTE_INDEX = 0x11223344, 0x55667788
SEND_KEY, RECEIVE_KEY = bytes(range(32)), bytes(range(32, 64))
INNER_HERE = {4: "10.1.0.1", 6: "fd01::1"}
INNER_THERE = {4: "10.5.0.9", 6: "fd05::9"}
ALLOWED = ("10.5.0.0/16", "fd05::/32")
DATA = bytes(range(1, 102))
REMOTE = {
    4: Endpoint(ip_address("192.0.2.2"), 40000, ip_address("192.0.2.1"), 3),
    6: Endpoint(ip_address("2001:db8::2"), 40000, ip_address("2001:db8::1"), 3),
}
SOCKET = cast(socket.socket, None)


def message(
    counter: int, text: bytes, *, key: bytes = RECEIVE_KEY, index: int = LOCAL_INDEX
) -> bytes:
    """As the peer sends it."""
    return packets.data_message(key, index, counter, text)


def inner(source: str, destination: str, data: bytes = DATA, *, tos: int = 0) -> bytes:
    text = packets.udp(source, 1234, destination, 5678, data)
    return packets.ip(source, destination, text, tos=tos)


class Bench:
    def __init__(
        self, *, replay_window: int = REPLAY_WINDOW, mtu: int = MTU,
        rekey_after_messages: int = REKEY_AFTER_MESSAGES, families: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.now = 1000.0
        self.tun, self.udp, self.ways = FakeTun(), FakeUdp(*families), FakePathMtu()
        self.datapath = UserspaceDatapath(
            tun=self.tun, udp=self.udp, path_mtu=self.ways, mtu=mtu,
            rekey_after_messages=rekey_after_messages, replay_window=replay_window,
        )  # fmt: skip
        weakref.finalize(self, self.datapath.close)
        self.datapath.add_peer(PEER, bytes(32))
        self.allow(PEER, *ALLOWED)
        self.datapath.set_endpoint(PEER, REMOTE[4])
        self.install()
        self.datapath.set_usable(PEER, True)

    def allow(self, peer: int, *networks: str) -> None:
        self.datapath.set_allowed_ips(peer, map(ip_network, networks))

    def add_other(self, *networks: str) -> None:
        """Without a session."""
        self.datapath.add_peer(OTHER_PEER, bytes([1] * 32))
        self.allow(OTHER_PEER, *networks)
        self.datapath.set_endpoint(OTHER_PEER, REMOTE[6])
        self.datapath.set_usable(OTHER_PEER, True)

    def install(
        self, local_index: int = LOCAL_INDEX, peer: int = PEER, *, confirmed: bool = True
    ) -> None:
        known = Known(local_index, REMOTE_INDEX, confirmed, self.now)
        self.datapath.install(peer, Keypair(known, SEND_KEY, RECEIVE_KEY), confirmed=confirmed)

    def install_receiving(self, highest: int, base: int, seen: int) -> None:
        known = Known(LOCAL_INDEX + 9, REMOTE_INDEX, True, self.now)
        half = Receiving(PEER, known, RECEIVE_KEY, highest, base, seen)
        self.datapath.install_receiving(half)

    @property
    def session(self) -> Session:
        return self.datapath._sessions[LOCAL_INDEX]

    @property
    def peer(self) -> Peer:
        return self.datapath._peers[PEER]

    @contextlib.contextmanager
    def clock(self) -> Iterator[None]:
        """The datapath's is this one's within."""
        real, clock.now = clock.now, lambda: self.now
        try:
            yield
        finally:
            clock.now = real

    def arrive(
        self, *messages: bytes, joined: int = 0, source: Endpoint = REMOTE[4], tos: int = 0
    ) -> list[Message]:
        """Each by itself, or `joined`: as one, in which each but the last has that length. Returns
        what is not for a session."""
        datagrams = [b"".join(messages)] if joined else messages
        self.udp.arrivals.extend((datagram, joined, source, tos) for datagram in datagrams)
        with self.clock():
            return self.datapath.messages(SOCKET)

    def leave(self, *packets: bytes, header: bytes = PLAIN) -> list[bytes]:
        """The stack sends; returns what the datapath does not."""
        self.tun.leaves(*packets, header=header)
        with self.clock():
            return list(self.datapath.packets())

    def send(self, *packets: bytes, peer: int = PEER) -> None:
        with self.clock():
            self.datapath.send(peer, packets)

    def texts(self, *, key: bytes = SEND_KEY) -> list[tuple[int, int, bytes]]:
        """Receiver, counter and padded packet of each message sent since the last call."""
        return [packets.open_data_message(key, one) for one in self.udp.messages()]

    def counted(self) -> dict[str, int]:
        """The drops that are not zero."""
        return {reason: count for reason, count in self.datapath.drops().items() if count}

    def traffic(self, peer: int = PEER) -> Traffic:
        return self.datapath.traffic()[peer]

    def events(self) -> list[Event]:
        """Those that its descriptor tells of."""
        ready = bool(select.select([self.datapath.events_fd()], [], [], 0)[0])
        found = self.datapath.events()
        assert ready == bool(found)
        assert not select.select([self.datapath.events_fd()], [], [], 0)[0]
        return found

    def arriving(self, version: int = 4, *, tos: int = 0, data: bytes = DATA) -> bytes:
        return inner(INNER_THERE[version], INNER_HERE[version], data, tos=tos)

    def leaving(self, version: int = 4, *, tos: int = 0, data: bytes = DATA) -> bytes:
        return inner(INNER_HERE[version], INNER_THERE[version], data, tos=tos)
