#!/usr/bin/env python3
"""A cheap UDP generator and a sink, for finding the limit of what lies between them.

udp.py send ADDRESS PORT SIZE RATE SECONDS   SIZE bytes of payload; RATE packets a second, 0:
                                             as many as go; prints how many it sent
udp.py frames DEVICE MAC SOURCE ADDRESS PORT SIZE RATE SECONDS
                                             the same as Ethernet frames on a device, to this MAC
                                             address: half of what a UDP socket costs
udp.py sink ADDRESS PORT                     prints "ready", stays until its input ends

The generator hands the kernel many messages in one sendmmsg(2); iperf3, one at a time, would use up
a core before the tunnel does. The sink reads nothing: its socket's filter refuses each packet when
it arrives, after checking its UDP checksum, and the namespace's counters (`arrived`) say how many
did. So a receiver that must be scheduled is no part of what is measured. (A device's counters would
not do: super-packets count as one there, and what BPF redirects to a device as nothing.)
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
SOL_PACKET = 263
PACKET_QDISC_BYPASS = 20
_PR_SET_TIMERSLACK = 29


class Sender:
    """`batch` equal messages, sent by one system call."""

    def __init__(self, connected: socket.socket, message: bytes, batch: int) -> None:
        self._socket = connected
        self._payload = ctypes.create_string_buffer(message, len(message))
        self._iovec = Iovec(ctypes.addressof(self._payload), len(message))
        self._messages = (Mmsghdr * batch)()
        for slot in self._messages:
            slot.header.iov = ctypes.pointer(self._iovec)
            slot.header.iov_count = 1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def send(self, count: int) -> int:
        """Returns how many of `count` messages the kernel took: all, unless it refused some."""
        descriptor = self._socket.fileno()
        sent: int = self._libc.sendmmsg(descriptor, ctypes.byref(self._messages), count, 0)
        return max(sent, 0)


def udp_sender(address: str, port: int, size: int) -> Sender:
    connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    connected.connect((address, port))
    return Sender(connected, bytes(size), BATCH)


def frame_sender(device: str, mac: str, source: str, address: str, port: int, size: int) -> Sender:
    """Past the device's queue."""
    bound = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    bound.bind((device, 0))
    bound.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
    ours: bytes = bound.getsockname()[4]
    ethernet = bytes.fromhex(mac.replace(":", "")) + ours + b"\x08\x00"
    return Sender(bound, ethernet + packet(source, address, port, size), BATCH)


def packet(source: str, address: str, port: int, size: int) -> bytes:
    """IPv4 and UDP with their checksums, and `size` zero bytes."""
    ends = socket.inet_aton(source) + socket.inet_aton(address)
    udp = struct.pack("!HHH", port, port, 8 + size)
    pseudo = ends + struct.pack("!HH", socket.IPPROTO_UDP, 8 + size)
    udp += struct.pack("!H", checksum(pseudo + udp) or 0xFFFF)
    ip = struct.pack("!BBHHHBB", 0x45, 0, 28 + size, 0, 0, 64, socket.IPPROTO_UDP)
    return ip + struct.pack("!H", checksum(ip + ends)) + ends + udp + bytes(size)


def checksum(words: bytes) -> int:
    """RFC 1071; of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def send(sender: Sender, rate: int, seconds: float) -> int:
    """Sends for `seconds`; returns the number of messages sent."""
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
            sender = udp_sender(address, int(port), int(size))
            print(send(sender, int(rate), float(seconds)))
        case ["frames", device, mac, source, address, port, size, rate, seconds]:
            sender = frame_sender(device, mac, source, address, int(port), int(size))
            print(send(sender, int(rate), float(seconds)))
        case ["sink", address, port]:
            sink(address, int(port))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
