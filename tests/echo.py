"""Ping, of whose answers the last may be late: ping(8) waits for twice the longest time so far,
which on a loaded machine is less than the next answer takes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time

from netns import Namespace
from rows.packets import checksum

_IP_MTU_DISCOVER = (socket.IPPROTO_IP, 10)
_IPV6_MTU_DISCOVER = (socket.IPPROTO_IPV6, 23)
_PMTUDISC_DO = 2


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ping(
    ns: Namespace,
    to: str,
    count: int = 3,
    *,
    interval: float = 0.02,
    size: int = 56,
    source: str = "",
    whole: bool = False,
) -> int:
    """How many answers came, the last one 2 s after the last request at most. `size` is that of the
    data, 8 bytes at least; `whole`: must not be fragmented."""
    kind = family(to)
    four = kind == socket.AF_INET
    protocol = socket.IPPROTO_ICMP if four else socket.IPPROTO_ICMPV6
    request, reply = (8, 0) if four else (128, 129)
    name = os.urandom(8)
    answered: set[int] = set()
    with ns.call(socket.socket, kind, socket.SOCK_RAW, protocol) as sock:
        if whole:
            sock.setsockopt(*(_IP_MTU_DISCOVER if four else _IPV6_MTU_DISCOVER), _PMTUDISC_DO)
        if source:
            sock.bind((source, 0))
        for number in range(count):
            data = struct.pack("!BBHHH", request, 0, 0, 0, number) + name.ljust(size, b"p")
            sum_ = checksum(data) if four else 0
            with contextlib.suppress(OSError):  # no way there, or too long for it
                sock.sendto(data[:2] + sum_.to_bytes(2, "big") + data[4:], (to, 0))
            end = time.monotonic() + (interval if number + 1 < count else 2)
            while len(answered) < count and (left := end - time.monotonic()) > 0:
                if not select.select([sock], [], [], left)[0]:
                    break
                answer = sock.recv(65535)
                message = answer[(answer[0] & 15) * 4 :] if four else answer
                if message[0] == reply and message[8:16] == name:
                    answered.add(int.from_bytes(message[6:8], "big"))
    return len(answered)
