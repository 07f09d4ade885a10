from __future__ import annotations

import errno
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from itertools import chain, repeat
from pathlib import Path
from typing import cast
from unittest.mock import MagicMock

import pytest

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.errors import OperatorError
from ebpfvpn.udp import MOST, Destination, UdpSockets
from netns import Namespace, address, namespace, veth

OURS = ("192.0.2.1", "192.0.2.77", "2001:db8::1", "2001:db8::77")
THEIRS = {4: "192.0.2.2", 6: "2001:db8::2"}


@pytest.fixture
def ends() -> Iterator[tuple[Namespace, Namespace]]:
    with namespace() as here, namespace() as there:
        veth(here, there)
        for own in OURS:
            address(here, "under0", f"{own}/{64 if ':' in own else 24}")
        for own in THEIRS.values():
            address(there, "under0", f"{own}/{64 if ':' in own else 24}")
        yield here, there


@pytest.fixture
def udp(ends: tuple[Namespace, Namespace]) -> Iterator[UdpSockets]:
    sockets = ends[0].call(UdpSockets, 0, 0)
    yield sockets
    sockets.close()


@pytest.fixture(params=[4, 6])
def remote(
    request: pytest.FixtureRequest, ends: tuple[Namespace, Namespace]
) -> Iterator[socket.socket]:
    """A plain socket on the other side."""
    family = socket.AF_INET if request.param == 4 else socket.AF_INET6
    sock = ends[1].call(socket.socket, family, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((THEIRS[request.param], 0))
    yield sock
    sock.close()


def own_of(sock: socket.socket) -> list[str]:
    return [own for own in OURS if (":" in own) == (sock.family == socket.AF_INET6)]


def waiting(udp: UdpSockets) -> list[tuple[bytes, Endpoint, int]]:
    """All messages that wait: data, where from, TOS byte."""
    buffer = bytearray(MOST)
    found = []
    for sock in udp.sockets:
        while (arrival := udp.receive_into(sock, buffer)) is not None:
            found.append((bytes(buffer[: arrival.length]), arrival.source, arrival.tos))
    return found


def receive(udp: UdpSockets) -> list[tuple[bytes, Endpoint, int]]:
    select.select(udp.sockets, [], [], 5)
    return waiting(udp)


def test_both_families_have_one_port(udp: UdpSockets) -> None:
    assert [sock.family for sock in udp.sockets] == [socket.AF_INET, socket.AF_INET6]
    assert {sock.getsockname()[1] for sock in udp.sockets} == {udp.port}
    assert udp.port != 0


def test_a_message_tells_where_it_came_from_and_to(
    ends: tuple[Namespace, Namespace], udp: UdpSockets, remote: socket.socket
) -> None:
    for own in own_of(remote):
        if remote.family == socket.AF_INET:
            remote.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x8A)
        else:
            remote.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 0x8A)
        remote.sendto(b"message", (own, udp.port))
        ((data, source, tos),) = receive(udp)
        their, port = remote.getsockname()[:2]
        assert data == b"message"
        assert source == Endpoint(
            ip_address(their), port, ip_address(own), ends[0].ifindex("under0")
        )
        assert tos == 0x8A


def test_an_answer_comes_from_the_address_that_was_asked(
    udp: UdpSockets, remote: socket.socket
) -> None:
    their, port = remote.getsockname()[:2]
    for own in own_of(remote):
        assert udp.send(b"answer", Endpoint(ip_address(their), port, ip_address(own)))
        data, source = remote.recvfrom(100)
        assert (data, source[:2]) == (b"answer", (own, udp.port))


def test_an_address_that_is_gone_is_replaced_by_the_kernels_choice(
    udp: UdpSockets, remote: socket.socket
) -> None:
    their, port = remote.getsockname()[:2]
    gone = "192.0.2.200" if remote.family == socket.AF_INET else "2001:db8::200"
    assert udp.send(b"answer", Endpoint(ip_address(their), port, ip_address(gone)))
    assert remote.recvfrom(100)[1][0] in own_of(remote)


class Refusing:
    """A socket that takes messages from no particular address."""

    family = socket.AF_INET

    def __init__(self, error: int) -> None:
        self.error = error
        self.tries: list[bool] = []

    def sendmsg(self, _: object, control: list[tuple[int, int, bytes]], *__: object) -> None:
        from_there = any(kind == 8 for _, kind, _ in control)  # IP_PKTINFO
        self.tries.append(from_there)
        if from_there:
            raise OSError(self.error, "no")


