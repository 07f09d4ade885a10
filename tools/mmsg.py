"""Many datagrams by one system call: sendmmsg(2) and recvmmsg(2) on sockets of the caller's."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from pathlib import Path

BATCH = 64
SLOT = 2048
"""Bytes for each message: a packet of any Ethernet that is not jumbo."""

SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_CONTROL = 32
"""Bytes of a control message with one timespec: length, level and type, seconds, nanoseconds."""
_MSG_DONTWAIT = 0x40
_TRIES = 100

_libc = ctypes.CDLL(None, use_errno=True)


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("iov", ctypes.POINTER(Iovec)),
        ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Mmsghdr(ctypes.Structure):
    _fields_ = (("header", Msghdr), ("length", ctypes.c_uint32))


class _Slots:
    """BATCH messages, each with SLOT bytes of one buffer."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = ctypes.create_string_buffer(BATCH * SLOT)
        self.view = memoryview(self._buffer).cast("B")
        self._vectors = (Iovec * BATCH)()
        self._headers = (Mmsghdr * BATCH)()
        start = ctypes.addressof(self._buffer)
        for i, header in enumerate(self._headers):
            self._vectors[i].base = start + i * SLOT
            self._vectors[i].length = SLOT
            header.header.iov = ctypes.pointer(self._vectors[i])
            header.header.iov_count = 1
        # Attributes of these are quicker to reach than items of the arrays.
        self._vector_list = list(self._vectors)
        self._header_list = list(self._headers)


class Receiver(_Slots):
    """Reads what has arrived, without waiting."""

    def __init__(self, sock: socket.socket, *, timestamps: bool = False) -> None:
        """With `timestamps` the kernel says when each message arrived."""
        super().__init__(sock)
        self._control: ctypes.Array[ctypes.c_char] | None = None
        if timestamps:
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._control = ctypes.create_string_buffer(BATCH * _CONTROL)
            self._times = memoryview(self._control).cast("B").cast("q")
            start = ctypes.addressof(self._control)
            for i, header in enumerate(self._header_list):
                header.header.control = start + i * _CONTROL

    def read(self) -> int:
        """Fills `view`; returns the number of messages. OSError but for EAGAIN and for what an
        ICMP error left on the socket."""
        if self._control is not None:
            for header in self._header_list:
                header.header.control_length = _CONTROL
        descriptor = self._socket.fileno()
        count: int = _libc.recvmmsg(
            descriptor, ctypes.byref(self._headers), BATCH, _MSG_DONTWAIT, None
        )
        if count < 0:
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR, errno.ECONNREFUSED, errno.EHOSTUNREACH):
                raise OSError(number, os.strerror(number))
            return 0
        return count

    def messages(self) -> list[bytes]:
        """Reads, and copies the messages out."""
        count = self.read()
        view = self.view
        found = []
        at = 0
        for header in self._header_list[:count]:
            found.append(view[at : at + header.length].tobytes())
            at += SLOT
        return found

    def times(self, count: int) -> list[int]:
        """When the `count` messages read last arrived, nanoseconds since 1970."""
        words = _CONTROL // 8
        seconds = self._times[2 : count * words : words].tolist()
        rest = self._times[3 : count * words : words].tolist()
        return [s * 1_000_000_000 + ns for s, ns in zip(seconds, rest, strict=True)]


class Sender(_Slots):
    """Sends on a connected socket. What the kernel does not take is counted in `refused`, by the
    name of its error."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.refused: dict[str, int] = {}

    def send(self, messages: list[bytes]) -> None:
        """All of them, however many, unless the kernel refuses some."""
        view, vectors = self.view, self._vector_list
        for start in range(0, len(messages), BATCH):
            batch = messages[start : start + BATCH]
            at = 0
            for message, vector in zip(batch, vectors, strict=False):
                length = len(message)
                view[at : at + length] = message
                vector.length = length
                at += SLOT
            self.send_slots(len(batch))

    def set_length(self, length: int) -> None:
        """Of every slot, for who fills `view` himself."""
        for vector in self._vector_list:
            vector.length = length

    def send_slots(self, count: int) -> None:
        """The first `count` slots, in order."""
        descriptor = self._socket.fileno()
        done = tries = 0
        while done < count:
            sent: int = _libc.sendmmsg(
                descriptor, ctypes.byref(self._headers[done]), count - done, 0
            )
            if sent > 0:
                done += sent
                tries = 0
                continue
            number = ctypes.get_errno()
            tries += 1
            # An ICMP error that came for an earlier message is reported here, once.
            if number in (errno.ECONNREFUSED, errno.EINTR) and tries < _TRIES:
                continue
            name = errno.errorcode.get(number, str(number))
            self.refused[name] = self.refused.get(name, 0) + 1
            done += 1
            tries = 0


def udp_socket(address: str, port: int = 0, *, buffer: int = 64 << 20) -> socket.socket:
    """Bound; `buffer` is that of its receiving side, bytes as the kernel counts them."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
    sock.bind((address, port))
    return sock


def dropped(sock: socket.socket) -> int:
    """Packets that found the socket's buffer full, or came with a wrong checksum."""
    inode = str(os.fstat(sock.fileno()).st_ino)
    for line in Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] == inode:
            return int(fields[12])
    raise OSError(errno.ENOENT, "the socket is not in /proc/net/udp")
