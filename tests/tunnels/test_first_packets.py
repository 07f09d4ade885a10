"""Packets before there is a session, and packets that nobody is there for."""

from __future__ import annotations

import errno
import socket

import pytest

from ebpfvpn.staged import PER_PEER
from echo import ping
from netns import Namespace
from tunnels.nodes import (
    INNER,
    INNER6,
    MODES,
    OUTER,
    PORT,
    Node,
    endpoint,
    introduce,
    node,
    underlay,
    wait_for,
)
from tunnels.traffic import udp_socket


def burst(a: Namespace, b: Namespace, inner: tuple[str, str], count: int) -> list[int]:
    """Sends numbered packets all at once, before the first handshake; returns what came."""
    with udp_socket(a, inner[0]) as near, udp_socket(b, inner[1]) as far:
        far.settimeout(5)
        to = far.getsockname()
        for number in range(count):
            near.sendto(number.to_bytes(4, "big"), to)
        received = [int.from_bytes(far.recv(100), "big") for _ in range(count)]
        far.settimeout(0.2)
        with pytest.raises(TimeoutError):
            far.recv(100)
    return received


@pytest.mark.parametrize("inner", [INNER, INNER6], ids=["inner4", "inner6"])
@pytest.mark.parametrize("mode", MODES)
def test_a_burst_waits_for_the_handshake(mode: str, inner: tuple[str, str]) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, AttachMode=mode)
        one.up()
        other.up()
        assert burst(a, b, inner, 50) == list(range(50))
        status = one.show()
        (session,) = status["peers"][0]["sessions"]
        assert session["role"] == "initiator"
        assert session["send_counter"] >= 50
        assert status["peers"][0]["tx_packets"] == session["send_counter"]


def test_packets_that_follow_a_burst_do_not_overtake_it() -> None:
    """One stream that goes on while the daemon hands over to the kernel."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        one.up()
        other.up()
        with udp_socket(a, INNER[0]) as near, udp_socket(b, INNER[1]) as far:
            far.settimeout(5)
            received: list[int] = []
            number = 0
            while len(received) < 500:
                for _ in range(4):
                    near.sendto(number.to_bytes(4, "big"), far.getsockname())
                    number += 1
                far.settimeout(0.01)
                try:
                    while True:
                        received.append(int.from_bytes(far.recv(100), "big"))
                except TimeoutError:
                    pass
        assert received == sorted(received)
        assert len(set(received)) == len(received)


def dropped(one: Node) -> int:
    """Packets: in the daemon, or in the TUN's queue before it."""
    status = one.show()
    return int(status["daemon"]["staged_dropped"] + status["drops"]["lost_in_tun"])


def test_the_queue_is_bounded() -> None:
    with underlay() as (a, _), node(a) as one, node(a) as absent:
        one.configure(
            {"ListenPort": PORT, "Address": f"{INNER[0]}/24"},
            [absent.peer(INNER[1], endpoint=endpoint("192.0.2.77"))],
        )
        one.up()
        sent = 0
        with udp_socket(a, INNER[0]) as near:
            while not one.show()["daemon"]["staged_dropped"]:
                for _ in range(500):  # the TUN's queue holds more
                    near.sendto(b"x", (INNER[1], 9))
                sent += 500
                assert sent < 10 * PER_PEER
        wait_for(lambda: sent - dropped(one) <= PER_PEER)


@pytest.mark.parametrize("inner", [INNER, INNER6], ids=["inner4", "inner6"])
@pytest.mark.parametrize("why", ["no peer", "no endpoint"])
def test_nobody_there_is_unreachable(why: str, inner: tuple[str, str]) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        allowed = inner[1] if why == "no endpoint" else OUTER[1]
        one.configure(
            {
                "ListenPort": PORT,
                "Address": f"{INNER[0]}/24, {INNER6[0]}/64",
                "Table": "off",
            },
            [other.peer(allowed)],
        )
        one.up()
        said = a.run("ping", "-n", "-c", "1", "-W", "3", inner[1], check=False)
        expected = "Host Unreachable" if inner is INNER else "Address unreachable"
        assert expected in said
        family = socket.AF_INET if inner is INNER else socket.AF_INET6
        with a.call(socket.socket, family, socket.SOCK_STREAM) as sock:
            sock.settimeout(5)
            with pytest.raises(OSError) as refused:
                sock.connect((inner[1], 80))
            assert refused.value.errno == errno.EHOSTUNREACH
        assert one.show()["daemon"]["unreachable"] >= 2


def test_who_does_not_answer_is_tried_again() -> None:
    """The other end comes up a little later, and what waited is delivered."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        one.up()
        with udp_socket(a, INNER[0]) as near:
            near.sendto(b"early", (INNER[1], 4000))
            other.up()
            with udp_socket(b, INNER[1], 4000) as far:
                far.settimeout(12)
                assert far.recv(100) == b"early"
        assert ping(a, INNER[1]) == 3
