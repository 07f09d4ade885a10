"""libbpf through ctypes: how it is called, and what its failures become.

Works with libbpf.so.1 from 1.1 (Debian 12) on. Every failure is a BpfError with errno, so that a
caller may ask for one kind (`ENOENT`, `EOPNOTSUPP`) and an operator gets one line.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from ebpfvpn.datapath import DatapathError

_PrintFunction = ctypes.CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)
SampleFunction = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)


class BpfError(DatapathError):
    """A call of libbpf or the kernel behind it failed. `errno` is positive."""

    def __init__(self, what: str, code: int, log: str = "") -> None:
        self.errno = code
        self.log = log
        self.reason = _kernel_message(log) or os.strerror(code)
        """Without what was tried."""
        super().__init__(f"{what}: {self.reason}")


class VerifierError(BpfError):
    """The kernel refused a program: the text is the verifier's last word, `log` all it said."""

    def __init__(self, what: str, code: int, log: str) -> None:
        super().__init__(what, code, log)
        self.args = (f"{what}: {_verifier_message(log) or os.strerror(code)}",)


def _kernel_message(log: str) -> str:
    """The extended acknowledgement that libbpf prints when netlink refuses."""
    _, found, rest = log.rpartition("Kernel error message: ")
    return rest.splitlines()[0].strip() if found else ""


def _verifier_message(log: str) -> str:
    """The complaint: the last line before the statistics."""
    before, found, _ = log.partition("\nprocessed ")
    lines = [line for line in before.splitlines() if line and not line.startswith("libbpf:")]
    return lines[-1].strip() if found and lines else ""


class _Printed(threading.local):
    """What libbpf said in this thread since the last call."""

    def __init__(self) -> None:
        self.lines: list[str] = []


_printed = _Printed()


def _print(level: int, text: int, arguments: int) -> int:
    """Keeps what libbpf says (warnings and information, no debugging) for the next error."""
    if level > 1:
        return 0
    libc = ctypes.CDLL(None)
    formatted = c_char_p()
    if libc.vasprintf(byref(formatted), c_void_p(text), c_void_p(arguments)) >= 0:
        _printed.lines.append((formatted.value or b"").decode(errors="replace"))
        libc.free(formatted)
    return 0


_print_callback = _PrintFunction(_print)


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf.so.1, with the result types of what returns pointers. DatapathError without it."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise DatapathError("libbpf.so.1 is not installed: apt install libbpf1") from None
    pointers = {
        "bpf_object__open_file": [c_char_p, c_void_p],
        "bpf_object__next_program": [c_void_p, c_void_p],
        "bpf_object__next_map": [c_void_p, c_void_p],
        "ring_buffer__new": [c_int, SampleFunction, c_void_p, c_void_p],
        "btf__parse": [c_char_p, c_void_p],
        "btf__load_from_kernel_by_id": [c_uint32],
        "btf__load_vmlinux_btf": [],
        "btf__type_by_id": [c_void_p, c_uint32],
        "btf__name_by_offset": [c_void_p, c_uint32],
        "bpf_program__name": [c_void_p],
        "bpf_map__name": [c_void_p],
    }
    for name, arguments in pointers.items():
        function = getattr(lib, name)
        function.argtypes = arguments
        function.restype = c_char_p if "name" in name else c_void_p
    lib.libbpf_set_print.restype = c_void_p
    lib.libbpf_set_print(_print_callback)
    return lib


def call(what: str, function: str, *arguments: Any, error: type[BpfError] = BpfError) -> int:
    """Calls libbpf's `function`, whose negative result becomes `error`."""
    _printed.lines.clear()
    result = getattr(library(), function)(*arguments)
    if result < 0:
        raise error(what, -result, "".join(_printed.lines))
    return int(result)


def call_pointer(what: str, function: str, *arguments: Any) -> int:
    """Calls libbpf's `function`, whose null becomes a BpfError."""
    _printed.lines.clear()
    result = getattr(library(), function)(*arguments)
    if not result:
        raise BpfError(what, ctypes.get_errno(), "".join(_printed.lines))
    return int(result)


@functools.cache
def possible_cpus() -> int:
    return call("counting CPUs", "libbpf_num_possible_cpus")


class Descriptor:
    """A file descriptor of the kernel's BPF, closed with the object."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def pin(self, path: Path) -> None:
        """In the place of what is pinned there, if anything is."""
        draft = path.with_name(f"{path.name}%new")
        draft.unlink(missing_ok=True)
        call(f"pinning {self.name} at {path}", "bpf_obj_pin", self.fd, os.fsencode(draft))
        draft.rename(path)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def get_pinned(path: Path) -> int:
    return call(f"opening {path}", "bpf_obj_get", os.fsencode(path))
