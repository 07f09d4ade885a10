"""What each program of the kernel path costs for one packet, by test runs: outside of devices, with
the caches warm, so these are lower than in traffic, but they hold still.

A program changes its packet, so a run cannot be repeated on it: each has a packet of its own. The
clock's share is subtracted: what a run takes that finds at once that a packet is not ours.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aead_cost import Ebpf, repetitions
from lab import ROOT, LabError

sys.path += [str(ROOT / "daemon"), str(ROOT / "tests")]

from ebpfvpn.kernel.layout import number
from rows import packets
from rows.packets import ethernet, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    PEER,
    PORT,
    TUN,
    Tunnel,
    Verdict,
    marked,
    message,
    outer,
    retval,
    tunnel,
)

SIZES = (92, 1420)
"""Of the inner packets: 64 bytes of UDP payload, and what fills the MTU."""

_STEER_SOURCE = "8.0.0.1"
"""A test run takes the bytes of the source address for the EtherType."""
_STEER_ROOM = bytes(32)
"""That steer makes behind a packet, for padding and tag."""

Frames = Callable[[int, int], bytes]
"""The packet for a program, by inner size and number of the run."""


@dataclass(frozen=True, slots=True)
class Stage:
    program: str
    size: int
    """Of the inner packet."""
    nanoseconds: float
    """Median."""
    aead: float | None
    """The cipher's part."""


def _inner(size: int, source: str, destination: str) -> bytes:
    return packets.ip(source, destination, packets.udp(source, 1, destination, 2, bytes(size - 28)))


def _steered(size: int, _run: int) -> bytes:
    return _inner(size, _STEER_SOURCE, INNER_THERE[4])


def _to_seal(size: int, _run: int) -> bytes:
    return marked(PEER, _inner(size, INNER_HERE[4], INNER_THERE[4]) + _STEER_ROOM)


def _to_open(size: int, run: int) -> bytes:
    text = pad(_inner(size, INNER_THERE[4], INNER_HERE[4]))
    return ethernet(outer(message(run, text)))


def _to_deliver(size: int, _run: int) -> bytes:
    return marked(TUN, _inner(size, INNER_THERE[4], INNER_HERE[4]))


def _not_ours(size: int, _run: int) -> bytes:
    return ethernet(_inner(size, INNER_THERE[4], INNER_HERE[4]))


STAGES: dict[str, Frames] = {
    "steer": _steered,
    "seal_xdp": _to_seal,
    "seal_tc": _to_seal,
    "dispatch": _to_open,  # and open_xdp, by a tail call
    "open_xdp": _to_open,
    "open_tc": _to_open,
    "deliver": _to_deliver,
}


def costs(quick: bool) -> Iterator[Stage]:
    """LabError, BpfError."""
    runs = 20 if quick else 500
    aead = Ebpf()
    try:
        with tunnel() as loaded:
            for size in SIZES:
                clock = _median(loaded, "deliver", _not_ours, size, runs, Verdict.PASS)
                repeat = repetitions(size, quick)
                ciphers = {
                    "seal": statistics.median(aead.seal(_padded(size), repeat) for _ in range(3)),
                    "open": statistics.median(aead.open(_padded(size), repeat) for _ in range(3)),
                }
                ciphers["dispatch"] = ciphers["open"]
                for program, frames in STAGES.items():
                    spent = _median(loaded, program, frames, size, runs, Verdict.GO)
                    cipher = ciphers.get(program.partition("_")[0])
                    yield Stage(program, size, max(0, spent - clock), cipher)
    finally:
        aead.close()


def _padded(size: int) -> int:
    return -(-size // 16) * 16


def _median(
    loaded: Tunnel, program: str, frames: Frames, size: int, runs: int, verdict: Verdict
) -> float:
    loaded.set_up()
    loaded.set_route(4)
    loaded.loaded.maps["ports"].update(number(PORT), number(loaded.loaded.programs["open_xdp"].fd))
    spent = []
    for run in range(runs):
        result = loaded.run(program, frames(size, run))
        if result.retval != retval(program, verdict):
            raise LabError(f"{program}: {size} bytes: returned {result.retval}")
        spent.append(result.duration_ns)
    return statistics.median(spent)
