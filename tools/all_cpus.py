"""What `seal_xdp` and `open_xdp` lose when all CPUs work for one session: its send counter or
replay window, and its peer's counters, are common to them.

Test runs with one CPU alone, on all CPUs at once with one session, and with a session for each,
where nothing is common but the machine. Making each frame anew is subtracted.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from ebpfvpn.kernel.libbpf import possible_cpus
from lab import LabError
from recorded import FRAMES, Recorded
from results import emit
from rows.at_once import at_once
from rows.packets import data_message, ethernet, ip, pad, udp
from rows.tunnel import (
    INNER_HERE,
    LOCAL_INDEX,
    PEER,
    RECEIVE_KEY,
    Tunnel,
    Verdict,
    marked,
    outer,
    retval,
    tunnel,
)

SIZES = (92, 1420)
"""Of the inner packets: 64 bytes of UDP payload, and what fills the MTU."""
HOWS = ("alone", "one session", "own sessions")
_MOST_CPUS = 4
"""That there are peers for."""
_HEADERS = 44
"""Bytes before an inner packet: IPv4, UDP and WireGuard's."""
_PASS = 2
_ROOM = bytes(32)
"""Behind a packet, for padding and tag, as `steer` leaves it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured."""

    program: str
    moved: int
    """Bytes that it puts before a packet."""
    counter: str
    """Of struct peer."""

    def frame(self, size: int, session: int, counter: int) -> bytes:
        there = f"10.{5 + session}.0.9"
        if self.program == "seal_xdp":
            packet = udp(INNER_HERE[4], 1, there, 2, bytes(size - 28))
            return marked(PEER + session, ip(INNER_HERE[4], there, packet) + _ROOM)
        packet = ip(there, INNER_HERE[4], udp(there, 1, INNER_HERE[4], 2, bytes(size - 28)))
        text = pad(packet)
        return ethernet(outer(data_message(RECEIVE_KEY, LOCAL_INDEX + session, counter, text)))


KINDS = (
    Kind("seal_xdp", _HEADERS, "tx_packets"),
    Kind("open_xdp", -_HEADERS, "rx_packets"),
)


def compare(rounds: int, quick: bool, file: TextIO) -> str:
    """Writes JSON lines to the file; returns a table. LabError, BpfError."""
    rows = []
    recorded = Recorded()
    try:
        with tunnel() as loaded:
            for kind in KINDS:
                for size in SIZES:
                    measured = _Measured(recorded, loaded, kind, size, 200 if quick else FRAMES)
                    found: dict[str, list[float]] = defaultdict(list)
                    for number in range(1, rounds + 1):
                        for how in HOWS:
                            spent = measured.cost(how)
                            found[how].append(spent)
                            line = {"program": kind.program, "size": size, "sessions": how}
                            emit(file, line | {"round": number, "ns": round(spent, 1)})
                    rows.append(_row(kind, size, measured.cpus, found))
    finally:
        recorded.close()
    heading = ["program, inner bytes", *(f"{how}, ns" for how in HOWS)]
    heading += [f"{how}: packets a second to one CPU" for how in HOWS[1:]]
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(kind: Kind, size: int, cpus: int, found: dict[str, list[float]]) -> list[str]:
    cells = [f"{kind.program}, {size}"]
    for how in HOWS:
        spent = found[how]
        cells.append(f"{statistics.median(spent):,.0f} ({min(spent):,.0f}..{max(spent):,.0f})")
    for how in HOWS[1:]:
        gains = [cpus * one / all_ for one, all_ in zip(found[HOWS[0]], found[how], strict=True)]
        cells.append(f"{statistics.median(gains):.2f}")
    return cells


class _Measured:
    def __init__(
        self, recorded: Recorded, loaded: Tunnel, kind: Kind, size: int, frames: int
    ) -> None:
        self._recorded = recorded
        self._loaded = loaded
        self._kind = kind
        self.cpus = min(len(os.sched_getaffinity(0)), _MOST_CPUS)
        self._runs = frames // self.cpus
        # Nothing of what is sealed is used up: a frame for each CPU is enough, and is in its cache.
        self._step = 0 if kind.moved > 0 else self.cpus
        count = self._runs * self.cpus if self._step else self.cpus
        self._shared = [kind.frame(size, 0, at) for at in range(count)]
        self._apart = [kind.frame(size, at % self.cpus, at) for at in range(count)]

    def cost(self, how: str) -> float:
        """Nanoseconds for a packet."""
        cpus = 1 if how == HOWS[0] else self.cpus
        self._set_up()
        self._recorded.record(self._apart if how == HOWS[2] else self._shared)
        self._recorded.measure(None)
        making = self._at_once(cpus, _PASS)
        self._recorded.measure(self._loaded.loaded.programs[self._kind.program])
        spent = self._at_once(cpus, retval(self._kind.program, Verdict.GO))
        done = sum(getattr(self._loaded.peer(PEER + at), self._kind.counter) for at in range(cpus))
        if done != cpus * self._runs:
            raise LabError(f"{self._kind.program}: {done} of {cpus * self._runs} packets went on")
        return max(0, spent - making)

    def _set_up(self) -> None:
        self._loaded.set_up()
        self._loaded.set_route(4)
        for at in range(1, self.cpus):
            self._loaded.add_peer(PEER + at, f"10.{5 + at}.0.0/16")
            self._loaded.install(LOCAL_INDEX + at, PEER + at)
            self._loaded.set_endpoint(4, peer=PEER + at)

    def _at_once(self, cpus: int, wanted: int) -> float:
        turns = [(0, 0)] * possible_cpus()
        for at, cpu in enumerate(sorted(os.sched_getaffinity(0))[:cpus]):
            turns[cpu] = (at, self._step)
        self._recorded.rewind(turns, self._kind.moved)
        found: list[int] = []

        def run() -> None:
            found.append(self._recorded.run(self._shared[0], self._runs, wanted))

        at_once([partial(run) for _ in range(cpus)])
        return statistics.mean(found)
