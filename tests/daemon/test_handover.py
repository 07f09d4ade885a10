"""Descriptors for the daemon that follows."""

from __future__ import annotations

import subprocess
import sys

EXECUTES = """
import os, sys
from ebpfvpn import handover
numbers = list(map(int, sys.argv[1].split(",")))
for number in numbers:
    fd = os.memfd_create(str(number))
    os.dup2(fd, number)
    if fd not in numbers:
        os.close(fd)
sys.executable = "/bin/sh"
os.execv = lambda *_: print([os.readlink(f"/proc/self/fd/{3 + i}") for i in range(len(numbers))])
handover.execute(handover.Next([], {str(number): number for number in numbers}))
"""


def test_none_takes_the_place_of_another() -> None:
    for numbers in ([30, 94], [94, 30], [5, 4, 3], [4, 3, 70]):
        done = subprocess.run(
            [sys.executable, "-c", EXECUTES, ",".join(map(str, numbers))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == f"{[f'/memfd:{number} (deleted)' for number in numbers]}\n"
