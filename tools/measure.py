"""Measurements between the two nodes of a lab and the sites behind them, from left to right and,
for TCP, back."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cpu_time
import lab
import sites
import udp
from lab import Lab, LabError, Node
from measurements import ACCEPTED_LOSS
from sites import Sites
from way import Way

PORT = 40001
UDP = str(Path(udp.__file__).resolve())

SMALL = 64
"""Bytes of UDP payload."""

_PING_HEADERS = 28

_SLOWEST = 1000
"""Times slower than the flood, where the search for a rate begins."""


@dataclass(frozen=True, slots=True)
class Durations:
    """How long each measurement takes: seconds, where nothing else is said."""

    tcp: str = "--time=4"
    """iperf3's option."""
    flood: float = 2
    search: float = 0.7
    """Of each trial."""
    steps: int = 8
    """Of halving the ratio between rates with little and with too much loss: the rate found is
    within 2.8 %."""
    pings: int = 1000
    """A count; one each 2 ms."""


QUICK = Durations(tcp="--bytes=30M", flood=0.3, search=0.1, steps=1, pings=100)


@dataclass(frozen=True, slots=True)
class Transfer:
    sent: int
    received: int
    seconds: float

    @property
    def loss(self) -> float:
        return 1 - self.received / self.sent if self.sent else 1.0


def tcp(
    here: Lab, address: str, streams: int, how_long: str, *, back: bool = False
) -> tuple[float, float]:
    """Gbit/s received, and CPU seconds of the whole machine for each GB (10^9 bytes) of it."""
    server = here.right.start("iperf3", "-s", "-1", "-B", address, "--forceflush")
    assert server.stdout is not None
    for line in server.stdout:
        if "listening" in line:
            break
    # cubic, for the default differs between machines.
    client = ["iperf3", "-c", address, "-C", "cubic", "-P", str(streams), how_long]
    if back:
        client.append("--reverse")
    before = cpu_time.machine()
    output = here.left.run(*client, "-J", timeout=30, can_wait=False)
    used = cpu_time.machine() - before
    lab.end(server)
    received = json.loads(output)["end"]["sum_received"]
    if not received["bytes"]:
        raise LabError("iperf3 moved nothing")
    return received["bits_per_second"] / 1e9, used / (received["bytes"] / 1e9)


def ping(here: Lab, address: str, count: int) -> tuple[float, float]:
    """Median and 99th percentile of the round-trip time, µs."""
    argv = ["ping", "-n", "-i", "0.002", "-c", str(count), "-W", "1", address]
    output = here.left.run(*argv, timeout=count * 0.002 + 30, can_wait=False)
    times = sorted(float(ms) * 1000 for ms in re.findall(r" time=([\d.]+) ms", output))
    if len(times) < 0.9 * count:
        raise LabError(f"{count - len(times)} of {count} pings lost")
    return percentile(times, 50), percentile(times, 99)


def percentile(ordered: list[float], percent: float) -> float:
    """The nearest rank's value; `ordered` is not empty."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@contextmanager
def sink(node: Node, address: str) -> Iterator[int]:
    """The process of a sink on the node."""
    process = node.start(sys.executable, UDP, "sink", address, str(PORT))
    assert process.stdout is not None
    if process.stdout.readline().strip() != "ready":
        raise LabError("the UDP sink did not start")
    try:
        yield process.pid
    finally:
        lab.end(process)


def transfer(
    here: Lab, address: str, pid: int, *, size: int, rate: int, seconds: float
) -> Transfer:
    """Sends from the left node to the sink of process `pid`; `rate` is packets a second, 0: as many
    as go."""
    return _transfer(here.left, ["send", address], pid, size, rate, seconds)


def transfer_between(ends: Sites, pid: int, *, size: int, rate: int, seconds: float) -> Transfer:
    """The same from site to site."""
    load = ends.load.address
    how = ["frames", sites.DEVICE, ends.gateway_mac, load, ends.sink.address]
    return _transfer(ends.load, how, pid, size, rate, seconds)


def _transfer(
    node: Node, how: list[str], pid: int, size: int, rate: int, seconds: float
) -> Transfer:
    before = udp.arrived(pid)
    argv = [sys.executable, UDP, *how, str(PORT), str(size), str(rate), str(seconds)]
    sent = int(node.run(*argv, timeout=seconds + 10, can_wait=False))
    return Transfer(sent, _settled(lambda: udp.arrived(pid)) - before, seconds)


def _settled(count: Callable[[], int]) -> int:
    """The count when what is still on its way has arrived."""
    while True:
        before = count()
        time.sleep(0.1)
        if count() == before:
            return before


def highest_rate(trial: Callable[[int], Transfer], flood: int, steps: int) -> float:
    """The highest rate received, packets a second, with at most ACCEPTED_LOSS. `trial` sends at a
    rate; searched below `flood`, the rate at which a sender without limit sent. A rate has two
    trials, for one hiccup of the machine loses more than is accepted."""
    best, low, high = 0.0, flood / _SLOWEST, float(flood)
    for _ in range(steps):
        rate = math.sqrt(low * high)
        for _ in range(2):
            result = trial(max(1, round(rate)))
            if result.loss <= ACCEPTED_LOSS:
                low, best = rate, max(best, result.received / result.seconds)
                break
        else:
            high = rate
    return best


def whole_packets(here: Lab, way: Way, mtu: int) -> None:
    """What is measured must not be cut on its way. LabError if no packet of `mtu` bytes crosses."""
    size = str(mtu - _PING_HEADERS)
    argv = ["ping", "-c", "3", "-i", "0.2", "-W", "2", "-M", "do", "-s", size, way.addresses[1]]
    try:
        here.left.run(*argv)
    except LabError as error:
        raise LabError(f"no packet of {mtu} bytes crosses: {error}") from None


def measure(
    here: Lab, way: Way, ends: Sites, large: int, durations: Durations
) -> Iterator[tuple[str, float]]:
    """Every measurement of one way, by name, as MEASUREMENTS has them; `large`: bytes of payload
    of its large UDP packets."""
    address = way.addresses[1]
    ping(here, address, 50)  # the first one waits for the handshake
    median, high = ping(here, address, durations.pings)
    yield "ping_p50", median
    yield "ping_p99", high
    for streams in (1, 4):
        for back in (False, True):
            rate, cpu = tcp(here, address, streams, durations.tcp, back=back)
            name = f"tcp_{streams}{'_back' if back else ''}"
            yield name, rate
            yield f"{name}_cpu", cpu
    with sink(here.right, address) as pid:
        send = partial(transfer, here, address, pid)
        yield from _small("udp_64", send, durations)
        flood = send(size=large, rate=0, seconds=durations.flood)
        yield f"udp_{large}_flood", flood.received / flood.seconds * large * 8 / 1e9
    with sink(ends.sink, ends.sink.address) as pid:
        yield from _small("site_64", partial(transfer_between, ends, pid), durations)


def _small(
    name: str, send: Callable[..., Transfer], durations: Durations
) -> Iterator[tuple[str, float]]:
    flood = send(size=SMALL, rate=0, seconds=durations.flood)
    yield f"{name}_flood", flood.received / flood.seconds

    def trial(rate: int) -> Transfer:
        return send(size=SMALL, rate=rate, seconds=durations.search)

    yield f"{name}_0.1%_loss", highest_rate(trial, int(flood.sent / flood.seconds), durations.steps)
