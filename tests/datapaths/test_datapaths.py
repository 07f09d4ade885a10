"""What every Datapath does: one suite for the kernel path and the userspace path."""

from __future__ import annotations

import secrets
import socket
from ipaddress import ip_address

import pytest

from datapaths.datapath_ends import ALL_PATHS, PATHS, USERSPACE, End, boot_time, two_ends
from ebpfvpn.datapath import Confirmed, Roamed
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair, Session
from kernel.nodes import OUTER, OUTER6, PEER, PORT, wait_for

path_is = pytest.mark.parametrize("path", PATHS)


def drops(end: End) -> dict[str, int]:
    """What is really dropped."""
    found = end.datapath.drops()
    return {reason: count for reason, count in found.items() if count and "pass" not in reason}


@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["over4", "over6"])
@pytest.mark.parametrize("path", ALL_PATHS)
def test_ping(path: str, outer: tuple[str, str]) -> None:
    with two_ends(path, outer=outer) as (one, other):
        one.ping("10.66.0.2")
        one.ping("fd66::2")
        other.ping("10.66.0.1", size=1300)
        sent, received = one.datapath.traffic()[PEER], other.datapath.traffic()[PEER]
        assert sent.tx_packets == received.rx_packets == 15
        assert sent.tx_bytes == received.rx_bytes
        assert drops(one) == drops(other) == {}


@pytest.mark.parametrize("paths", [("auto", USERSPACE), (USERSPACE, "auto")])
def test_each_with_the_other(paths: tuple[str, str]) -> None:
    with two_ends(*paths) as (one, other):
        one.ping("10.66.0.2", size=1392)
        other.ping("fd66::1")
        assert drops(one) == drops(other) == {}


@path_is
def test_send_in_order_and_keepalive(path: str) -> None:
    with two_ends(path) as (one, other):
        one.datapath.send(PEER, [b""])
        wait_for(lambda: other.datapath.traffic()[PEER].rx_packets == 1)
        told = other.datapath.traffic()[PEER]
        assert told.last_received > 0.0
        assert told.last_data_received == 0.0
        assert told.rx_bytes == 32
        assert told.unacknowledged_since == 0.0
        with other.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("10.66.0.2", 9))
            sock.settimeout(5)
            one.datapath.send(PEER, [udp_packet(i) for i in range(5)])
            assert [sock.recv(100) for _ in range(5)] == [i.to_bytes(8, "big") for i in range(5)]
        assert drops(one) == {}
        assert one.datapath.sessions()[0].send_counter == 6


def udp_packet(number: int) -> bytes:
    """Inner IPv4 from one to other, port 9, 8 bytes of payload; no UDP checksum."""
    header = bytearray.fromhex("45000024000000004011000000000000000000000009000900100000")
    header[12:20] = ip_address("10.66.0.1").packed + ip_address("10.66.0.2").packed
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, 20, 2))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = (~total & 0xFFFF).to_bytes(2, "big")
    return bytes(header) + number.to_bytes(8, "big")


@path_is
def test_roaming_tells_and_sticks(path: str) -> None:
    with two_ends(path) as (one, other):
        other.ns.run("ip", "address", "add", "192.0.2.102/24", "dev", "under0")
        one.ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address("192.0.2.102"), PORT))
        one.ping("10.66.0.2")
        other.event(Roamed(PEER))
        known = other.datapath.endpoint(PEER)
        assert known == Endpoint(
            ip_address("192.0.2.1"), PORT, ip_address("192.0.2.102"), other.ns.ifindex("under0")
        )
        # An address that is taken away is not stuck to.
        other.ns.run("ip", "address", "del", "192.0.2.102/24", "dev", "under0")
        other.ns.call(other.datapath.network_changed)
        if path != USERSPACE:  # there the kernel is asked with each message
            known = other.datapath.endpoint(PEER)
            assert known is not None
            assert known.local is None
        other.datapath.send(PEER, [b""])
        one.event(Roamed(PEER))
        one.ping("10.66.0.2")


