"""Whether the machine is quiet, and who is to blame."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cpu_time
import lab
import quiet
from quiet import Activity

BUSY = Activity(1.5, (("gcc", 1.2),))
QUIET = Activity(0.05)


def test_idle_and_stolen_time_is_not_busy() -> None:
    assert cpu_time.busy_seconds("cpu  100 20 300 999 999 4 50 999 0 0\ncpu0 1\n") == 4.74


def test_name_with_brackets_and_spaces() -> None:
    stat = "77 (a ) b (c) S 1 77 77 0 -1 4194304 10 0 0 0 150 50 0 0 20 0 1 0 5"
    assert cpu_time.process_seconds(stat) == ("a ) b (c", 2.0)


def test_busiest_come_first_and_new_ones_count() -> None:
    before = {1: ("init", 5.0), 2: ("make", 1.0), 3: ("idle", 7.0)}
    after = {1: ("init", 5.1), 2: ("make", 2.0), 3: ("idle", 7.0), 4: ("cc1", 1.9)}
    found = quiet.busiest(before, after, seconds=2)
    assert [(name, round(cpus, 3)) for name, cpus in found] == [
        ("cc1", 0.95),
        ("make", 0.5),
        ("init", 0.05),
    ]


def test_waits_until_it_is_quiet_and_says_so_once() -> None:
    said: list[str] = []
    looks = iter([BUSY, BUSY, QUIET])
    assert quiet.wait(60, said.append, lambda: next(looks)) == QUIET
    assert said == ["waiting for a quiet machine: 1.50 CPUs busy (gcc 1.20)"]


def test_patience_ends() -> None:
    said: list[str] = []
    assert quiet.wait(0, said.append, lambda: BUSY) == BUSY
    assert said == ["the machine is not quiet, figures may be off: 1.50 CPUs busy (gcc 1.20)"]


@pytest.mark.timeout(30)
def test_a_busy_process_is_named() -> None:
    loop = subprocess.Popen(
        [sys.executable, "-c", "while True: pass"], stdout=subprocess.PIPE, text=True
    )
    try:
        seen = quiet.look(0.5)
    finally:
        lab.end(loop)
    assert not seen.quiet
    assert seen.processes
    assert seen.processes[0][1] > 0.1
