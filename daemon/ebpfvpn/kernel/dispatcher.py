"""The dispatcher of a device: its one XDP program, which calls `open` of the tunnel whose port a
message has. It is pinned in the device's directory and belongs to the tunnels there together; the
caller holds the devices lock. A directory `port-N` says that port N has a program, which costs
65,536 look-ups to find out from the map."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import TypeVar

from ebpfvpn.kernel import hooks, layout, objects
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.objects import Object
from ebpfvpn.kernel.program import Program, uses

OBJECT = objects.BPF / "dispatch.bpf.o"
_PROGRAM = "dispatch"
_PORTS = "ports"
_CONFIG = "dispatch_config"
_PORT = "port-"

T = TypeVar("T", Program, Map)


def attached_mode(directory: Path, ifindex: int) -> int:
    """hooks.XDP_NATIVE or XDP_GENERIC; 0: there is none (what is pinned for a device that had the
    same number is removed)."""
    ports = _pinned(Map, directory / _PORTS)
    if ports is not None:
        for mode in (hooks.XDP_NATIVE, hooks.XDP_GENERIC):
            if uses(hooks.xdp_program_id(ifindex, mode), ports.id):
                return mode
        remove(directory, ifindex)
    return 0


def create(directory: Path, ifindex: int, mode: int, mark: bytes) -> None:
    """Loads, pins and attaches it; undone when it fails. BpfError."""
    loaded = objects.load(OBJECT, pin_root=directory)
    try:
        config = loaded.maps[_CONFIG]
        config.update(layout.number(0), mark.ljust(config.value_size, b"\0"))
        _attach(loaded, directory, ifindex, mode)
    except BpfError:
        remove(directory, ifindex)
        raise
    finally:
        loaded.close()


def renew(directory: Path, ifindex: int, mode: int) -> None:
    """Puts the program of this version in the place of another's, which stays where it cannot."""
    with contextlib.suppress(BpfError):
        loaded = objects.load(OBJECT, pin_root=directory)
        try:
            pinned = _pinned(Program, directory / _PROGRAM)
            if pinned is None or pinned.tag != loaded.programs[_PROGRAM].tag:
                _attach(loaded, directory, ifindex, mode)
        finally:
            loaded.close()


def _attach(loaded: Object, directory: Path, ifindex: int, mode: int) -> None:
    program = loaded.programs[_PROGRAM]
    hooks.attach_xdp(ifindex, program, mode, loaded.maps[_PORTS])
    program.pin(directory / _PROGRAM)


def remove(directory: Path, ifindex: int) -> None:
    """Detaches it where it is attached and unpins it."""
    ports = _pinned(Map, directory / _PORTS)
    if ports is not None:
        for mode in (hooks.XDP_NATIVE, hooks.XDP_GENERIC):
            hooks.detach_xdp(ifindex, mode, ports)
    for name in (_PROGRAM, _PORTS, _CONFIG):
        (directory / name).unlink(missing_ok=True)


def set_port(directory: Path, port: int, program: Program) -> None:
    """From now on `program` gets the messages to this UDP port."""
    (directory / f"{_PORT}{port}").mkdir(exist_ok=True)
    Map.pinned(directory / _PORTS).update(layout.number(port), layout.number(program.fd))


def unset_port(directory: Path, port: int, ours: Map) -> None:
    """If its program uses the map `ours`, or if there is none."""
    ports = _pinned(Map, directory / _PORTS)
    if ports is None:
        return
    program = layout.from_number(ports.lookup(layout.number(port)) or bytes(4))
    if program and not uses(program, ours.id):
        return
    if program:
        ports.delete(layout.number(port))
    # Also if whoever deleted the program, or was about to set it, could not go on.
    with contextlib.suppress(FileNotFoundError):
        (directory / f"{_PORT}{port}").rmdir()


def in_use(directory: Path) -> bool:
    """Whether a port has a program."""
    return any(directory.glob(f"{_PORT}*"))


def _pinned(kind: type[T], path: Path) -> T | None:
    try:
        return kind.pinned(path)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
