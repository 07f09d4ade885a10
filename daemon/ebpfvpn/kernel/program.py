"""A loaded program: what it is, and test runs."""

from __future__ import annotations

import ctypes
import errno
import functools
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from dataclasses import dataclass
from pathlib import Path

from ebpfvpn.kernel.libbpf import BpfError, Descriptor, call, get_pinned


class _TestRunOptions(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_char_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class _ProgramInfo(ctypes.Structure):
    """The first fields of struct bpf_prog_info."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
    )


_MOST_MAPS = 64  # the kernel's MAX_USED_MAPS


@dataclass(frozen=True, slots=True)
class Result:
    """Of one test run."""

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int
    """Average of the repetitions."""


class Program(Descriptor):
    """A loaded program."""

    @classmethod
    def pinned(cls, path: Path) -> Program:
        """BpfError with ENOENT where nothing is pinned."""
        return cls(get_pinned(path), path.name)

    @classmethod
    def by_id(cls, number: int) -> Program:
        """One that is loaded. BpfError with ENOENT where none has this id."""
        return cls(call(f"opening program {number}", "bpf_prog_get_fd_by_id", number), str(number))

    def map_ids(self) -> set[int]:
        """Of the maps that it uses."""
        ids = (c_uint32 * _MOST_MAPS)()
        info = _ProgramInfo(nr_map_ids=_MOST_MAPS, map_ids=ctypes.addressof(ids))
        self._ask(info)
        return set(ids[: info.nr_map_ids])

    def _ask(self, info: _ProgramInfo) -> None:
        call(f"asking about {self.name}", "bpf_obj_get_info_by_fd", self.fd, byref(info),
             byref(c_uint32(sizeof(info))))  # fmt: skip

    @functools.cached_property
    def _info(self) -> _ProgramInfo:
        info = _ProgramInfo()
        self._ask(info)
        return info

    @property
    def id(self) -> int:
        return int(self._info.id)

    @property
    def tag(self) -> str:
        """A hash of the instructions."""
        return bytes(self._info.tag).hex()

    def test_run(
        self,
        data: bytes,
        ctx: bytes | None = None,
        *,
        repeat: int = 1,
        data_size_out: int | None = None,
    ) -> Result:
        """Runs it on a packet, with `ctx` a struct xdp_md or __sk_buff (BPF_PROG_TEST_RUN)."""
        out = ctypes.create_string_buffer(
            len(data) + 1024 if data_size_out is None else data_size_out
        )
        ctx_size = len(ctx) if ctx else 0
        ctx_in = ctypes.create_string_buffer(ctx, ctx_size) if ctx else None
        ctx_out = ctypes.create_string_buffer(ctx_size) if ctx else None
        options = _TestRunOptions(
            sz=sizeof(_TestRunOptions),
            data_in=data,
            data_out=ctypes.addressof(out),
            data_size_in=len(data),
            data_size_out=len(out),
            ctx_in=ctypes.addressof(ctx_in) if ctx_in else None,
            ctx_out=ctypes.addressof(ctx_out) if ctx_out else None,
            ctx_size_in=ctx_size,
            ctx_size_out=ctx_size,
            repeat=repeat,
        )
        call(f"running {self.name}", "bpf_prog_test_run_opts", self.fd, byref(options))
        ctx_after = ctx_out.raw[: options.ctx_size_out] if ctx_out else b""
        return Result(options.retval, out.raw[: options.data_size_out], ctx_after, options.duration)

    def syscall(self, ctx: ctypes.Structure) -> int:
        """Runs a BPF_PROG_TYPE_SYSCALL program, which may write to `ctx`; returns its result."""
        options = _TestRunOptions(
            sz=sizeof(_TestRunOptions), ctx_in=ctypes.addressof(ctx), ctx_size_in=sizeof(ctx)
        )
        call(f"running {self.name}", "bpf_prog_test_run_opts", self.fd, byref(options))
        return ctypes.c_int32(options.retval).value


def uses(program_id: int, map_id: int) -> bool:
    """Whether a loaded program uses a map: so a tunnel knows its own, whichever start of the
    daemon attached them. False for id 0, "none"."""
    if not program_id:
        return False
    try:
        program = Program.by_id(program_id)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    try:
        return map_id in program.map_ids()
    finally:
        program.close()
