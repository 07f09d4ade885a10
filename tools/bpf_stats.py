"""How often the kernel ran each program, and for how long (bpf_stats)."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from ctypes import byref, c_uint32, c_uint64, sizeof
from dataclasses import dataclass
from pathlib import Path

from lab import ROOT

sys.path.append(str(ROOT / "daemon"))

from ebpfvpn.kernel.libbpf import call, get_pinned

_RUN_TIME = 0
"""BPF_STATS_RUN_TIME."""


class _Info(ctypes.Structure):
    """struct bpf_prog_info up to the fields that are wanted."""

    _fields_ = (
        ("before", ctypes.c_uint8 * 192),
        ("run_time_ns", c_uint64),
        ("run_cnt", c_uint64),
    )


@dataclass(frozen=True, slots=True)
class Runs:
    count: int
    nanoseconds: int

    def __sub__(self, before: Runs) -> Runs:
        return Runs(self.count - before.count, self.nanoseconds - before.nanoseconds)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """Meanwhile the kernel counts; at some 20 ns a run, which fall on every program of the machine.
    It ends with the process at the latest. BpfError."""
    fd = call("enabling bpf_stats", "bpf_enable_stats", _RUN_TIME)
    try:
        yield
    finally:
        os.close(fd)


def of(pinned: Path) -> Runs:
    """Of a pinned program, since it was loaded. What it tail-calls counts as itself. BpfError."""
    fd = get_pinned(pinned)
    try:
        info = _Info()
        call(f"asking about {pinned}", "bpf_obj_get_info_by_fd", fd, byref(info),
             byref(c_uint32(sizeof(info))))  # fmt: skip
    finally:
        os.close(fd)
    return Runs(info.run_cnt, info.run_time_ns)
