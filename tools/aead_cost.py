"""What ChaCha20-Poly1305 alone costs, by the size of the packet: in eBPF, as the same C compiled
for this machine without vector instructions, and in OpenSSL.

- ebpf: BPF_PROG_TEST_RUN, many repetitions; what a run without the AEAD takes is subtracted.
- native: ebpf/aead.h by clang with FLAGS, called through ctypes once for many repetitions.
- openssl: `cryptography`, one call for each packet; the row of 0 bytes has what the call costs.

They take turns, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import statistics
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import quiet
from bench_run import cpu_model
from lab import ROOT, LabError, run
from results import emit

sys.path.append(str(ROOT / "daemon"))

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ebpfvpn.kernel import objects
from ebpfvpn.kernel.layout import number

SIZES = (0, 64, 128, 256, 512, 1024, 1420, 1500, 8921)
OBJECT = ROOT / "build" / "aead_cost.bpf.o"
SOURCE = ROOT / "tools" / "aead_native.c"
FLAGS = ("-O2", "-mgeneral-regs-only")
"""The second: neither vector nor floating-point registers, which BPF has not either."""

KEY = bytes(range(32))
COUNTER = 1
_JOB = struct.Struct("<32sQII16s")
_FRAME = bytes(64)
_WORK = 400_000
"""Bytes that one measurement passes through the cipher, about; a millisecond."""

Cost = Callable[[int, int], float]
"""Nanoseconds for a packet of a size, by a number of repetitions."""


def repetitions(size: int, quick: bool) -> int:
    return max(2, _WORK // (size + 200) // (20 if quick else 1))


class Ebpf:
    """The programs of ebpf/tests/aead_cost.bpf.c."""

    def __init__(self) -> None:
        if not OBJECT.exists():
            raise LabError(f"{OBJECT} is missing: run make bpf")
        self._loaded = objects.load(OBJECT)
        self.close = self._loaded.close

    def seal(self, size: int, repeat: int) -> float:
        return self._cost("cost_of_seal", size, repeat)

    def open(self, size: int, repeat: int) -> float:
        return self._cost("cost_of_open", size, repeat)

    def _cost(self, program: str, size: int, repeat: int) -> float:
        # Without the AEAD a run is short: only many of them are longer than the clock's step.
        nothing = self._run("cost_of_nothing", size, 20 * repeat)
        return max(0, self._run(program, size, repeat) - nothing)

    def _run(self, program: str, size: int, repeat: int) -> int:
        job = _JOB.pack(KEY, COUNTER, size, 0, b"")
        self._loaded.maps["aead_cost_job"].update(number(0), job)
        result = self._loaded.programs[program].test_run(_FRAME, repeat=repeat, data_size_out=9216)
        if result.retval:
            raise LabError(f"{program}: {size} bytes: returned {result.retval}")
        return result.duration_ns

    def tag(self, size: int) -> bytes:
        """Of so many zero bytes: it must be the cipher that is measured."""
        self._run("cost_of_seal", size, 1)
        job = self._loaded.maps["aead_cost_job"].lookup(number(0))
        assert job is not None
        tag: bytes = _JOB.unpack(job)[4]
        return tag


class Native:
    """tools/aead_native.c, compiled now."""

    def __init__(self, directory: Path) -> None:
        target = directory / "aead_native.so"
        include = [f"-I{ROOT / 'ebpf'}", f"-I/usr/include/{platform.machine()}-linux-gnu"]
        run([compiler(), *FLAGS, "-fPIC", "-shared", *include, str(SOURCE), "-o", str(target)],
            timeout=60)  # fmt: skip
        self._crypt = ctypes.CDLL(str(target)).aead_native
        self._crypt.restype = ctypes.c_longlong
        self._tag = ctypes.create_string_buffer(16)

    def seal(self, size: int, repeat: int) -> float:
        return self._cost(size, repeat, 0)

    def open(self, size: int, repeat: int) -> float:
        return self._cost(size, repeat, 1)

    def _cost(self, size: int, repeat: int, opens: int) -> float:
        text = ctypes.create_string_buffer(size + 1)
        spent: int = self._crypt(
            text, ctypes.c_uint32(size), KEY, ctypes.c_uint64(COUNTER), opens, repeat, self._tag
        )
        if spent < 0:
            raise LabError(f"aead_native: {size} bytes: failed")
        return spent / repeat

    def tag(self, size: int) -> bytes:
        self.seal(size, 1)
        return self._tag.raw


def compiler() -> str:
    found = (shutil.which(f"clang-{version}") for version in range(30, 15, -1))
    clang = next(filter(None, found), shutil.which("clang"))
    if clang is None:
        raise LabError("no clang here: run tools/install test")
    return clang


class Openssl:
    def __init__(self) -> None:
        self._aead = ChaCha20Poly1305(KEY)
        self._nonce = struct.pack("<4xQ", COUNTER)

    def seal(self, size: int, repeat: int) -> float:
        return self._cost(self._aead.encrypt, bytes(size), repeat)

    def open(self, size: int, repeat: int) -> float:
        sealed = self._aead.encrypt(self._nonce, bytes(size), None)
        return self._cost(self._aead.decrypt, sealed, repeat)

    def _cost(
        self, crypt: Callable[[bytes, bytes, None], bytes], text: bytes, repeat: int
    ) -> float:
        nonce = self._nonce
        before = time.perf_counter_ns()
        for _ in range(repeat):
            crypt(nonce, text, None)
        return (time.perf_counter_ns() - before) / repeat

    def tag(self, size: int) -> bytes:
        return self._aead.encrypt(self._nonce, bytes(size), None)[size:]


def check(*implementations: Ebpf | Native | Openssl) -> None:
    """All must give the same tags. LabError."""
    for size in SIZES:
        tags = {one.tag(size) for one in implementations}
        if len(tags) != 1:
            raise LabError(f"the tags of {size} bytes are not the same: nothing is measured")


def compare(rounds: int, quick: bool, file: TextIO) -> str:
    """Writes JSON lines to the file; returns a table. LabError."""
    with ExitStack() as stack:
        ebpf = Ebpf()
        stack.callback(ebpf.close)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        native, openssl = Native(directory), Openssl()
        check(ebpf, native, openssl)
        costs: dict[str, Cost] = {
            "ebpf seal": ebpf.seal,
            "ebpf open": ebpf.open,
            "native seal": native.seal,
            "native open": native.open,
            "openssl seal": openssl.seal,
            "openssl open": openssl.open,
        }
        seen = quiet.before_run(quick)
        header = {"cpu": cpu_model(), "kernel": platform.release(), "flags": [compiler(), *FLAGS]}
        emit(file, {**header, "quiet": seen.quiet, "busy_cpus": round(seen.cpus, 2)})
        found: dict[tuple[str, int], list[float]] = defaultdict(list)
        for number_ in range(1, rounds + 1):
            for size in SIZES:
                for name, cost in costs.items():
                    spent = cost(size, repetitions(size, quick))
                    found[name, size].append(spent)
                    line = {"aead": name, "size": size, "round": number_, "ns": round(spent, 1)}
                    emit(file, line)
    return markdown(list(costs), found)


def markdown(names: list[str], found: dict[tuple[str, int], list[float]]) -> str:
    """Medians in ns, with the least and the greatest."""
    lines = [f"| bytes | {' | '.join(f'{name}, ns' for name in names)} |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for size in SIZES:
        cells = []
        for name in names:
            spent = found[name, size]
            cells.append(f"{statistics.median(spent):,.0f} ({min(spent):,.0f}..{max(spent):,.0f})")
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)
