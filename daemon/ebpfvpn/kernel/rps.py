"""Receive packet steering (RPS): what comes by a device's one receive queue is shared among all
CPUs, by outer addresses and ports. It lies behind native XDP and before tc. See
Documentation/networking/scaling.rst of the kernel.

A device's directory on bpffs says what tunnels did, for those of all processes:

    @NETNS-IFINDEX/rps-MASK/         a tunnel wrote this mask of CPUs where none was
    @NETNS-IFINDEX/rps_by-MARKER/    a tunnel needs that (MARKER: as attach.py has it)

The caller holds the devices lock.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
from pathlib import Path

from ebpfvpn.kernel import sysfs

WRITTEN = "rps-"
_NEEDED = "rps_by-"
_QUEUE, _MASK = "queues/rx-0", "rps_cpus"
_ONLINE = Path("/sys/devices/system/cpu/online")
_GROUP = 8
"""Hexadecimal digits of a mask between two commas."""


def share(directory: Path, device: str, marker: str) -> bool:
    """Whether RPS shares the device's packets now, for the tunnel of this marker: not where it has
    several receive queues, or the machine one CPU. A mask that somebody else wrote stays. OSError.
    """
    cpus = online(_ONLINE.read_text())
    found = sysfs.within(functools.partial(_one_queue, device))
    if found is None or cpus.bit_count() == 1:
        return False
    (directory / f"{_NEEDED}{marker}").mkdir(exist_ok=True)
    if found == 0:
        # Before it is written: whoever dies in between is followed by one who knows.
        _note(directory, cpus)
        # The kernel leaves isolated CPUs out.
        _note(directory, sysfs.within(functools.partial(_write, device, cpus)))
    return True


def _one_queue(device: str, devices: Path) -> int | None:
    """The mask of its receive queue; None: it has several."""
    queues = list((devices / device / "queues").glob("rx-*"))
    return parse((queues[0] / _MASK).read_text()) if len(queues) == 1 else None


def _write(device: str, cpus: int, devices: Path) -> int:
    """Returns what the kernel made of it."""
    mask = devices / device / _QUEUE / _MASK
    mask.write_text(text(cpus))
    return parse(mask.read_text())


def stop(directory: Path, ifindex: int, marker: str) -> None:
    """The tunnel does not need it. With the last one the mask goes that a tunnel wrote, unless
    somebody has changed it. OSError."""
    with contextlib.suppress(FileNotFoundError):
        (directory / f"{_NEEDED}{marker}").rmdir()
    if any(directory.glob(f"{_NEEDED}*")):
        return
    for note in directory.glob(f"{WRITTEN}*"):
        written = int(note.name.removeprefix(WRITTEN), 16)
        sysfs.within(functools.partial(_put_back, ifindex, written))
        note.rmdir()


def _put_back(ifindex: int, written: int, devices: Path) -> None:
    """Nothing happens if the device is gone."""
    try:
        mask = devices / socket.if_indextoname(ifindex) / _QUEUE / _MASK
        if parse(mask.read_text()) == written:
            mask.write_text("0")
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT, errno.ENODEV):
            raise


def _note(directory: Path, cpus: int) -> None:
    name = f"{WRITTEN}{cpus:x}"
    (directory / name).mkdir(exist_ok=True)
    for note in directory.glob(f"{WRITTEN}*"):
        if note.name != name:
            note.rmdir()


def online(cpus: str) -> int:
    """The mask of a list like "0-3,8"."""
    mask = 0
    for span in cpus.strip().split(","):
        first, _, last = span.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            mask |= 1 << cpu
    return mask


def parse(mask: str) -> int:
    return int(mask.replace(",", ""), 16)


def text(mask: int) -> str:
    """As the kernel reads it: in groups of 32 bits."""
    digits = f"{mask:x}"
    digits = digits.zfill(-(-len(digits) // _GROUP) * _GROUP)
    return ",".join(digits[i : i + _GROUP] for i in range(0, len(digits), _GROUP))
