"""The TUN device: a file descriptor of inner IP packets."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_TUN_EXCL = 0x8000
_MAX_PACKET = 65535
_NAME_LENGTH = 15


class TunError(Exception):
    """The device cannot be made; the text is one line for the operator."""


class Tun:
    """A TUN device that lives as long as this object; in the network namespace of the thread
    that made it."""

    def __init__(self, name: str) -> None:
        """Raises TunError: no /dev/net/tun, no privilege, or a device of that name exists."""
        if not 0 < len(os.fsencode(name)) <= _NAME_LENGTH:
            raise TunError(f"{name!r} is no device name: 1 to {_NAME_LENGTH} bytes")
        self.name = name
        try:
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise TunError(f"cannot open /dev/net/tun: {error.strerror}") from None
        request = struct.pack("16sH22x", os.fsencode(name), _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL)
        try:
            fcntl.ioctl(self._fd, _TUNSETIFF, request)
        except OSError as error:
            os.close(self._fd)
            if error.errno in (errno.EBUSY, errno.EEXIST, errno.EINVAL):
                raise TunError(f"a device {name} exists already") from None
            raise TunError(f"cannot create the TUN device {name}: {error.strerror}") from None
        self.ifindex = socket.if_nametoindex(name)

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes | None:
        """The next IP packet; None: there is none now."""
        try:
            return os.read(self._fd, _MAX_PACKET)
        except BlockingIOError:
            return None

    def write(self, packet: bytes) -> bool:
        """Gives an IP packet to the stack. False: the kernel did not take it (the device is
        down, say)."""
        try:
            os.write(self._fd, packet)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Removes the device."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1