@path_is
def test_confirmation_by_first_packet(path: str) -> None:
    with two_ends(path) as (one, other):
        keys = secrets.token_bytes(32), secrets.token_bytes(32)
        now = boot_time()
        responder = Keypair(Session(500, 501, False, now), keys[0], keys[1])
        other.datapath.install(PEER, responder, confirmed=False)
        one.ping("10.66.0.2")  # still the old session
        other.event(Roamed(PEER))
        counters = {s.session.local_index: s.send_counter for s in other.datapath.sessions()}
        assert counters[500] == 0
        initiator = Keypair(Session(501, 500, True, now), keys[1], keys[0])
        one.datapath.install(PEER, initiator, confirmed=True)
        one.ping("10.66.0.2")
        other.event(Confirmed(PEER, 500))
        counters = {s.session.local_index: s.send_counter for s in other.datapath.sessions()}
        assert counters[500] == 5


@path_is
def test_a_confirmed_session_puts_an_unconfirmed_one_out_of_the_way(path: str) -> None:
    """As in Linux: it opens what still comes, but its first packet makes it no sealer."""
    with two_ends(path) as (one, other):
        keys = secrets.token_bytes(32), secrets.token_bytes(32)
        now = boot_time()
        one.datapath.install(PEER, Keypair(Session(500, 501, False, now), *keys), confirmed=False)
        other.datapath.install(
            PEER, Keypair(Session(501, 500, True, now), *keys[::-1]), confirmed=True
        )
        one.datapath.install(PEER, Keypair(Session(600, 601, True, now), *keys), confirmed=True)
        other.datapath.send(PEER, [b""])
        wait_for(lambda: one.datapath.traffic()[PEER].rx_packets == 1)
        assert Confirmed(PEER, 500) not in one.ns.call(one.datapath.events)
        one.datapath.send(PEER, [b""])

        def counters() -> dict[int, int]:
            return {s.session.local_index: s.send_counter for s in one.datapath.sessions()}

        wait_for(lambda: counters()[600] == 1)
        assert counters()[500] == 0


@path_is
def test_retired_session_is_forgotten(path: str) -> None:
    with two_ends(path) as (one, other):
        one.ping("10.66.0.2")
        (state,) = one.datapath.sessions()
        assert state.peer == PEER
        one.datapath.retire(state.session.local_index)
        one.datapath.retire(state.session.local_index)
        one.datapath.retire(12345)
        assert one.datapath.sessions() == []
        before = other.datapath.traffic()[PEER].rx_packets
        one.ping_in_vain("10.66.0.2")
        packet = one.left()
        assert packet is not None
        assert packet[16:20] == ip_address("10.66.0.2").packed
        assert other.datapath.traffic()[PEER].rx_packets == before


@path_is
def test_not_usable_goes_to_the_daemon(path: str) -> None:
    with two_ends(path) as (one, _):
        one.datapath.set_usable(PEER, False)
        while one.left():
            pass
        one.ping_in_vain("10.66.0.2")
        packet = one.left()
        assert packet is not None
        assert packet[16:20] == ip_address("10.66.0.2").packed
        one.datapath.set_usable(PEER, True)
        one.ping("10.66.0.2")


@path_is
def test_remove_peer_leaves_nothing_of_it(path: str) -> None:
    with two_ends(path) as (one, _):
        one.ping("10.66.0.2")
        one.datapath.remove_peer(PEER)
        assert one.datapath.traffic() == {}
        assert one.datapath.sessions() == []
        while one.left():
            pass
        one.ping_in_vain("10.66.0.2")
        assert one.left() is not None


@path_is
def test_limits_of_the_path_are_told(path: str) -> None:
    with two_ends(path) as (one, _):

        def max_inner() -> int:
            one.ns.call(one.datapath.network_changed)
            return one.datapath.max_inner(PEER)

        assert max_inner() == 0  # 1420 fits
        one.ns.run("ip", "link", "set", "under0", "mtu", "1400")
        longest = max_inner()
        assert longest == (1400 - 60) // 16 * 16
        while one.left():
            pass
        one.ping("10.66.0.2", size=longest - 28, whole=True)
        assert one.left() is None
        one.ns.run("ping", "-c", "1", "-W", "0.1", "-M", "do", "-s", str(longest - 27),
                   "10.66.0.2", check=False)  # fmt: skip
        packet = one.left()
        assert packet is not None
        assert len(packet) == longest + 1
