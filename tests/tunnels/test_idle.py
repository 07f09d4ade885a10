"""An idle tunnel costs nothing that one could measure."""

from __future__ import annotations

import os
import time
from pathlib import Path

from echo import ping
from tunnels.nodes import INNER, pair

_SECONDS = 5


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_an_idle_tunnel_takes_no_time_and_little_memory() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        processes = one.processes() + other.processes()
        before = cpu_seconds(processes)
        time.sleep(_SECONDS)  # the time that is measured
        assert cpu_seconds(processes) - before < 0.1
        assert all(resident(pid) < 100 << 20 for pid in processes)
