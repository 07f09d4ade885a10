"""A tunnel's programs and maps, loaded as the daemon loads them but attached to nothing: packets
go in and come out by BPF_PROG_TEST_RUN."""

from __future__ import annotations

import contextlib
import functools
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network
from pathlib import Path

from ebpfvpn.datapath import REPLAY_WINDOW
from ebpfvpn.kernel import bpffs, layout, objects
from ebpfvpn.kernel.btf import field_names
from ebpfvpn.kernel.layout import number, octets
from ebpfvpn.kernel.libbpf import possible_cpus
from ebpfvpn.kernel.map import RingBuffer
from ebpfvpn.kernel.program import Result
from ebpfvpn.wire import REJECT_AFTER_MESSAGES
from rows import packets

BUILD = Path(__file__).resolve().parents[2] / "build"

LOOPBACK = 1
"""The device that test runs come by, unless told."""
TUN = 7001
OUTER = 7002
INNER = 7003
UNDERLAY = 7004
MTU = 1420

MARK = bytes.fromhex("02c0ffee1234")
PORT = 51820
PEERS = 16
PEER = 5
OTHER_PEER = 6
LOCAL_INDEX = 0x11223344
REMOTE_INDEX = 0x55667788
SEND_KEY = bytes(range(32))
RECEIVE_KEY = bytes(range(32, 64))

OUR_ADDRESS = {4: "192.0.2.1", 6: "2001:db8::1"}
PEER_ADDRESS = {4: "192.0.2.2", 6: "2001:db8::2"}
PEER_PORT = 40000
INNER_HERE = {4: "10.1.0.1", 6: "fd01::1"}
INNER_THERE = {4: "10.5.0.9", 6: "fd05::9"}
ALLOWED = ("10.5.0.0/16", "fd05::/32")
HEAVY_FOR = 100_000_000
"""Nanoseconds."""
NEVER = 2**63
"""A time."""
GATEWAY = {4: "192.0.2.254", 6: "2001:db8::fe"}

_SK_BUFF_SIZE = 192
_SK_BUFF_MARK = 8
_SK_BUFF_IFINDEX = 40
_SK_BUFF_GSO_SEGMENTS = 164
_SK_BUFF_GSO_SIZE = 176


class Verdict(Enum):
    """What became of a packet, whichever hook it came by."""

    GO = "goes on, changed"
    PASS = "passes unchanged"
    DROP = "is dropped"


_RETVALS = {
    "open_xdp": {Verdict.GO: 2, Verdict.PASS: 2, Verdict.DROP: 1},
    "seal_xdp": {Verdict.GO: 4, Verdict.PASS: 2, Verdict.DROP: 1},
    "dispatch": {Verdict.GO: 2, Verdict.PASS: 2, Verdict.DROP: 1},
}
_TC_RETVALS = {Verdict.GO: 7, Verdict.PASS: 0xFFFFFFFF, Verdict.DROP: 2}


def retval(program: str, verdict: Verdict) -> int:
    """XDP_*, or TC_ACT_* without sign, that the program says it with."""
    return _RETVALS.get(program, _TC_RETVALS)[verdict]


def sk_buff(
    *, ifindex: int = LOOPBACK, gso_size: int = 0, gso_segments: int = 0, mark: int = 0
) -> bytes:
    """A context for tc programs."""
    ctx = bytearray(_SK_BUFF_SIZE)
    struct.pack_into("=I", ctx, _SK_BUFF_MARK, mark)
    struct.pack_into("=I", ctx, _SK_BUFF_IFINDEX, ifindex)
    struct.pack_into("=I", ctx, _SK_BUFF_GSO_SIZE, gso_size)
    struct.pack_into("=I", ctx, _SK_BUFF_GSO_SEGMENTS, gso_segments)
    return bytes(ctx)


def now() -> int:
    """Nanoseconds of CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def marked(
    to: int,
    packet: bytes,
    *,
    keepalive: bool = False,
    mark: bytes = MARK,
    ethertype: int | None = None,
) -> bytes:
    """A frame between our own programs (docs/architecture.md)."""
    source = struct.pack("=IBx", to, keepalive)
    return packets.ethernet(packet, destination=mark, source=source, ethertype=ethertype)


def outer(
    message: bytes,
    version: int = 4,
    *,
    tos: int = 0,
    source: str | None = None,
    source_port: int = PEER_PORT,
    port: int = PORT,
) -> bytes:
    """The IP packet in which the peer's message arrives."""
    remote, local = source or PEER_ADDRESS[version], OUR_ADDRESS[version]
    return packets.ip(
        remote, local, packets.udp(remote, source_port, local, port, message), tos=tos
    )


