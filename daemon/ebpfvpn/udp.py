"""The tunnel's UDP sockets: handshake messages, and data messages the datapath had to leave."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.errors import OperatorError

Address = IPv4Address | IPv6Address

MOST = 65535
"""Bytes of a message, or of those that the kernel joined."""
_CONTROL = 256
_MOST_ORIGINS = 4096
_PORT_TRIES = 50
_MOST_ERRORS = 64

_NOT_FROM_HERE = (
    errno.EINVAL,
    errno.EADDRNOTAVAIL,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.ENODEV,
)
"""What the kernel says where our address is not ours (any more), or no way leads from there. After
any other refusal another address would only make the peer's endpoint of us move."""

HANDSHAKE_TOS = 0x88
"""Class AF41, as Linux' WireGuard marks them."""

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_SK_MEMINFO = struct.Struct("=9I")  # the last one is the count of dropped packets
_IP_PKTINFO = 8
_IP_RECVTOS = 13
_IP_TOS = 1
_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_DONT = 0
_SO_DETACH_BPF = 27
_SOL_UDP = 17
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IN_PKTINFO = struct.Struct("=I4s4s")  # ifindex, our address of the packet, its destination
_IN6_PKTINFO = struct.Struct("=16sI")
_SEGMENT = struct.Struct("=H")


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came to a socket."""

    length: int
    segment: int
    """Bytes of each message, the last of which may be shorter."""
    source: Endpoint
    tos: int
    """TOS byte or traffic class."""


log = logging.getLogger(__name__)


class UdpSockets:
    """One for IPv4 and, where the machine has it, one for IPv6, on the same port."""

    def __init__(
        self,
        port: int,
        fwmark: int,
        kept: Iterable[int] = (),
        *,
        send_buffer: int | None = None,
        recv_buffer: int | None = None,
        flow_ports: int = 1,
    ) -> None:
        """`port` 0: the kernel chooses one that is free for both; `kept`: descriptors of an earlier
        daemon's, which go on if the port is theirs; buffers: bytes of each socket, None: the
        kernel's default. `flow_ports`: so many ports from that one on are nobody else's, as far as
        they are free; peers send to the first one alone. OperatorError."""
        self._buffers = (
            (socket.SO_SNDBUF, _SO_SNDBUFFORCE, send_buffer),
            (socket.SO_RCVBUF, _SO_RCVBUFFORCE, recv_buffer),
        )
        self._origins: dict[object, tuple[Endpoint, int, int]] = {}
        self._kept: dict[int, socket.socket] = {}
        self._held: list[socket.socket] = []
        for fd in kept:
            sock = socket.socket(fileno=fd)
            if sock.getsockname()[1] == port:
                self._kept[sock.family] = sock
            else:
                sock.close()
        for attempt in range(_PORT_TRIES):
            try:
                self._open(port, fwmark)
                self._hold(range(self.port + 1, self.port + flow_ports), must_be_free=port == 0)
            except OSError as error:
                self.close()
                if error.errno == errno.EADDRINUSE and port == 0 and attempt + 1 < _PORT_TRIES:
                    continue
                raise OperatorError(_refusal(port, error)) from error
            return

    def _hold(self, ports: range, *, must_be_free: bool) -> None:
        """The programs send from these, and can do so where somebody else has one. OSError."""
        if ports.stop > 65536:
            raise OSError(errno.EADDRINUSE, "there is no such port")
        for port in ports:
            for sock in self.sockets:
                held = socket.socket(sock.family, socket.SOCK_DGRAM)
                self._held.append(held)
                if sock.family == socket.AF_INET6:
                    held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the least there is
                try:
                    held.bind(("", port))
                except OSError as error:
                    if must_be_free or error.errno != errno.EADDRINUSE:
                        raise
                    log.warning("flow port %d is in use by another program, and by this one", port)

    def _open(self, port: int, fwmark: int) -> None:
        self.sockets: list[socket.socket] = []
        self.port = port
        for family in (socket.AF_INET, socket.AF_INET6):
            kept = self._kept.pop(family, None)
            try:
                sock = kept or socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            except OSError as error:
                if family == socket.AF_INET6 and error.errno == errno.EAFNOSUPPORT:
                    continue
                raise
            self.sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, fwmark)
            for option, force, size in self._buffers:
                _set_buffer(sock, option, force, size)
            if kept:
                continue
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            try:
                sock.bind(("", self.port))
            except OSError as error:
                # IPv6 is compiled in, but switched off.
                if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                    self.sockets.remove(sock)
                    sock.close()
                    continue
                raise
            self.port = sock.getsockname()[1]

    def join(self, sock: socket.socket, on: bool) -> None:
        """Whether messages of one sender may arrive joined at one of `sockets`, where the kernel
        can do that (UDP_GRO, Linux 5.0)."""
        with contextlib.suppress(OSError):
            sock.setsockopt(_SOL_UDP, _UDP_GRO, int(on))

    def joins(self, sock: socket.socket) -> bool:
        try:
            return sock.getsockopt(_SOL_UDP, _UDP_GRO) != 0
        except OSError:
            return False

    def segments(self) -> bool:
        """Whether the kernel knows UDP_SEGMENT (see Destination.send). An older one pays no heed to
        it, and sends one long message."""
        try:
            self.sockets[0].getsockopt(_SOL_UDP, _UDP_SEGMENT)
        except OSError:
            return False
        return True

    def accept_all(self, sock: socket.socket) -> None:
        """Takes the filter off that KernelDatapath.accept_only_messages put on."""
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_BPF, 0)

    def receive_into(self, sock: socket.socket, buffer: bytearray) -> Arrival | None:
        """What waits first on one of `sockets`; None: nothing does, or nothing but errors.
        `buffer` has MOST bytes."""
        for _ in range(_MOST_ERRORS):
            try:
                length, control, _, source = sock.recvmsg_into((buffer,), _CONTROL)
                break
            except OSError as error:
                # Other errors tell of an earlier packet of ours (ICMP); there may be more.
                if error.errno in (errno.EAGAIN, errno.EBADF):
                    return None
        else:
            return None
        # Parsed once for each of the few that there are.
        key = (source, *control)
        origin = self._origins.get(key)
        if origin is None:
            if len(self._origins) >= _MOST_ORIGINS:
                self._origins.clear()
            origin = self._origins[key] = _origin(source, control)
        endpoint, tos, segment = origin
        return Arrival(length, segment or length, endpoint, tos)

    def destination(self, to: Endpoint) -> Destination | None:
        """None: there is no socket of its family."""
        family = socket.AF_INET if to.address.version == 4 else socket.AF_INET6
        for sock in self.sockets:
            if sock.family == family:
                return Destination(sock, to)
        return None

    def send(self, data: bytes, to: Endpoint, tos: int = HANDSHAKE_TOS) -> bool:
        """From `to.local`, if that is still ours. False: the kernel refused."""
        destination = self.destination(to)
        if destination is None:
            return False
        try:
            destination.send((data,), tos)
        except OSError:
            return False
        return True

    def granted(self) -> tuple[int, int]:
        """Bytes of the send and the receive buffer, as one asks for them: the kernel doubles what
        it is asked for, to have room for its own structures, and tells the double; this is
        half of that."""
        send, receive = (
            min(sock.getsockopt(socket.SOL_SOCKET, option) for sock in self.sockets) // 2
            for option, _, _ in self._buffers
        )
        return send, receive

    def dropped(self) -> list[int]:
        """Packets that each socket did not take, modulo 2^32, since it was made: its queue was
        full, its filter refused them, or their UDP checksum was wrong. (What SO_RXQ_OVFL tells with
        the next packet, at once.)"""
        return [
            _SK_MEMINFO.unpack(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _SK_MEMINFO.size))[8]
            for sock in self.sockets
        ]

    def close(self) -> None:
        for sock in (*self.sockets, *self._held):
            sock.close()
        self._held.clear()


def _set_buffer(sock: socket.socket, option: int, force: int, size: int | None) -> None:
    """Beyond net.core.{w,r}mem_max, if we may: that takes CAP_NET_ADMIN outside of all containers'
    user namespaces."""
    if size is None:
        # A new one has the default; one that is kept may have had another size.
        with socket.socket(sock.family, sock.type) as new:
            size = new.getsockopt(socket.SOL_SOCKET, option) // 2
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, option, size)


def _refusal(port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"UDP port {port} is in use; choose another ListenPort"
    return f"cannot open UDP port {port}: {error.strerror}"


def _origin(source: Any, control: list[tuple[int, int, bytes]]) -> tuple[Endpoint, int, int]:
    """Where a message came from and to, its TOS or traffic class, and the length of those that
    were joined (0: it is one)."""
    local: Address | None = None
    ifindex = tos = segment = 0
    for level, kind, data in control:
        match level, kind:
            case socket.IPPROTO_IP, 8:  # IP_PKTINFO
                ifindex, _, destination = _IN_PKTINFO.unpack(data[: _IN_PKTINFO.size])
                local = IPv4Address(destination)
            case socket.IPPROTO_IP, 1:  # IP_TOS
                tos = data[0]
            case socket.IPPROTO_IPV6, socket.IPV6_PKTINFO:
                destination, ifindex = _IN6_PKTINFO.unpack(data[: _IN6_PKTINFO.size])
                local = IPv6Address(destination)
            case socket.IPPROTO_IPV6, socket.IPV6_TCLASS:
                tos = data[0]
            case 17, 104:  # UDP_GRO
                segment = int.from_bytes(data, sys.byteorder)
    address = ip_address(source[0].partition("%")[0])
    return Endpoint(address, source[1], local, ifindex), tos, segment


def _tos(family: int, tos: int) -> list[tuple[int, int, bytes]]:
    value = struct.pack("=i", tos)
    if family == socket.AF_INET:
        return [(socket.IPPROTO_IP, _IP_TOS, value)]
    return [(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, value)]


def _pktinfo(to: Endpoint) -> list[tuple[int, int, bytes]]:
    if isinstance(to.local, IPv4Address):
        info = _IN_PKTINFO.pack(0, to.local.packed, bytes(4))
        return [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
    if isinstance(to.local, IPv6Address):
        ifindex = to.ifindex if to.local.is_link_local else 0
        info = _IN6_PKTINFO.pack(to.local.packed, ifindex)
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
    return []


class Destination:
    """An endpoint, made ready for many messages."""

    __slots__ = ("_address", "_from", "_marks", "_sock")

    def __init__(self, sock: socket.socket, to: Endpoint) -> None:
        self._sock = sock
        self._from = _pktinfo(to)
        self._marks: dict[int, list[tuple[int, int, bytes]]] = {}
        self._address: tuple[str, int] | tuple[str, int, int, int] = (str(to.address), to.port)
        if to.zone:
            self._address = (*self._address[:2], 0, to.zone)

    def send(self, parts: Sequence[bytes | memoryview], tos: int, segment: int = 0) -> None:
        """One message in parts; or, with `segment`, many of that length, the last of which may be
        shorter (UDP_SEGMENT, Linux 4.18). From the endpoint's `local`, as long as that is ours.
        OSError: the kernel refused."""
        mark = self._marks.get(tos)
        if mark is None:
            mark = self._marks[tos] = _tos(self._sock.family, tos)
        if segment:
            mark = [*mark, (_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(segment))]
        try:
            self._sock.sendmsg(parts, [*self._from, *mark], 0, self._address)
        except OSError as error:
            # EINVAL may also say that there is no segmentation on this way.
            gone = error.errno in _NOT_FROM_HERE and not (segment and error.errno == errno.EINVAL)
            if not self._from or not gone:
                raise
            self._sock.sendmsg(parts, mark, 0, self._address)

    def wait(self, seconds: float) -> None:
        """Until the kernel may take more (it said EAGAIN), but not longer."""
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        poll.poll(seconds * 1000)
