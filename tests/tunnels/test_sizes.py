"""Underlay MTUs, packets that do not fit, outer fragments."""

from __future__ import annotations

import errno
import socket

import pytest

from both_paths import in_userspace
from echo import ping
from netns import address, namespace
from tunnels.nodes import (
    INNER,
    INNER6,
    OUTER,
    OUTER6,
    PORT,
    Node,
    connect,
    endpoint,
    introduce,
    node,
    pair,
    underlay,
    wait_for,
)
from tunnels.traffic import Numbered, tcp, udp_socket

_IP_MTU_DISCOVER, _PMTUDISC_DO, _PMTUDISC_DONT = 10, 2, 0
_IP_MTU, _IPV6_MTU, _IPV6_MTU_DISCOVER = 14, 24, 23


@pytest.mark.parametrize("mtu", [1500, 9001])
def test_the_mtu_follows_the_underlay(mtu: int) -> None:
    with pair(mtu=mtu) as (one, other):
        longest = mtu - 80
        assert one.show()["mtu"] == longest
        for to, headers in ((INNER[1], 28), (INNER6[1], 48)):
            size = longest - headers
            assert ping(one.ns, to, size=size, whole=True) == 3
            assert ping(one.ns, to, 1, size=size + 1, whole=True) == 0
        for inner in (INNER, INNER6):
            tcp(one.ns, other.ns, inner[1])
            tcp(other.ns, one.ns, inner[0])
        if in_userspace():
            assert one.devices() == {}
        elif mtu == 9001:
            device = one.device()
            assert device["open"] == "tc"
            assert device["seal"] == "tc"
            assert "native XDP refused" in device["reason"]
            assert "MTU" in device["reason"]
        else:
            assert (one.device()["open"], one.device()["seal"]) == ("native", "xdp")
        assert one.failures() == 0
        assert other.failures() == 0


@pytest.mark.parametrize("mode", ["native", "tc"])
@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["outer4", "outer6"])
def test_every_length(mode: str, outer: tuple[str, str]) -> None:
    with pair(outer=outer, AttachMode=mode) as (one, other):
        near = udp_socket(one.ns, INNER[0])
        far = udp_socket(other.ns, INNER[1])
        far.settimeout(5)
        for length in range(1420 - 28 + 1):
            message = bytes([length % 256]) * length
            near.sendto(message, far.getsockname())
            assert far.recv(2000) == message
        near.close()
        far.close()
        assert one.failures() == 0


def narrow(one: Node, other: Node, mode: str, outer: tuple[str, str] = OUTER) -> int:
    """Brings both up with an MTU that the way to the other, of 1280, cannot carry; returns what
    it carries: headers and tag are 60 or 80 bytes, and padding rounds down to 16."""
    introduce(one, other, outer, MTU=1420, AttachMode=mode)
    one.up()
    other.up()
    return (1280 - (60 if outer == OUTER else 80)) // 16 * 16


