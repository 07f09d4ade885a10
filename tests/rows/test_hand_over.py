"""What is handed to another CPU, and what is opened where it arrives.

The programs are told of CPUs some of which do not exist: what is for one of those is opened where
it arrives, so that it can be seen which CPU was chosen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from ebpfvpn.kernel.layout import CpuEntry, Spread, number
from ebpfvpn.kernel.libbpf import possible_cpus
from rows.packets import ethernet, ipv4, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    LOOPBACK,
    PEER_PORT,
    PORT,
    Tunnel,
    Verdict,
    message,
    now,
    outer,
    retval,
)
from rows.tunnel import tunnel as loaded

CPUS = (0, 1, 100, 101)
XDP_REDIRECT = 4
OPENED = retval("open_xdp", Verdict.GO)
DROPPED = retval("open_xdp", Verdict.DROP)
LONG = pad(ipv4(INNER_THERE[4], INNER_HERE[4], bytes(1400)))
SHORT = pad(ipv4(INNER_THERE[4], INNER_HERE[4], bytes(36)))
SECOND = 1_000_000_000

pytestmark = pytest.mark.skipif(possible_cpus() < 2, reason="there is no other CPU")


@pytest.fixture(scope="module")
def programs() -> Iterator[Tunnel]:
    with loaded(cpus=CPUS) as found:
        yield found


@pytest.fixture
def tunnel(programs: Tunnel) -> Iterator[Tunnel]:
    """Tests run on the first CPU, and the second opens for it."""
    programs.set_up()
    spread(programs, busy_until=now() + 60 * SECOND)
    entry = CpuEntry(queue=64, program=programs.loaded.programs["open_cpu"].fd)
    programs.loaded.maps["cpus"].update(number(1), bytes(entry))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    yield programs
    os.sched_setaffinity(0, before)


def spread(tunnel: Tunnel, ifindex: int = LOOPBACK, **fields: int) -> None:
    tunnel.loaded.maps["spread"].update(number(ifindex), bytes(Spread(**fields)))


def lately(tunnel: Tunnel) -> Spread:
    raw = tunnel.loaded.maps["spread"].lookup(number(LOOPBACK))
    assert raw is not None
    return Spread.from_buffer_copy(raw)


def arriving(
    text: bytes = LONG, counter: int = 0, port: int = PEER_PORT, version: int = 4
) -> bytes:
    return ethernet(outer(message(counter, text), version, source_port=port))


def redirected(tunnel: Tunnel, version: int = 4) -> list[bool]:
    """Of flows from a row of ports, all of the peer's."""
    frames = [arriving(port=PEER_PORT + i, version=version) for i in range(9)]
    return [tunnel.run("open_xdp", frame).retval == XDP_REDIRECT for frame in frames]


@pytest.fixture
def port(tunnel: Tunnel) -> int:
    """Of a flow that the second CPU opens."""
    found = PEER_PORT + redirected(tunnel).index(True)
    tunnel.set_up()
    return found


@pytest.mark.parametrize("version", [4, 6])
def test_each_flow_has_a_cpu_that_is_not_this_one(tunnel: Tunnel, version: int) -> None:
    """Of the three others one exists. Ports in a row go to CPUs in a row."""
    found = redirected(tunnel, version)
    assert sum(found) == 3
    assert found[:3] == found[3:6] == found[6:]
    assert redirected(tunnel, version) == found
    assert tunnel.counted()["pass_to_cpu"] == 6


def test_addresses_count_too(tunnel: Tunnel) -> None:
    """For all sites may send from one and the same port."""
    found = []
    for i in range(9):
        frame = ethernet(outer(message(0, LONG), source=f"{198 + i}.51.100.1"))
        found.append(tunnel.run("open_xdp", frame).retval == XDP_REDIRECT)
    assert 0 < sum(found) < 9


def test_what_is_handed_over_is_left_as_it_is(tunnel: Tunnel, port: int) -> None:
    result = tunnel.run("open_xdp", arriving(port=port))
    assert (result.retval, result.data) == (XDP_REDIRECT, arriving(port=port))
    assert tunnel.counted() == {"pass_to_cpu": 1}
    assert (tunnel.session().receive_highest, tunnel.peer().rx_packets) == (0, 0)


