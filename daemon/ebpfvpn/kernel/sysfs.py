"""Attributes of network devices in sysfs.

/sys/class/net shows the devices of the network namespace that sysfs was mounted from, which need
not be this thread's. So it is mounted once more, for one thread and as long as that lives.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_SYS = "/sys"

T = TypeVar("T")


def set_attribute(device: str, attribute: str, value: str) -> None:
    """Of a device in the network namespace of this thread. OSError."""
    within(lambda devices: (devices / device / attribute).write_text(value))


def within(function: Callable[[Path], T]) -> T:
    """Calls it, in another thread, with the directory that has a directory for each device in the
    network namespace of this one. It sees no other part of /sys. OSError."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_call, function).result()


def _call(function: Callable[[Path], T]) -> T:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_FS | _CLONE_NEWNS), "a mount namespace")
    _check(libc.mount(None, b"/", None, _MS_REC_PRIVATE, None), "private mounts")
    _check(libc.mount(b"sysfs", os.fsencode(_SYS), b"sysfs", 0, None), "mounting sysfs")
    return function(Path(_SYS, "class/net"))


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
