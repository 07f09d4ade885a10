"""Measurements between the two nodes of a lab, from left to right."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lab
import udp
from lab import Lab, LabError

PORT = 40001
UDP = str(Path(udp.__file__).resolve())

SMALL = 64
LARGE = 1300
"""Bytes of UDP payload."""

ACCEPTED_LOSS = 0.01
SEARCH_STEPS = 6
"""Of halving: the rate found is within 1/64 of the flood's."""


@dataclass(frozen=True, slots=True)
class Durations:
    """Seconds of each measurement."""

    tcp: int = 4
    flood: float = 2
    search: float = 0.7
    """Of each step."""
    pings: int = 1000
    """A count; one each 2 ms."""


@dataclass(frozen=True, slots=True)
class Transfer:
    sent: int
    received: int
    seconds: float

    @property
    def loss(self) -> float:
        return 1 - self.received / self.sent if self.sent else 1.0


def cpu_seconds(stat: str) -> float:
    """Busy time of the whole machine since it booted, from the text of /proc/stat: user, nice,
    system, interrupts; neither idle nor stolen by the hypervisor."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.split("\n")[0].split()[1:8])
    return (user + nice + system + irq + softirq) / 100


def tcp(here: Lab, address: str, streams: int, seconds: int) -> tuple[float, float]:
    """Gbit/s received, and CPU seconds of the whole machine for each GB (10^9 bytes) of it."""
    server = here.right.start("iperf3", "-s", "-1", "-B", address, "--forceflush")
    assert server.stdout is not None
    for line in server.stdout:
        if "listening" in line:
            break
    # cubic, for the default differs between machines.
    client = ["iperf3", "-c", address, "-C", "cubic", "-P", str(streams), "-t", str(seconds)]
    before = cpu_seconds(Path("/proc/stat").read_text())
    output = here.left.run(*client, "-J", timeout=seconds + 20, can_wait=False)
    used = cpu_seconds(Path("/proc/stat").read_text()) - before
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
def sink(here: Lab, address: str) -> Iterator[int]:
    """The process of a sink on the right node."""
    process = here.right.start(sys.executable, UDP, "sink", address, str(PORT))
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
    """Sends to the sink of process `pid`; `rate` is packets a second, 0: as many as go."""
    before = udp.arrived(pid)
    argv = [sys.executable, UDP, "send", address, str(PORT), str(size), str(rate), str(seconds)]
    sent = int(here.left.run(*argv, timeout=seconds + 10, can_wait=False))
    return Transfer(sent, _settled(lambda: udp.arrived(pid)) - before, seconds)


def _settled(count: Callable[[], int]) -> int:
    """The count when what is still on its way has arrived."""
    while True:
        before = count()
        time.sleep(0.1)
        if count() == before:
            return before


def highest_rate(trial: Callable[[int], Transfer], flood: int) -> float:
    """The highest rate received, packets a second, with at most ACCEPTED_LOSS. `trial` sends at a
    rate; searched by halving below `flood`, the rate at which a sender without limit sent."""
    best, low, high = 0.0, 0, flood
    for _ in range(SEARCH_STEPS):
        rate = (low + high) // 2
        result = trial(rate)
        if result.loss <= ACCEPTED_LOSS:
            low, best = rate, max(best, result.received / result.seconds)
        else:
            high = rate
    return best


def measure(here: Lab, address: str, durations: Durations) -> Iterator[tuple[str, float]]:
    """Every measurement of one tunnel, by name, as UNITS has them."""
    ping(here, address, 50)  # the first one waits for the handshake
    median, high = ping(here, address, durations.pings)
    yield "ping_p50", median
    yield "ping_p99", high
    for streams in (1, 4):
        rate, cpu = tcp(here, address, streams, durations.tcp)
        yield f"tcp_{streams}", rate
        yield f"tcp_{streams}_cpu", cpu
    with sink(here, address) as pid:

        def send(size: int, rate: int, seconds: float) -> Transfer:
            return transfer(here, address, pid, size=size, rate=rate, seconds=seconds)

        flood = send(SMALL, 0, durations.flood)
        yield "udp_64_flood", flood.received / flood.seconds
        yield (
            "udp_64_1%_loss",
            highest_rate(
                lambda rate: send(SMALL, rate, durations.search), int(flood.sent / flood.seconds)
            ),
        )
        large = send(LARGE, 0, durations.flood)
        yield "udp_1300_flood", large.received / large.seconds * LARGE * 8 / 1e9


UNITS = {
    "ping_p50": "µs",
    "ping_p99": "µs",
    "tcp_1": "Gbit/s",
    "tcp_1_cpu": "CPU s/GB",
    "tcp_4": "Gbit/s",
    "tcp_4_cpu": "CPU s/GB",
    "udp_64_flood": "packets/s",
    "udp_64_1%_loss": "packets/s",
    "udp_1300_flood": "Gbit/s",
}
