"""Opening that is spread over CPUs while a device is busy, under real traffic."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ebpfvpn.kernel import cpumap
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import Map
from echo import ping
from tunnels.nodes import INNER, INNER6, Node, pair, wait_for
from tunnels.traffic import Numbered, tcp, udp_socket

CPUS = cpumap.usable_cpus()
"""None where the kernel cannot, or there is one CPU only: then nothing is handed over."""

pytestmark = pytest.mark.alone

_BURST = 150
"""Packets: the first 100 make the device busy; more than 256 a ring of a veth does not hold."""
_LENGTH = 1300


def counts(node: Node) -> tuple[int, int]:
    """Messages that were handed to another CPU, and that arrived there."""
    drops = node.show()["drops"]
    return drops["pass_to_cpu"], drops["pass_from_cpu"]


def is_spread(node: Node, least: int) -> bool:
    """At least so many messages were, none of them lost."""
    given, taken = counts(node)
    return given == taken and (given >= least if CPUS else given == 0)


def bursts(sender: Node, receiver: Node, to: str, done: Callable[[int], bool]) -> int:
    """Sends bursts of numbered packets until it is `done` with so many; each has to arrive whole.
    Returns how many did not arrive in their order.

    The sender's CPU is the one that the device's interrupts would come to: it stays the same."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread
    number = disordered = 0
    with udp_socket(receiver.ns, to) as sink, udp_socket(sender.ns, "::" if ":" in to else "") as s:
        sink.settimeout(10)
        s.connect(sink.getsockname()[:2])
        while not done(number):
            for i in range(_BURST):
                s.send((number * _BURST + i).to_bytes(_LENGTH, "big"))
            arrived = [int.from_bytes(sink.recv(2 * _LENGTH), "big") for _ in range(_BURST)]
            assert sorted(arrived) == [*range(number * _BURST, (number + 1) * _BURST)]
            disordered += arrived != sorted(arrived)
            number += 1
    return disordered


def test_light_traffic_is_not_spread() -> None:
    with pair(AttachMode="native") as (one, other):
        assert ping(one.ns, INNER[1], 20) == 20
        with Numbered(one.ns, other.ns, INNER[1]) as there:
            there.wait_for_more(500)
        assert (there.lost, there.duplicates) == ([], [])
        assert counts(other) == (0, 0)


@pytest.mark.parametrize("to", [INNER[1], INNER6[1]])
def test_many_packets_are_spread_and_arrive_in_order(to: str) -> None:
    with pair(AttachMode="native") as (one, other), ThreadPoolExecutor(1) as thread:
        assert ping(one.ns, to) == 3
        (device,) = other.show()["datapath"]["devices"]
        assert device["spread"] == len(CPUS)
        told = "seal xdp, spread over CPUs when busy" in other.command("show", other.name).stdout
        assert told == bool(CPUS)
        disordered = thread.submit(bursts, one, other, to, lambda sent: sent == 200).result()
        # When it becomes busy, and nobody lets it be that for long.
        assert disordered < 20
        wait_for(lambda: is_spread(other, 100 * _BURST))
        assert other.show()["drops"]["bad_tag"] == other.failures() == 0


def test_streams_arrive_whole() -> None:
    with pair(AttachMode="native") as (one, other):
        tcp(one.ns, other.ns, INNER[1], 30 << 20)
        tcp(other.ns, one.ns, INNER6[0], 30 << 20)
        for each in (one, other):
            assert min(counts(each)) > 1000 or not CPUS


def restart(node: Node) -> None:
    node.restart()


def kill_and_up(node: Node) -> None:
    node.kill()
    node.up()


@pytest.mark.parametrize("way", [restart, kill_and_up])
def test_the_next_daemon_goes_on_with_it(way: Callable[[Node], None]) -> None:
    stop = threading.Event()
    with pair(AttachMode="native") as (one, other), ThreadPoolExecutor(1) as thread:
        assert ping(one.ns, INNER[1]) == 3
        running = thread.submit(bursts, one, other, INNER[1], lambda _: stop.is_set())
        try:
            for _ in range(2):
                given, _ = counts(other)
                wait_for(lambda given=given: counts(other)[0] > given or not CPUS)  # type: ignore[misc]
                way(other)
                assert not running.done()
            given, _ = counts(other)
            wait_for(lambda: counts(other)[0] > given or not CPUS)
        finally:
            stop.set()
        running.result()
        wait_for(lambda: is_spread(other, 1))
        (device,) = other.show()["datapath"]["devices"]
        assert device["spread"] == len(CPUS)


def test_nothing_is_left_of_a_tunnel_that_is_busy() -> None:
    with pair(AttachMode="native") as (one, other):
        map_ = Map.pinned(other.pins / "cpus")
        number = map_.id
        map_.close()
        with Numbered(one.ns, other.ns, INNER[1], rate=20000, size=_LENGTH) as there:
            there.wait_for_more(1000)
            other.down()

    def is_gone() -> bool:
        try:
            Map.by_id(number).close()
        except BpfError as error:
            return error.errno == errno.ENOENT
        return False

    wait_for(is_gone)
