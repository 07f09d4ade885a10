"""KernelDatapath: two of them carry packets between namespaces; what the maps say then. What it
has in common with the other datapath is in tests/datapaths."""

from __future__ import annotations

import json
import secrets
import select
import socket
import subprocess
import time
from ipaddress import ip_address, ip_network

import pytest

from ebpfvpn.datapath import Confirmed, Event, Roamed
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import layout
from ebpfvpn.kernel.attach import AttachMode
from ebpfvpn.kernel.bpffs import pin_directory
from ebpfvpn.kernel.map import Map
from ebpfvpn.keypair import Keypair, Session
from kernel.nodes import INNER, OUTER, OUTER6, PEER, PORT, Node, node, two_nodes, wait_for
from netns import namespace


def ping(one: Node, target: str, *options: str) -> None:
    """Raises RuntimeError if one of five is lost."""
    one.ns.run("ping", "-c", "5", "-i", "0.02", "-W", "2", *options, target)


def events(of: Node, seconds: float = 5.0) -> list[Event]:
    assert select.select([of.datapath.events_fd()], [], [], seconds)[0]
    return of.ns.call(of.datapath.events)


def pinned(of: Node, name: str) -> Map:
    return Map.pinned(pin_directory(of.name) / name)


def udp_packet(number: int) -> bytes:
    """Inner IPv4 from one to other, port 9, 8 bytes of payload; no UDP checksum."""
    header = bytearray.fromhex("45000024000000004011000000000000000000000009000900100000")
    header[12:20] = ip_address("10.66.0.1").packed + ip_address("10.66.0.2").packed
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(header) + number.to_bytes(8, "big")


def test_roaming_tells_and_sticks() -> None:
    with two_nodes() as (one, other):
        other.ns.run("ip", "address", "add", "192.0.2.102/24", "dev", "under0")
        one.ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address("192.0.2.102"), PORT))
        ping(one, "10.66.0.2")
        assert Roamed(PEER) in events(other)
        known = other.datapath.endpoint(PEER)
        assert known == Endpoint(
            ip_address("192.0.2.1"), PORT, ip_address("192.0.2.102"), other.ns.ifindex("under0")
        )
        # An address that is taken away is not stuck to.
        other.ns.run("ip", "address", "del", "192.0.2.102/24", "dev", "under0")
        other.ns.call(other.datapath.network_changed)
        known = other.datapath.endpoint(PEER)
        assert known is not None
        assert known.local is None
        one.ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address("192.0.2.2"), PORT))
        ping(one, "10.66.0.2")


@pytest.mark.parametrize(("mode", "threads"), [("native", "1"), ("tc", "0")])
def test_seal_in_xdp_runs_in_threads(mode: AttachMode, threads: str) -> None:
    script = "mount -t sysfs sysfs /sys && grep -l 'ebpfvpn .* inner' /sys/class/net/*/ifalias"
    with namespace() as ns, node(ns, mode=mode):
        found = ns.run("unshare", "--mount", "sh", "-c", f"{script} | xargs dirname")
        read = f"mount -t sysfs sysfs /sys && cat {found.strip()}/threaded"
        assert ns.run("unshare", "--mount", "sh", "-c", read).strip() == threads


def test_a_confirmed_session_puts_an_unconfirmed_one_out_of_the_way() -> None:
    """As in Linux: it opens what still comes, but its first packet makes it no sealer."""
    with two_nodes() as (one, other):
        keys = secrets.token_bytes(32), secrets.token_bytes(32)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        one.datapath.install(PEER, Keypair(Session(500, 501, False, now), *keys), confirmed=False)
        other.datapath.install(
            PEER, Keypair(Session(501, 500, True, now), *keys[::-1]), confirmed=True
        )
        one.datapath.install(PEER, Keypair(Session(600, 601, True, now), *keys), confirmed=True)
        other.datapath.send(PEER, [b""])
        wait_for(lambda: one.datapath.traffic()[PEER].rx_packets == 1)
        assert Confirmed(PEER, 500) not in one.ns.call(one.datapath.events)
        peer = layout.Peer.from_buffer_copy(dict(pinned(one, "peers").items())[layout.number(1)])
        assert (peer.current, peer.next) == (600, 0)