def test_not_busy_any_more(tunnel: Tunnel, port: int) -> None:
    spread(tunnel, busy_until=now() - 1)
    assert tunnel.run("open_xdp", arriving(port=port)).retval == OPENED
    assert lately(tunnel).busy_until == 0
    assert tunnel.counted() == {}


def test_a_device_that_is_not_spread(tunnel: Tunnel, port: int) -> None:
    tunnel.loaded.maps["spread"].delete(number(LOOPBACK))
    assert tunnel.run("open_xdp", arriving(port=port)).retval == OPENED
    assert tunnel.counted() == {}


def test_a_cpu_without_an_entry(tunnel: Tunnel, port: int) -> None:
    tunnel.loaded.maps["cpus"].delete(number(1))
    assert tunnel.run("open_xdp", arriving(port=port)).retval == OPENED
    assert tunnel.counted() == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame[:36] + (PORT + 1).to_bytes(2, "big") + frame[38:],
        lambda frame: frame[:42] + b"\1" + frame[43:],
        lambda frame: frame[:46] + bytes(4) + frame[50:],
        lambda frame: frame[:20] + b"\x20\0" + frame[22:],
        lambda frame: frame[:57],
    ],
    ids=["another port", "a handshake message", "an unknown index", "a fragment", "cut short"],
)  # fmt: skip
def test_what_is_no_data_message_stays(
    tunnel: Tunnel, port: int, change: Callable[[bytes], bytes]
) -> None:
    frame = change(arriving(port=port))
    result = tunnel.run("open_xdp", frame)
    assert (result.retval, result.data) == (retval("open_xdp", Verdict.PASS), frame)
    assert "pass_to_cpu" not in tunnel.counted()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited in vain"


def flood(tunnel: Tunnel, frame: bytes, times: int) -> int:
    """The last verdict. Of a message that was not opened before, or is handed over: a test run
    repeats with what the run before left."""
    program = tunnel.loaded.programs["open_xdp"]
    return program.test_run(frame, repeat=times).retval


def test_many_long_messages_make_it_busy(tunnel: Tunnel, port: int) -> None:
    spread(tunnel)
    assert tunnel.run("open_xdp", arriving(port=port)).retval == OPENED
    assert lately(tunnel).bytes == len(message(0, LONG))
    wait_for(lambda: flood(tunnel, arriving(port=port), 100) == XDP_REDIRECT)
    device = lately(tunnel)
    assert 0 < device.busy_until - device.since <= SECOND // 100
    # 46 make 64 KB: those from which the time is counted, and those that were too fast.
    assert tunnel.counted()["replayed"] >= 2 * 46 - 2


def test_short_messages_do_not(tunnel: Tunnel, port: int) -> None:
    spread(tunnel)
    assert tunnel.run("open_xdp", arriving(SHORT, port=port)).retval == OPENED
    assert flood(tunnel, arriving(SHORT, port=port), 20000) == DROPPED
    assert (lately(tunnel).bytes, lately(tunnel).busy_until) == (0, 0)
    assert tunnel.counted() == {"replayed": 20000}


def test_short_messages_follow_the_long_ones(tunnel: Tunnel, port: int) -> None:
    """In the order of their flow."""
    assert tunnel.run("open_xdp", arriving(SHORT, port=port)).retval == XDP_REDIRECT


def test_as_many_in_a_longer_time_do_not(tunnel: Tunnel, port: int) -> None:
    for counter in range(100):
        spread(tunnel, since=now() - SECOND // 1000, bytes=65535)
        assert tunnel.run("open_xdp", arriving(counter=counter, port=port)).retval == OPENED
        device = lately(tunnel)
        assert (device.bytes, device.busy_until) == (0, 0)
        assert now() - SECOND < device.since <= now()
    assert tunnel.counted() == {}


def test_it_remains_busy_while_many_come(tunnel: Tunnel, port: int) -> None:
    """Beyond the time for which that was said."""
    later = now() + SECOND // 20

    def flooded() -> bool:
        flood(tunnel, arriving(port=port), 1000)
        return bool(lately(tunnel).busy_until > later)

    spread(tunnel, busy_until=now() + SECOND // 100)
    wait_for(flooded)


def test_without_cpus_nothing_is_handed_over() -> None:
    with loaded() as tunnel:
        tunnel.set_up()
        spread(tunnel, busy_until=now() + 60 * SECOND)
        assert tunnel.run("open_xdp", arriving()).retval == OPENED
