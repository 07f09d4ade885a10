"""The TUN device: a file descriptor of inner IP packets, each behind a virtio-net header.

The device can outlive the process, so that packets go on while no daemon runs, until it is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Self

from ebpfvpn import virtio_net

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_FLAGS = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
_CHECKSUM, _TSO4, _TSO6, _TSO_ECN, _USO4, _USO6 = 1, 2, 4, 8, 32, 64  # TUN_F_*
_TSO = _CHECKSUM | _TSO4 | _TSO6 | _TSO_ECN
_REQUEST = struct.Struct("16sH22x")
_PLAIN = bytes(virtio_net.LENGTH)
_NAME_LENGTH = 15


class TunError(Exception):
    """The device cannot be had; the text is one line for the operator."""


def alias(name: str) -> str:
    """By which the TUN device of the tunnel NAME is known as ours (`ip link` shows it)."""
    return f"ebpfvpn {name}"


class Tun:
    """In the network namespace of the thread that makes it."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name
        self.ifindex = socket.if_nametoindex(name)

    @classmethod
    def create(cls, name: str) -> Self:
        """A new device, which is gone when it is closed, until `persist`. Raises TunError: no
        /dev/net/tun, no privilege, or a device of that name exists."""
        if not 0 < len(os.fsencode(name)) <= _NAME_LENGTH:
            raise TunError(f"{name!r} is no device name: 1 to {_NAME_LENGTH} bytes")
        return cls(_open(name, _FLAGS | _IFF_TUN_EXCL), name)

    @classmethod
    def attach(cls, name: str) -> Self:
        """The device that an earlier daemon left. Raises TunError: somebody has it."""
        return cls(_open(name, _FLAGS), name)

    @classmethod
    def inherit(cls, fd: int, name: str) -> Self | None:
        """As `attach`, by its descriptor, which was kept open. None: it is another device's."""
        request = bytearray(_REQUEST.size)
        try:
            fcntl.ioctl(fd, _TUNGETIFF, request)
        except OSError:
            return None
        found, flags = _REQUEST.unpack(request)
        if found.rstrip(b"\0") != os.fsencode(name) or not flags & _IFF_VNET_HDR:
            return None
        os.set_blocking(fd, False)
        return cls(fd, name)

    def persist(self, on: bool = True) -> None:
        """Whether it is there until it is deleted; else it goes with its last descriptor. Nothing
        happens if it is deleted."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _TUNSETPERSIST, int(on))

    def offload(self, on: bool) -> bool:
        """Whether packets may come as the stack has them: many of a TCP or UDP flow in one, and
        without checksums. Returns whether the kernel knows this of UDP too (since Linux 6.2). One
        that knows nothing of it gives each packet by itself."""
        for offloads in (_TSO | _USO4 | _USO6, _TSO) if on else (0,):
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, offloads)
                return bool(offloads & _USO4)
        return False

    def fileno(self) -> int:
        return self._fd

    def read_into(self, buffer: bytearray) -> int:
        """The next packet, behind its virtio-net header: how many bytes these are together; 0:
        there is none now. `buffer` has virtio_net.MOST bytes."""
        try:
            return os.readv(self._fd, (buffer,))
        except BlockingIOError:
            return 0

    def write(self, packet: bytes) -> bool:
        """Gives an IP packet to the stack. False: the kernel did not take it (the device is
        down, say)."""
        return self.write_parts((_PLAIN, packet))

    def write_parts(self, parts: Sequence[bytes | memoryview]) -> bool:
        """As `write`, a packet with its virtio-net header, in at most 1,024 parts."""
        try:
            os.writev(self._fd, parts)
        except OSError:
            return False
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1


def _open(name: str, flags: int) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise TunError(f"cannot open /dev/net/tun: {error.strerror}") from None
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _REQUEST.pack(os.fsencode(name), flags))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EBUSY and not flags & _IFF_TUN_EXCL:
            raise TunError(f"the TUN device {name} is held by another process") from None
        if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
            raise TunError(f"a device {name} exists already") from None
        raise TunError(f"cannot create the TUN device {name}: {error.strerror}") from None
    return fd