def test_retired_session_is_forgotten_with_its_keys() -> None:
    with two_nodes() as (one, other):
        ping(one, "10.66.0.2")
        (state,) = one.datapath.sessions()
        assert state.peer == PEER
        keys = pinned(one, "keys")
        assert len(keys.items()) == 1
        one.datapath.retire(state.session.local_index)
        one.datapath.retire(state.session.local_index)
        one.datapath.retire(12345)
        assert one.datapath.sessions() == []
        wait_for(lambda: keys.items() == [] and pinned(one, "windows").items() == [])
        peer = layout.Peer.from_buffer_copy(dict(pinned(one, "peers").items())[layout.number(1)])
        assert (peer.current, peer.next) == (0, 0)
        before = other.datapath.traffic()[PEER].rx_packets
        one.ns.run("ping", "-c", "1", "-W", "0.2", "10.66.0.2", check=False)
        assert one.datapath.drops()["pass_no_usable_session"] >= 1
        assert other.datapath.traffic()[PEER].rx_packets == before


def test_remove_peer_leaves_nothing_of_it() -> None:
    with two_nodes() as (one, _):
        ping(one, "10.66.0.2")
        one.datapath.remove_peer(PEER)
        assert one.datapath.traffic() == {}
        assert one.datapath.sessions() == []
        assert one.datapath.endpoint(PEER) is None
        for name in ("peers", "sessions", "endpoints", "routes", "allowed_ips4", "allowed_ips6"):
            assert pinned(one, name).items() == [], name
        wait_for(lambda: pinned(one, "keys").items() == [])


def test_allowed_ips_move_between_peers() -> None:
    with namespace() as ns, node(ns) as one:
        datapath = one.datapath
        for peer in (1, 2):
            datapath.add_peer(peer, bytes([peer] * 32))
        wide, narrow = ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")
        v6 = ip_network("fd00::/8")
        datapath.set_allowed_ips(1, [wide, v6])
        datapath.set_allowed_ips(2, [narrow, wide])
        datapath.set_allowed_ips(1, [v6])

        def owners(name: str) -> dict[bytes, int]:
            return {k[:5]: layout.from_number(v) for k, v in pinned(one, name).items()}

        assert owners("allowed_ips4") == {b"\x08\0\0\0\x0a": 2, b"\x10\0\0\0\x0a": 2}
        assert owners("allowed_ips6") == {b"\x08\0\0\0\xfd": 1}
        datapath.set_allowed_ips(2, [])
        assert owners("allowed_ips4") == {}


@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["over4", "over6"])
def test_reinjected_message_is_opened(outer: tuple[str, str]) -> None:
    with two_nodes(mode="native", outer=outer) as (one, other):
        # Without its program on the device, other's messages come by the socket.
        other.ns.run("ip", "link", "set", "under0", "xdp", "off")
        family = socket.AF_INET6 if ":" in outer[1] else socket.AF_INET
        with other.ns.call(socket.socket, family, socket.SOCK_DGRAM) as sock:
            sock.bind(("", PORT))
            sock.settimeout(5)
            one.ns.call(one.datapath.network_changed)
            one.datapath.send(PEER, [udp_packet(1)])
            message, address = sock.recvfrom(65535)
        ifindex = other.ns.ifindex("under0")
        local = ip_address(outer[1].split("/")[0])
        source = Endpoint(ip_address(address[0]), address[1], local, ifindex)
        other.datapath.reinject(message, source, 0)
        wait_for(lambda: other.datapath.traffic()[PEER].rx_packets == 1)
        assert other.datapath.endpoint(PEER) == source
        other.datapath.reinject(message, source, 0)
        wait_for(lambda: other.datapath.drops()["replayed"] == 1)


def test_bpftool_shows_fields_by_name() -> None:
    with two_nodes() as (one, _):
        shown = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", f"{one.datapath.describe()['pins']}/peers"],
            capture_output=True,
            check=True,
        ).stdout
        (entry,) = json.loads(shown)
        assert entry["formatted"]["key"] == PEER
        assert entry["formatted"]["value"]["usable"] == 1
        assert INNER[0] in one.ns.run("ip", "address")