@pytest.mark.parametrize(("error", "segment", "again"), [
    (errno.EINVAL, 0, True),
    (errno.EADDRNOTAVAIL, 0, True),
    (errno.ENETUNREACH, 0, True),
    (errno.ENETUNREACH, 100, True),
    (errno.EHOSTUNREACH, 0, True),
    (errno.ENODEV, 0, True),
    (errno.EINVAL, 100, False),  # no segmentation, perhaps
    (errno.EPERM, 0, False),  # a firewall
    (errno.EACCES, 0, False),
    (errno.ENOBUFS, 0, False),
    (errno.EAGAIN, 0, False),
    (errno.EMSGSIZE, 0, False),
])  # fmt: skip
def test_another_address_is_taken_only_where_ours_is_the_reason(
    error: int, segment: int, again: bool
) -> None:
    """Otherwise the peer would answer to where it was not asked from."""
    sock = Refusing(error)
    to = Endpoint(ip_address(THEIRS[4]), 9, ip_address(OURS[0]))
    destination = Destination(cast(socket.socket, sock), to)
    if again:
        destination.send((b"message",), 0, segment)
    else:
        with pytest.raises(OSError) as refused:
            destination.send((b"message",), 0, segment)
        assert refused.value.errno == error
    assert sock.tries == ([True, False] if again else [True])


def test_no_way_is_no_exception(udp: UdpSockets) -> None:
    assert not udp.send(b"x", Endpoint(ip_address("203.0.113.1"), 9))
    assert not udp.send(b"x", Endpoint(ip_address("2001:db8:1::1"), 9))


def test_link_local_endpoints(ends: tuple[Namespace, Namespace], udp: UdpSockets) -> None:
    here, there = ends
    address(here, "under0", "fe80::77/64")
    address(there, "under0", "fe80::78/64")
    index = there.ifindex("under0")
    with there.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as remote:
        remote.settimeout(5)
        remote.bind(("fe80::78", 0, 0, index))
        remote.sendto(b"hello", ("fe80::77", udp.port, 0, index))
        ((_, source, _),) = receive(udp)
        assert source == Endpoint(
            ip_address("fe80::78"),
            remote.getsockname()[1],
            ip_address("fe80::77"),
            here.ifindex("under0"),
        )
        assert udp.send(b"answer", source)
        data, back = remote.recvfrom(100)
        assert (data, back[0].partition("%")[0]) == (b"answer", "fe80::77")


def test_errors_before_a_message_and_errors_without_end() -> None:
    with namespace() as ns:
        udp = ns.call(UdpSockets, 0, 0)
        failing = MagicMock()
        message: object = (4, [], 0, ("192.0.2.2", 9))
        failing.recvmsg_into.side_effect = [OSError(errno.ECONNREFUSED, "no")] * 3 + [message]
        arrival = udp.receive_into(failing, bytearray(MOST))
        assert arrival is not None
        assert arrival.length == 4
        endless = chain(repeat(OSError(errno.ENETDOWN, "no"), 1000), [OSError(errno.EAGAIN, "")])
        failing.recvmsg_into = MagicMock(side_effect=endless)
        assert udp.receive_into(failing, bytearray(MOST)) is None
        assert failing.recvmsg_into.call_count < 500
        udp.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_is_an_error_for_the_operator(family: socket.AddressFamily) -> None:
    with namespace() as ns, ns.call(socket.socket, family, socket.SOCK_DGRAM) as taken:
        if family == socket.AF_INET6:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        taken.bind(("", 0))
        with pytest.raises(OperatorError, match="is in use; choose another ListenPort"):
            ns.call(UdpSockets, taken.getsockname()[1], 0)


