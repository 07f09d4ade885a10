#!/usr/bin/env python3
"""A cheap UDP generator and a sink, for finding the limit of what lies between them.

udp.py send ADDRESS PORT SIZE RATE SECONDS   SIZE bytes of payload; RATE packets a second, 0:
                                             as many as go; prints how many it sent
udp.py sink ADDRESS PORT                     prints "ready", stays until its input ends

The generator hands the kernel many messages in one sendmmsg(2); iperf3, one at a time, would use up
a core before the tunnel does. The sink reads nothing: its socket's filter refuses each packet when
it arrives, after checking its UDP checksum, and the namespace's counters (`arrived`) say how many
did. So a receiver that must be scheduled is no part of what is measured.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import time
from pathlib import Path

from mmsg import Iovec, Mmsghdr

BATCH = 64
PACED_BATCH = 32
"""A quarter of a small ring (256), so that pacing does not overrun it by itself."""

_SO_ATTACH_FILTER = 26
_PR_SET_TIMERSLACK = 29


class Sender:
    """`batch` equal messages, sent by one system call."""

    def __init__(self, connected: socket.socket, size: int, batch: int) -> None:
        self._socket = connected
        self._payload = ctypes.create_string_buffer(size)
        self._iovec = Iovec(ctypes.addressof(self._payload), size)
        self._messages = (Mmsghdr * batch)()
        for message in self._messages:
            message.header.iov = ctypes.pointer(self._iovec)
            message.header.iov_count = 1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def send(self, count: int) -> int:
        """Returns how many of `count` messages the kernel took: all, unless it refused some."""
        descriptor = self._socket.fileno()
        sent: int = self._libc.sendmmsg(descriptor, ctypes.byref(self._messages), count, 0)
        return max(sent, 0)


def send(address: str, port: int, size: int, rate: int, seconds: float) -> int:
    """Sends for `seconds`; returns the number of messages sent."""
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connected.connect((address, port))
    sender = Sender(connected, size, BATCH)
    end = time.monotonic() + seconds
    if not rate:
        sent = 0
        while time.monotonic() < end:
            sent += sender.send(BATCH)
        return sent
    return _send_paced(sender, rate, end)


def _send_paced(sender: Sender, rate: int, end: float) -> int:
    # Else sleeps are rounded up by 50 µs, many packets' time.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    batch = max(1, min(PACED_BATCH, rate // 1000))
    interval = batch / rate
    sent = 0
    due = time.monotonic()
    while due < end:
        sent += sender.send(batch)
        due += interval
        pause = due - time.monotonic()
        if pause > 0:
            time.sleep(pause)
        elif pause < -0.01:
            due -= pause  # held up: go on from here, no burst to catch up
    return sent


def refuse_all(bound: socket.socket) -> None:
    """Has every packet dropped, and counted, as it arrives."""
    refuse = struct.pack("HBBI", 0x06, 0, 0, 0)  # classic BPF: return 0
    program = ctypes.create_string_buffer(refuse)
    filter_ = struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))
    bound.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


def sink(address: str, port: int) -> None:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    refuse_all(bound)
    bound.bind((address, port))
    print("ready", flush=True)
    sys.stdin.read()


def counters(pid: int) -> dict[str, int]:
    """UDP's counters in the network namespace of this process, by the kernel's names."""
    lines = Path(f"/proc/{pid}/net/snmp").read_text().splitlines()
    names, values = (line.split()[1:] for line in lines if line.startswith("Udp:"))
    return dict(zip(names, map(int, values), strict=True))


def arrived(pid: int) -> int:
    """Packets that the sink of this process, or another in its namespace, refused so far; those
    with a wrong checksum do not count."""
    found = counters(pid)
    return found["InErrors"] - found["InCsumErrors"]


def main(arguments: list[str]) -> int:
    match arguments:
        case ["send", address, port, size, rate, seconds]:
            print(send(address, int(port), int(size), int(rate), float(seconds)))
        case ["sink", address, port]:
            sink(address, int(port))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
