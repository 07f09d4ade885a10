"""CPU time used: by the whole machine, and by each process on it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
"""A second, in /proc."""


def machine() -> float:
    return busy_seconds(Path("/proc/stat").read_text())


def busy_seconds(stat: str) -> float:
    """Since the machine booted, from the text of /proc/stat: user, nice, system, interrupts;
    neither idle nor stolen by the hypervisor."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, stat.split("\n")[0].split()[1:8])
    return (user + nice + system + irq + softirq) / _TICKS


def processes() -> dict[int, tuple[str, float]]:
    """Name, and seconds in user and kernel, by pid."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[int(entry.parent.name)] = process_seconds(entry.read_text())
    return found


def process_seconds(stat: str) -> tuple[str, float]:
    """From the text of /proc/PID/stat; the name may have spaces and brackets in it."""
    before, _, after = stat.rpartition(")")
    user, system = map(int, after.split()[11:13])
    return before.partition("(")[2], (user + system) / _TICKS
