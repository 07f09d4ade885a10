"""What the datapath left to the daemon, with what that drives replaced."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ebpfvpn import config, keys
from ebpfvpn.config_values import HostPort
from ebpfvpn.daemon import Daemon
from ebpfvpn.first_packets import _MOST_BATCHES, FirstPackets
from ebpfvpn.staged import PER_PEER
from rows.packets import ipv4

PEER = 3
BATCH = 256


class Fakes:
    """Datapath, TUN, protocol and interface in one."""

    def __init__(self) -> None:
        self.datapath = self.tun = self.allowed_ips = self
        self.peers = {PEER: config.PeerConfig(bytes(32), endpoint=HostPort("192.0.2.2", 51820))}
        self.waiting: list[bytes] = []
        self.endless = False
        self.done: list[object] = []
        self.session = False
        self.longest = 0
        self.takes = True
        self.written: list[bytes] = []

    def packets(self) -> Iterator[bytes]:
        batch, self.waiting = self.waiting[:BATCH], self.waiting[BATCH:]
        if self.endless:
            self.waiting = batch
        yield from batch

    def lookup(self, _: object) -> int:
        return PEER

    def max_inner(self, _: int) -> int:
        return self.longest

    def has_session(self, *_: object) -> bool:
        return self.session

    def want_session(self, *_: object) -> None:
        pass

    def set_usable(self, _: int, usable: bool) -> None:
        self.done.append(usable)

    def send(self, _: int, packets: Sequence[bytes]) -> None:
        self.done += packets

    def write(self, packet: bytes) -> bool:
        if self.takes:
            self.written.append(packet)
        return self.takes


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


@pytest.fixture
def daemon(fakes: Fakes) -> Daemon:
    interface = config.InterfaceConfig(keys.generate_private_key())
    made = Daemon(config.Config(Path("wg0.conf"), "wg0", interface, ()), cast(Any, fakes))
    made.device = cast(Any, fakes)
    made.first_packets = FirstPackets(
        cast(Any, fakes), cast(Any, fakes), made.staged, made.counters
    )
    return made


def packet(number: int, length: int = 4) -> bytes:
    return ipv4("10.1.0.1", "10.5.0.9", number.to_bytes(4, "big").ljust(length, b"\0"))


def test_all_that_waits_goes_before_what_finds_the_session_usable(
    daemon: Daemon, fakes: Fakes
) -> None:
    """The TUN's queue holds more than one read takes."""
    packets = fakes.waiting = [packet(n) for n in range(1000)]
    fakes.session = True
    daemon._session_ready(PEER, confirm=True)
    assert fakes.done == [False, *packets, True]


def test_a_queue_that_holds_more_than_may_wait(daemon: Daemon, fakes: Fakes) -> None:
    packets = fakes.waiting = [packet(n) for n in range(PER_PEER + 500)]
    fakes.session = True
    daemon._session_ready(PEER, confirm=True)
    assert [one for one in fakes.done if one not in (True, False)] == packets
    assert fakes.done[-1] is True
    assert daemon.staged.dropped == 0


def test_who_sends_without_end_is_not_waited_for(daemon: Daemon, fakes: Fakes) -> None:
    fakes.waiting = [packet(n) for n in range(BATCH)]
    fakes.endless = fakes.session = True
    daemon._session_ready(PEER, confirm=True)
    assert len([one for one in fakes.done if one not in (True, False)]) == _MOST_BATCHES * BATCH


@pytest.mark.parametrize("longest", [16, 27])
def test_what_cannot_even_be_cut_is_counted(daemon: Daemon, fakes: Fakes, longest: int) -> None:
    fakes.waiting = [packet(0, 100)]
    fakes.longest = longest
    daemon.first_packets.read(0.0)
    assert daemon.counters == {"too_big": 1}
    assert (fakes.written, daemon.staged.waiting(PEER)) == ([], False)


@pytest.mark.parametrize("takes", [True, False])
def test_an_answer_that_the_stack_does_not_take_is_counted(
    daemon: Daemon, fakes: Fakes, takes: bool
) -> None:
    fakes.waiting = [ipv4("10.1.0.1", "10.5.0.9", bytes(100), fragment=0x4000)]
    fakes.longest, fakes.takes = 64, takes
    daemon.first_packets.read(0.0)
    assert daemon.counters == {"too_big": 1} | ({} if takes else {"icmp_refused": 1})
    assert len(fakes.written) == takes
