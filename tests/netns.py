"""Network namespaces for tests: made, used and removed, whatever happens in between.

Only the network namespace is entered (`ip netns exec` would hide /sys/fs/bpf). Names are unique, so
tests may run twice at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace under /run/netns."""

    name: str

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    def command(self, *arguments: str) -> list[str]:
        """The command that runs `arguments` in it, for subprocess."""
        return ["nsenter", f"--net={self.path}", *arguments]

    def run(self, *arguments: str, check: bool = True) -> str:
        """Runs a command in it; returns its output. RuntimeError with what it said."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=60)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout}")
        return done.stdout

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function in a thread that is in it; sockets and threads made there stay."""
        results: list[T] = []
        errors: list[BaseException] = []

        def inside() -> None:
            try:
                self.enter()
                results.append(function(*args, **kwargs))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def enter(self) -> None:
        """Moves the calling thread into it, for good."""
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.setns(fd, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {self.name}")
        finally:
            os.close(fd)

    def ifindex(self, device: str) -> int:
        return int(self.run("cat", f"/proc/net/dev_snmp6/{device}").split()[1])


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A fresh one, with its loopback up. Removed at the end, and with it the devices in it."""
    ns = Namespace(f"ev{secrets.token_hex(4)}")
    _ip("netns", "add", ns.name)
    try:
        ns.run("ip", "link", "set", "lo", "up")
        yield ns
    finally:
        subprocess.run(["ip", "netns", "del", ns.name], check=False)


def veth(one: Namespace, other: Namespace, device: str = "under0", *extra: str) -> None:
    """A veth pair between two namespaces, called `device` in both and up; `extra` goes to `ip
    link add` for both ends (numtxqueues 2, say). It is removed with either namespace."""
    _ip(
        "link", "add", device, "netns", one.name, *extra,
        "type", "veth", "peer", "name", device, "netns", other.name, *extra,
    )  # fmt: skip
    for ns in (one, other):
        ns.run("sysctl", "-qw", f"net.ipv6.conf.{device}.accept_dad=0")
        ns.run("ip", "link", "set", device, "up")


def address(ns: Namespace, device: str, *addresses: str) -> None:
    """Adds addresses ("192.0.2.1/24"); IPv6 ones are usable at once."""
    for one in addresses:
        nodad = ["nodad"] if ":" in one else []
        ns.run("ip", "address", "add", one, "dev", device, *nodad)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