def is_free(ns: Namespace, family: socket.AddressFamily, port: int) -> bool:
    with ns.call(socket.socket, family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            sock.bind(("", port))
        except OSError:
            return False
        return True


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_flow_ports_are_nobody_elses(family: socket.AddressFamily) -> None:
    with namespace() as ns:
        sockets = ns.call(UdpSockets, 0, 0, flow_ports=3)
        ports = range(sockets.port, sockets.port + 4)
        assert [is_free(ns, family, port) for port in ports] == [False, False, False, True]
        sockets.close()
        assert is_free(ns, family, ports[1])


@pytest.mark.parametrize("taken", [51821, 51823])
def test_a_flow_port_in_use_is_used_all_the_same(
    taken: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A tunnel that was up must come up again, whoever took the port meanwhile."""
    with namespace() as ns, ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", taken))
        sockets = ns.call(UdpSockets, 51820, 0, flow_ports=4)
        assert [is_free(ns, socket.AF_INET6, port) for port in range(51820, 51824)] == [False] * 4
        sockets.close()
    assert [record.message for record in caplog.records] == [
        f"flow port {taken} is in use by another program, and by this one"
    ]


def test_without_ipv6() -> None:
    with namespace() as ns:
        ns.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        sockets = ns.call(UdpSockets, 0, 0)
        assert sockets.sockets[0].family == socket.AF_INET
        sockets.close()


def test_the_mark_is_on_the_sockets() -> None:
    with namespace() as ns:
        sockets = ns.call(UdpSockets, 0, 0x1234)
        for sock in sockets.sockets:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x1234
        sockets.close()


def sizes(udp: UdpSockets) -> set[tuple[int, int]]:
    """Of each socket, as the kernel counts them."""
    level = socket.SOL_SOCKET
    return {
        (sock.getsockopt(level, socket.SO_SNDBUF), sock.getsockopt(level, socket.SO_RCVBUF))
        for sock in udp.sockets
    }


def test_buffers_of_new_and_of_kept_sockets() -> None:
    with namespace() as ns:
        first = ns.call(UdpSockets, 0, 0)
        default, granted = sizes(first), first.granted()
        assert default == {(2 * granted[0], 2 * granted[1])}
        wishes = [(100_000, None), (None, 50_000_000), (4096, 2**30 - 1), (None, None)]
        for send_buffer, recv_buffer in wishes:
            wanted = (send_buffer or granted[0], recv_buffer or granted[1])
            kept = [sock.detach() for sock in first.sockets]
            for descriptors in ([], kept):
                port = first.port if descriptors else 0
                udp = ns.call(
                    UdpSockets,
                    port,
                    0,
                    descriptors,
                    send_buffer=send_buffer,
                    recv_buffer=recv_buffer,
                )
                assert udp.granted() == wanted
                assert sizes(udp) == {(2 * wanted[0], 2 * wanted[1])}
                if descriptors:
                    first = udp
                else:
                    udp.close()
        first.close()


def test_without_rights_over_the_machine_the_kernels_limit_holds() -> None:
    limits = [Path(f"/proc/sys/net/core/{way}mem_max").read_text().strip() for way in "wr"]
    program = """
import sys
from ebpfvpn.udp import UdpSockets
limits = (int(sys.argv[1]), int(sys.argv[2]))
udp = UdpSockets(0, 0, send_buffer=2**30 - 1, recv_buffer=2**30 - 1)
assert udp.granted() == limits, udp.granted()
udp = UdpSockets(0, 0, send_buffer=5000, recv_buffer=6000)
assert udp.granted() == (5000, 6000), udp.granted()
"""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", program]
    done = subprocess.run([*command, *limits], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_what_a_full_queue_loses_is_counted(udp: UdpSockets, remote: socket.socket) -> None:
    of = [sock.family for sock in udp.sockets].index(remote.family)
    before = udp.dropped()
    assert before == [0, 0]
    for _ in range(3000):
        remote.sendto(bytes(148), (own_of(remote)[0], udp.port))
    dropped = udp.dropped()
    assert dropped[1 - of] == 0
    assert 0 < dropped[of] < 3000
    assert len(waiting(udp)) + dropped[of] == 3000
    assert udp.dropped() == dropped


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_wrong_checksum_is_counted_too(family: socket.AddressFamily) -> None:
    with namespace() as ns:
        sockets = ns.call(UdpSockets, 0, 0)
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        message = struct.pack("!4H", 9, sockets.port, 8 + 148, 0x1234) + bytes(148)
        with ns.call(socket.socket, family, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            raw.sendto(message, (host, 0))
        assert waiting(sockets) == []
        assert sum(sockets.dropped()) == 1
        sockets.close()