def message(counter: int, text: bytes, *, key: bytes = RECEIVE_KEY) -> bytes:
    """As the peer sends it under the session that `Tunnel.set_up` makes."""
    return packets.data_message(key, LOCAL_INDEX, counter, text)


def ring(received: int, words: int) -> bytes:
    """The window (ebpf/replay.h) for `Tunnel.install`."""
    turn, at = divmod((received - 1) // 32, words)
    found = [(max(turn - (i > at), 0) & 0xFFFFFFFF) << 32 for i in range(words)]
    if received:
        found[at] |= 1 << (received - 1) % 32
    return struct.pack(f"={words}Q", *found)


@functools.cache
def drop_reasons() -> list[str]:
    return field_names(objects.TC_OBJECT, "drops")


@dataclass(slots=True)
class Tunnel:
    """The programs share the maps, and so do all tests: each starts with `set_up`."""

    loaded: objects.Object
    events_ring: RingBuffer

    def run(self, program: str, packet: bytes, ctx: bytes | None = None) -> Result:
        return self.loaded.programs[program].test_run(packet, ctx)

    def set_up(self) -> None:
        """One peer that may send ALLOWED, with a session and an IPv4 endpoint but no route. What we
        send it goes by the segmenter."""
        for name in ("sessions", "keys", "windows", "endpoints", "routes", "peers"):
            self._clear(name)
        for name in ("allowed_ips4", "allowed_ips6"):
            self._clear(name)
        self.loaded.maps["drops"].update(
            number(0), bytes(len(drop_reasons()) * 8 * possible_cpus())
        )
        self.events()
        self.configure()
        self.add_peer(PEER, *ALLOWED)
        self.install(LOCAL_INDEX)
        self.set_endpoint(4)

    def _clear(self, name: str) -> None:
        for key in [*self.loaded.maps[name].keys()]:
            self.loaded.maps[name].delete(key)

    def configure(
        self, *, mark: bytes = MARK, outer_ifindex: int = OUTER, inner_ifindex: int = INNER,
        fwmark: int = 0, seals_in_threads: int = 0,
    ) -> None:  # fmt: skip
        config = layout.Config(
            mark=octets(mark),
            listen_port=PORT,
            tun_ifindex=TUN,
            outer_ifindex=outer_ifindex,
            inner_ifindex=inner_ifindex,
            mtu=MTU,
            fwmark=fwmark,
            seals_in_threads=seals_in_threads,
        )
        self.loaded.maps["config"].update(number(0), bytes(config))

    def add_peer(self, peer: int, *networks: str) -> None:
        entry = layout.Peer(usable=1, heavy_until=NEVER)
        self.loaded.maps["peers"].update(number(peer), bytes(entry))
        for text in networks:
            network = ip_network(text)
            name = "allowed_ips4" if network.version == 4 else "allowed_ips6"
            key = number(network.prefixlen) + network.network_address.packed
            self.loaded.maps[name].update(key, number(peer))

    def install(
        self,
        local_index: int,
        peer: int = PEER,
        *,
        current: bool = True,
        lifetime: float = 180,
        send_counter: int = 0,
        send_limit: int = REJECT_AFTER_MESSAGES,
        received: int = 0,
        remote_index: int = REMOTE_INDEX,
        send_key: bytes = SEND_KEY,
        receive_key: bytes = RECEIVE_KEY,
    ) -> None:
        """`received`: the highest authenticated counter plus one, with the window that a session
        has got there in which no more than that last counter was received."""
        session = layout.Session(
            peer=peer,
            remote_index=remote_index,
            expires=now() + int(lifetime * 1e9),
            send_counter=send_counter,
            send_limit=send_limit,
            receive_highest=received,
        )
        key = number(local_index)
        windows = self.loaded.maps["windows"]
        windows.update(key, ring(received, windows.value_size // 8))
        self.loaded.maps["keys"].update(key, send_key + receive_key)
        self.loaded.maps["sessions"].update(key, bytes(session))
        if current:
            self.change_peer(peer, current=local_index, expires=session.expires)

    def set_endpoint(
        self, version: int, *, peer: int = PEER, port: int = PEER_PORT, ifindex: int = LOOPBACK
    ) -> None:
        entry = layout.Endpoint(
            ifindex=ifindex,
            remote=octets(layout.pack_address(ip_address(PEER_ADDRESS[version]))),
            local=octets(layout.pack_address(ip_address(OUR_ADDRESS[version]))),
            remote_port=port,
        )
        self.loaded.maps["endpoints"].update(number(peer), bytes(entry))

    def set_route(
        self,
        version: int,
        *,
        flags: int = layout.ROUTE_NEIGHBOUR | layout.ROUTE_XDP,
        mtu: int = 9001,
    ) -> None:
        """The way to PEER_ADDRESS, with MAC addresses HERE and THERE."""
        remote, local, gateway = (
            octets(layout.pack_address(ip_address(table[version])))
            for table in (PEER_ADDRESS, OUR_ADDRESS, GATEWAY)
        )
        route = layout.Route(
            ifindex=UNDERLAY,
            mtu=mtu,
            flags=flags,
            source_mac=octets(packets.HERE),
            destination_mac=octets(packets.THERE),
            gateway=gateway,
        )
        key = bytes(layout.RouteKey(remote, local))
        self.loaded.maps["routes"].update(key, bytes(route))

    def change_peer(self, peer: int = PEER, **fields: int) -> None:
        entry = self.peer(peer)
        for name, value in fields.items():
            assert hasattr(entry, name)
            setattr(entry, name, value)
        self.loaded.maps["peers"].update(number(peer), bytes(entry))

    def change_session(self, local_index: int = LOCAL_INDEX, **fields: int) -> None:
        entry = self.session(local_index)
        for name, value in fields.items():
            assert hasattr(entry, name)
            setattr(entry, name, value)
        self.loaded.maps["sessions"].update(number(local_index), bytes(entry))

    def peer(self, peer: int = PEER) -> layout.Peer:
        return layout.Peer.from_buffer_copy(self._entry("peers", peer))

    def session(self, local_index: int = LOCAL_INDEX) -> layout.Session:
        return layout.Session.from_buffer_copy(self._entry("sessions", local_index))

    def endpoint(self, peer: int = PEER) -> tuple[str, int, str, int]:
        """Remote address and port, local address, ifindex."""
        entry = layout.Endpoint.from_buffer_copy(self._entry("endpoints", peer))
        remote, local = (
            layout.unpack_address(bytes(field)) for field in (entry.remote, entry.local)
        )
        return str(remote), entry.remote_port, str(local), entry.ifindex

    def _entry(self, name: str, key: int) -> bytes:
        entry = self.loaded.maps[name].lookup(number(key))
        assert entry is not None
        return entry

    def events(self) -> list[tuple[int, int, int]]:
        """Type, peer and local index of each since the last call."""
        found = [layout.Event.from_buffer_copy(raw) for raw in self.events_ring.consume()]
        return [(event.type, event.peer, event.local_index) for event in found]

    def counted(self) -> dict[str, int]:
        """The counters of struct drops that are not zero, over all CPUs."""
        raw = self._entry("drops", 0)
        reasons = drop_reasons()
        totals = [0] * len(reasons)
        for i, (value,) in enumerate(struct.iter_unpack("=Q", raw)):
            totals[i % len(reasons)] += value
        return {reason: total for reason, total in zip(reasons, totals, strict=True) if total}


@contextlib.contextmanager
def pins() -> Iterator[Path]:
    """A directory on bpffs, removed at the end with what is in it."""
    bpffs.mount()
    directory = bpffs.BPFFS / f"ebpfvpn-rows-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        bpffs.remove(directory)


@contextlib.contextmanager
def tunnel(replay_window: int = REPLAY_WINDOW, cpus: Sequence[int] = ()) -> Iterator[Tunnel]:
    """A tunnel's programs, and `dispatch` with its maps. `cpus`: as told to the programs."""
    with pins() as directory:
        loaded = objects.load_tunnel(
            directory, peers=4, xdp=True, replay_window=replay_window, cpus=cpus
        )
        dispatcher = objects.load(objects.BPF / "dispatch.bpf.o", pin_root=directory)
        sizes = {name: map_.max_entries for name, map_ in loaded.maps.items()}
        here = objects.load(
            BUILD / "seal_here.bpf.o", pin_root=directory, sizes=sizes, replay_window=replay_window
        )
        loaded.programs |= dispatcher.programs | here.programs
        loaded.maps |= {name: dispatcher.maps[name] for name in ("dispatch_config", "ports")}
        ring = RingBuffer(loaded.maps["events"])
        try:
            yield Tunnel(loaded, ring)
        finally:
            ring.close()
            loaded.close()
            dispatcher.close()
            here.close()
