"""Whether the machine is quiet: what else runs on it changes every figure."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import cpu_time

QUIET = 0.1
"""CPUs that may be busy: a tenth of one."""
LOOK = 1.0
"""Seconds over which one looks."""
PATIENCE = 30.0
"""Seconds for which one waits for a quiet machine."""
_NAMED = 3
_WORTH_NAMING = 0.02

Processes = dict[int, tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Activity:
    cpus: float
    """How many are busy."""
    processes: tuple[tuple[str, float], ...] = ()
    """The busiest, and how many CPUs each takes."""

    @property
    def quiet(self) -> bool:
        return self.cpus <= QUIET

    def __str__(self) -> str:
        named = ", ".join(f"{name} {cpus:.2f}" for name, cpus in self.processes)
        return f"{self.cpus:.2f} CPUs busy{f' ({named})' if named else ''}"


def look(seconds: float = LOOK) -> Activity:
    """Watches the machine for so long."""
    total, before, start = cpu_time.machine(), cpu_time.processes(), time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - start
    return Activity(
        (cpu_time.machine() - total) / passed, busiest(before, cpu_time.processes(), passed)
    )


def busiest(before: Processes, after: Processes, seconds: float) -> tuple[tuple[str, float], ...]:
    used = [
        (name, (now - before.get(pid, (name, 0.0))[1]) / seconds)
        for pid, (name, now) in after.items()
    ]
    worth = sorted((item for item in used if item[1] >= _WORTH_NAMING), key=lambda item: -item[1])
    return tuple(worth[:_NAMED])


def before_run(quick: bool) -> Activity:
    """How the machine is: quiet, if it can be had. `quick`: without waiting for that."""
    return look(LOOK / 10) if quick else wait(PATIENCE, _say)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def wait(
    patience: float, say: Callable[[str], object], look: Callable[[], Activity] = look
) -> Activity:
    """Waits until the machine is quiet, `patience` seconds at most. Returns what was seen last, and
    says what is in the way."""
    deadline = time.monotonic() + patience
    said = False
    while not (seen := look()).quiet and time.monotonic() < deadline:
        if not said:
            say(f"waiting for a quiet machine: {seen}")
        said = True
    if not seen.quiet:
        say(f"the machine is not quiet, figures may be off: {seen}")
    return seen
