"""Object files: loaded, and, for a tunnel, pinned."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from ctypes import byref, c_char_p, c_size_t, c_void_p, sizeof
from dataclasses import dataclass, field
from pathlib import Path

from ebpfvpn.datapath import REPLAY_WINDOW, DatapathError
from ebpfvpn.kernel import cpumap, window
from ebpfvpn.kernel.libbpf import VerifierError, call, call_pointer, library, possible_cpus
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.program import Program

BPF = Path(__file__).parent.parent / "bpf"
TC_OBJECT = BPF / "tc.bpf.o"
XDP_OBJECT = BPF / "xdp.bpf.o"


class _OpenOptions(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
    )


@dataclass(slots=True)
class Object:
    """What one object file holds, loaded."""

    programs: dict[str, Program] = field(default_factory=dict)
    maps: dict[str, Map] = field(default_factory=dict)

    def close(self) -> None:
        for descriptor in (*self.programs.values(), *self.maps.values()):
            descriptor.close()


_PER_PEER = {"peers": 1, "endpoints": 1, "routes": 2, "sessions": 7, "keys": 14, "windows": 14}
"""Entries that a peer may need: its old route until the new one is there; previous, current, next
session, three that fade, and one that comes before another goes; besides, the keys that wait to be
wiped."""
_LEAST_ROOM = 64


def load(
    path: Path,
    *,
    pin_root: Path | None = None,
    programs: Collection[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    replay_window: int | None = None,
    cpus: Sequence[int] = (),
) -> Object:
    """Loads an object file: all its programs, or those named. Maps that are pinned by name are
    shared with what is pinned in `pin_root` already, and else pinned there. `sizes`: entries, by
    map, where not the object's own; `replay_window` likewise: packets; `cpus`: those that open
    messages for others. VerifierError, BpfError."""
    options = _OpenOptions(
        sz=sizeof(_OpenOptions), pin_root_path=os.fsencode(pin_root) if pin_root else None
    )
    handle = c_void_p(
        call_pointer(f"opening {path}", "bpf_object__open_file", os.fsencode(path), byref(options))
    )
    try:
        if programs is not None:
            for program in _each(handle, "bpf_object__next_program"):
                wanted = _name(program, "bpf_program__name") in programs
                call("choosing programs", "bpf_program__set_autoload", program,
                     ctypes.c_bool(wanted))  # fmt: skip
        for map_ in _each(handle, "bpf_object__next_map"):
            size = (sizes or {}).get(_name(map_, "bpf_map__name"))
            if size is not None:
                call("sizing maps", "bpf_map__set_max_entries", map_, ctypes.c_uint32(size))
        if replay_window is not None:
            _set_window(handle, replay_window)
        if cpus:
            _set_cpus(handle, cpus)
        call(f"loading {path.name}", "bpf_object__load", handle, error=VerifierError)
        # Our own descriptors outlive libbpf's object, whose memory is not needed any more.
        loaded = Object()
        for program in _each(handle, "bpf_object__next_program"):
            name = _name(program, "bpf_program__name")
            if programs is None or name in programs:
                fd = call(f"finding {name}", "bpf_program__fd", program)
                loaded.programs[name] = Program(os.dup(fd), name)
        for map_ in _each(handle, "bpf_object__next_map"):
            name = _name(map_, "bpf_map__name")
            loaded.maps[name] = Map(os.dup(call(f"finding {name}", "bpf_map__fd", map_)), name)
        return loaded
    finally:
        library().bpf_object__close(handle)


def _set_window(handle: c_void_p, packets: int) -> None:
    what = f"making replay windows of {packets} packets"
    geometry = bytes(window.geometry(packets))
    for map_ in _each(handle, "bpf_object__next_map"):
        name = _name(map_, "bpf_map__name")
        if name == window.MAP:
            size = ctypes.c_uint32(window.ring_bytes(packets))
            call(what, "bpf_map__set_value_size", map_, size)
        elif name == window.CONSTANTS:
            call(what, "bpf_map__set_initial_value", map_, geometry, c_size_t(len(geometry)))


def _set_cpus(handle: c_void_p, cpus: Sequence[int]) -> None:
    what = "choosing CPUs"
    told = cpumap.constants(cpus)
    for map_ in _each(handle, "bpf_object__next_map"):
        if _name(map_, "bpf_map__name") == cpumap.CONSTANTS:
            call(what, "bpf_map__set_initial_value", map_, told, c_size_t(len(told)))


def _each(handle: c_void_p, function: str) -> Iterator[c_void_p]:
    item = getattr(library(), function)(handle, None)
    while item:
        yield c_void_p(item)
        item = getattr(library(), function)(handle, item)


def _name(item: c_void_p, function: str) -> str:
    name: bytes = getattr(library(), function)(item)
    return name.decode()


def load_tunnel(
    directory: Path, *, peers: int, xdp: bool, replay_window: int = REPLAY_WINDOW,
    cpus: Sequence[int] | None = None,
) -> Object:  # fmt: skip
    """Loads tc.bpf.o and, if told, xdp.bpf.o, which share their maps, and pins everything in
    `directory`: maps that are pinned there are used as they are, programs are replaced. New maps
    have room for so many peers: a hash table takes memory for what it may hold;
    `replay_window`: packets; `cpus`: those that open messages for
    others, where not all that may. DatapathError."""
    loaded = Object()
    sizes = {name: _size(directory / name, entries * peers) for name, entries in _PER_PEER.items()}
    sizes[cpumap.MAP] = possible_cpus()
    if cpus is None:
        cpus = cpumap.usable_cpus()
    try:
        for path in (TC_OBJECT, XDP_OBJECT) if xdp else (TC_OBJECT,):
            if not path.exists():
                raise DatapathError(f"{path} is missing: run make bpf")
            part = load(
                path, pin_root=directory, sizes=sizes, replay_window=replay_window, cpus=cpus
            )
            loaded.programs |= part.programs
            # Only what is pinned is shared; constants are not needed.
            for name, map_ in part.maps.items():
                if name in loaded.maps:
                    map_.close()
                else:
                    loaded.maps[name] = map_
        for name, program in loaded.programs.items():
            program.pin(directory / name)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _size(path: Path, wanted: int) -> int:
    if not path.exists():
        return max(wanted, 1)
    pinned = Map.pinned(path)
    try:
        return pinned.max_entries
    finally:
        pinned.close()


def room(peers: int) -> int:
    """For how many peers a new tunnel's maps are made: some may come."""
    return max(2 * peers, _LEAST_ROOM)
