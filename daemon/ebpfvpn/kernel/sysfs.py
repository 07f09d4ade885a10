"""Attributes of network devices in sysfs.

/sys/class/net shows the devices of the network namespace that sysfs was mounted from, which need
not be this thread's. So it is mounted once more, for one thread and as long as that lives.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_MS_REC_PRIVATE = 0x4000 | 0x40000
_SYS = "/sys"


def set_attribute(device: str, attribute: str, value: str) -> None:
    """Of a device in the network namespace of this thread. OSError."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_set, device, attribute, value).result()


def _set(device: str, attribute: str, value: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_CLONE_FS | _CLONE_NEWNS), "a mount namespace")
    _check(libc.mount(None, b"/", None, _MS_REC_PRIVATE, None), "private mounts")
    _check(libc.mount(b"sysfs", os.fsencode(_SYS), b"sysfs", 0, None), "mounting sysfs")
    (Path(_SYS) / "class/net" / device / attribute).write_text(value)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
