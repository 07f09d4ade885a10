"""BTF: the fields of structures, by their names, in object files and in maps that are loaded."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from ctypes import c_uint32, c_void_p
from pathlib import Path
from typing import NamedTuple

from ebpfvpn.kernel.libbpf import call, call_pointer, library
from ebpfvpn.kernel.map import Map

_KIND_STRUCT = 4


class _Type(ctypes.Structure):
    _fields_ = (("name", c_uint32), ("info", c_uint32), ("size", c_uint32))


class _Member(ctypes.Structure):
    _fields_ = (("name", c_uint32), ("type", c_uint32), ("offset", c_uint32))


class Field(NamedTuple):
    """Of a structure."""

    offset: int
    size: int

    def of(self, value: bytes) -> bytes:
        return value[self.offset : self.offset + self.size]


def field_names(path: Path, structure: str) -> list[str]:
    """The fields of a structure in an object file, in their order. BpfError."""
    what = f"reading the BTF of {path}"
    with _freed(call_pointer(what, "btf__parse", os.fsencode(path), None)) as btf:
        identity = call(f"finding {structure} in {path}", "btf__find_by_name_kind", btf,
                        structure.encode(), _KIND_STRUCT)  # fmt: skip
        return list(_fields(btf, identity))


def kernel_fields(structure: str) -> list[str]:
    """The fields of a structure of the running kernel. BpfError: it has no such structure, or no
    BTF."""
    with _freed(call_pointer("reading the kernel's BTF", "btf__load_vmlinux_btf")) as btf:
        identity = call(f"finding {structure}", "btf__find_by_name_kind", btf,
                        structure.encode(), _KIND_STRUCT)  # fmt: skip
        return list(_fields(btf, identity))


def value_fields(map_: Map) -> dict[str, Field]:
    """The fields of a map's values, as its own BTF has them: it may be that of another version.
    BpfError; KeyError if the map has no BTF."""
    if not map_.btf_id:
        raise KeyError(f"{map_.name} has no BTF")
    what = f"reading the BTF of {map_.name}"
    with _freed(call_pointer(what, "btf__load_from_kernel_by_id", map_.btf_id)) as btf:
        return _fields(btf, map_.btf_value_type)


@contextlib.contextmanager
def _freed(btf: int) -> Iterator[c_void_p]:
    handle = c_void_p(btf)
    try:
        yield handle
    finally:
        library().btf__free(handle)


def _fields(btf: c_void_p, identity: int) -> dict[str, Field]:
    address = call_pointer("reading BTF", "btf__type_by_id", btf, identity)
    count = _Type.from_address(address).info & 0xFFFF
    members = (_Member * count).from_address(address + ctypes.sizeof(_Type))
    name = library().btf__name_by_offset
    return {
        name(btf, member.name).decode(): Field(
            member.offset // 8, call("reading BTF", "btf__resolve_size", btf, member.type)
        )
        for member in members
    }
