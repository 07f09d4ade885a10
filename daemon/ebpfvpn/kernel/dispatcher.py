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
from ebpfvpn.kernel.libbpf import BpfError, Descriptor
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.objects import Object
from ebpfvpn.kernel.program import Program, uses

OBJECT = objects.BPF / "dispatch.bpf.o"
_PROGRAM = "dispatch"
_PORTS = "ports"
_CONFIG = "dispatch_config"
PINS = (_PROGRAM, _PORTS, _CONFIG)
"""Under these names it is pinned."""
_PORT = "port-"
_MODES = (hooks.XDP_NATIVE, hooks.XDP_GENERIC)

T = TypeVar("T", Program, Map)


def attached_mode(directory: Path, ifindex: int) -> int:
    """hooks.XDP_NATIVE or XDP_GENERIC; 0: there is none."""
    ports = _pinned(Map, directory / _PORTS)
    if ports is not None:
        for mode in _MODES:
            if uses(hooks.xdp_program_id(ifindex, mode), ports.id):
                return mode
    return 0


def create(directory: Path, ifindex: int, mode: int, mark: bytes) -> None:
    """Loads, pins and attaches it; undone when it fails. BpfError. What is pinned still, of one
    that was detached, is gone on with: the ports of tunnels without a daemon are in it."""
    try:
        loaded = objects.load(OBJECT, pin_root=directory)
    except BpfError:
        _unpin(directory)  # another version's, say
        loaded = objects.load(OBJECT, pin_root=directory)
    try:
        config = loaded.maps[_CONFIG]
        config.update(layout.number(0), mark.ljust(config.value_size, b"\0"))
        _attach(loaded, directory, ifindex, mode)
    except BpfError:
        if not in_use(directory):
            _unpin(directory)
        raise
    finally:
        loaded.close()


def pin_again(directory: Path, ifindex: int, mark: bytes) -> None:
    """What was unpinned while it is attached: by `mark`, the machine's secret, it is known as
    ours."""
    if all((directory / name).exists() for name in PINS):
        return
    for mode in _MODES:
        program_id = hooks.xdp_program_id(ifindex, mode)
        if program_id and (found := _parts(program_id, mark)):
            for name, part in found.items():
                part.pin(directory / name)


def _parts(program_id: int, mark: bytes) -> dict[str, Descriptor]:
    """Program and maps, by what they are pinned as; empty: it is none of ours."""
    try:
        program = Program.by_id(program_id)
        maps = {map_.name: map_ for map_ in map(Map.by_id, program.map_ids())}
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return {}  # detached meanwhile
    config = maps.get(_CONFIG)
    if _PORTS not in maps or config is None or config.key_size != len(layout.number(0)):
        return {}
    if not (config.lookup(layout.number(0)) or b"").startswith(mark):
        return {}
    return {_PROGRAM: program, _PORTS: maps[_PORTS], _CONFIG: config}


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
    detach(directory, ifindex)
    _unpin(directory)


def detach(directory: Path, ifindex: int) -> None:
    """Where it is attached; it stays pinned."""
    ports = _pinned(Map, directory / _PORTS)
    if ports is not None:
        for mode in _MODES:
            hooks.detach_xdp(ifindex, mode, ports)


def _unpin(directory: Path) -> None:
    for name in PINS:
        (directory / name).unlink(missing_ok=True)


def ports_map(directory: Path) -> Map:
    """The programs by port. As long as somebody holds it, they stay when its pin is removed.
    BpfError where nothing is pinned."""
    return Map.pinned(directory / _PORTS)


def set_port(directory: Path, port: int, program: Program) -> None:
    """From now on `program` gets the messages to this UDP port."""
    (directory / port_mark(port)).mkdir(exist_ok=True)
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
        (directory / port_mark(port)).rmdir()


def in_use(directory: Path) -> bool:
    """Whether a port has a program."""
    return any(directory.glob(f"{_PORT}*"))


def ports_in_use(directory: Path) -> set[int]:
    return {int(path.name.removeprefix(_PORT)) for path in directory.glob(f"{_PORT}*")}


def port_mark(port: int) -> str:
    """Name of the directory that says that the port has a program."""
    return f"{_PORT}{port}"


def _pinned(kind: type[T], path: Path) -> T | None:
    try:
        return kind.pinned(path)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
