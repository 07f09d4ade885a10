"""Descriptors that outlive a daemon, so that the next one goes on with them: handed over when the
process executes itself anew, and kept meanwhile by a supervisor.

Both as systemd does it: they begin at 3 and LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES tell of them
(sd_listen_fds(3)); a supervisor takes them by its socket NOTIFY_SOCKET (sd_notify(3), FDSTORE).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

_FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@dataclass(frozen=True, slots=True)
class Next:
    """The daemon that follows."""

    arguments: Sequence[str]
    """Of the command `ebpfvpn`."""
    descriptors: Mapping[str, int]
    """By name."""


def inherited() -> dict[str, int]:
    """The descriptors that were handed to this process, by name. Each is told once."""
    pid, count, names = (os.environ.pop(variable, "") for variable in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found = dict(zip(names.split(":"), range(_FIRST, _FIRST + int(count)), strict=False))
    for fd in found.values():
        os.set_inheritable(fd, False)
    return found


def execute(following: Next) -> NoReturn:
    """This process becomes the daemon that follows, maybe in another version."""
    # Copies above all of them first, for one may stand where another is to go.
    end = _FIRST + len(following.descriptors)
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, end) for fd in following.descriptors.values()]
    for i, copy in enumerate(copies):
        os.dup2(copy, _FIRST + i, inheritable=True)
        os.close(copy)
    values = (str(os.getpid()), str(len(copies)), ":".join(following.descriptors))
    os.environ.update(zip(_VARIABLES, values, strict=True))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-Pm", "ebpfvpn", *following.arguments])


def ready(descriptors: Mapping[str, int]) -> None:
    """Tells the supervisor, if there is one, and gives it the descriptors to keep."""
    for name, fd in descriptors.items():
        _notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
        # It must not look at them: a TUN device without a reader is no error.
        _notify(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd)
    _notify("READY=1")


def forget(descriptors: Mapping[str, int]) -> None:
    """The supervisor need not keep them any more."""
    for name in descriptors:
        _notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def _notify(state: str, *fds: int) -> None:
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    # What a supervisor does not hear of it does without.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        socket.send_fds(sock, [state.encode()], list(fds))