@pytest.mark.parametrize("mode", ["native", "tc"])
@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["outer4", "outer6"])
def test_senders_are_told_what_fits(mode: str, outer: tuple[str, str]) -> None:
    with underlay(1280) as (a, b), node(a) as one, node(b) as other:
        longest = narrow(one, other, mode, outer)
        assert ping(a, INNER[1], size=longest - 28, whole=True) == 3
        told = a.run("ping", "-n", "-c", "1", "-W", "3", "-M", "do", "-s", "1380", INNER[1],
                     check=False)  # fmt: skip
        assert f"mtu = {longest}" in told or f"mtu={longest}" in told
        sock = a.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
        sock.connect((INNER[1], 9))
        assert sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) == longest
        with pytest.raises(OSError) as refused:
            sock.send(bytes(1380))
        sock.close()
        assert refused.value.errno == errno.EMSGSIZE
        assert one.show()["daemon"]["too_big"] >= 1


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_senders_are_told_before_there_is_a_session(mode: str) -> None:
    """What waits for the handshake has to fit too."""
    with underlay(1280) as (a, b), node(a) as one, node(b) as other:
        longest = narrow(one, other, mode)
        other.down()
        with a.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DO)
            sock.connect((INNER[1], 9))
            sock.send(bytes(1380))
            wait_for(lambda: is_refused(sock, 1380))
            assert sock.getsockopt(socket.IPPROTO_IP, _IP_MTU) == longest


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_what_may_be_fragmented_is(mode: str) -> None:
    with underlay(1280) as (a, b), node(a) as one, node(b) as other:
        narrow(one, other, mode)
        far = udp_socket(b, INNER[1])
        far.settimeout(5)
        near = udp_socket(a, INNER[0])
        near.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
        for number in range(20):
            message = bytes([number]) * (1390 - number)
            near.sendto(message, far.getsockname())
            assert far.recv(2000) == message
        near.close()
        far.close()


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_tcp_finds_what_fits(mode: str) -> None:
    with underlay(1280) as (a, b), node(a) as one, node(b) as other:
        narrow(one, other, mode)
        tcp(a, b, INNER[1])
        tcp(b, a, INNER[0])


def is_refused(sock: socket.socket, size: int) -> bool:
    """As too long."""
    try:
        sock.send(bytes(size))
    except OSError as error:
        return error.errno == errno.EMSGSIZE
    return False


def test_ipv6_inside_an_underlay_of_1280_bytes() -> None:
    """A packet of 1280 bytes does not fit with its headers, and IPv6 has no smaller MTU to tell
    its sender (RFC 8200)."""
    with pair(mtu=1280) as (one, other):
        assert one.show()["mtu"] == 1280
        assert ping(one.ns, INNER6[1]) == 3
        tcp(one.ns, other.ns, INNER6[1], 1 << 20)


def test_ipv6_senders_are_told_what_fits() -> None:
    with underlay(1360) as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, MTU=1420)
        one.up()
        other.up()
        sock = a.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM)
        sock.connect((INNER6[1], 9))
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DO)
        assert ping(a, INNER6[1]) == 3
        sock.send(bytes(1370))
        wait_for(lambda: is_refused(sock, 1370))
        assert sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU) == 1296
        sock.close()
        tcp(a, b, INNER6[1])


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_outer_fragments_are_delivered(mode: str) -> None:
    """A router between the nodes has a smaller MTU than they know of."""
    with namespace() as a, namespace() as router, namespace() as b, node(a) as one, \
            node(b) as other:  # fmt: skip
        connect(a, router, "under0")
        connect(router, b, "under1")
        router.run("ip", "link", "set", "under1", "mtu", "1000")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        address(a, "under0", "192.0.2.1/24")
        address(router, "under0", "192.0.2.254/24")
        address(router, "under1", "198.51.100.254/24")
        address(b, "under1", "198.51.100.1/24")
        a.run("ip", "route", "add", "default", "via", "192.0.2.254")
        b.run("ip", "route", "add", "default", "via", "198.51.100.254")
        one.configure(
            {"ListenPort": PORT, "Address": f"{INNER[0]}/24", "MTU": 1420, "AttachMode": mode},
            [other.peer(INNER[1], endpoint=endpoint("198.51.100.1"))],
        )
        other.configure(
            {"ListenPort": PORT, "Address": f"{INNER[1]}/24", "MTU": 1420, "AttachMode": mode},
            [one.peer(INNER[0], endpoint=endpoint("192.0.2.1"))],
        )
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        with Numbered(a, b, INNER[1], rate=300, size=1300) as flow:
            flow.wait_for_more(300)
        assert (flow.lost, flow.duplicates) == ([], [])
        if not in_userspace():
            assert other.show()["daemon"]["reinjected"] >= 300
            assert other.show()["drops"]["pass_fragment"] >= 300
        tcp(a, b, INNER[1], 2 << 20)
