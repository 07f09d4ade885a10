"""What a node receives by a device with one receive queue, for one tunnel: with one flow port, and
with as many as there are flows, which RPS shares among CPUs.

What would be sent is sealed before. One process, pinned to a CPU, hands it to the device, dozens
of messages a system call. Each flow has WINDOW of them under way at most, so that nothing is lost.
What arrives a socket's filter counts and drops. Sending takes its part of one CPU.

Which CPU gets a port is the kernel's secret, and chance. To keep chance out, a peer's port is
looked for such that the first two of its ports are received on another CPU than the sending one,
and two on that. So a single port has a CPU for itself; and of four flows those come first, as it
would be with flows that adapt to what they get, that do not wait for the sending CPU.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import secrets
import socket
import statistics
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any, TextIO

import lab
from lab import ROOT, UNDERLAY, Lab, LabError
from mmsg import Iovec, Mmsghdr
from results import emit
from udp import PACKET_QDISC_BYPASS, SOL_PACKET

sys.path += [str(ROOT / "daemon"), str(ROOT / "tests")]

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import layout, objects
from ebpfvpn.kernel.bpffs import pin_directory
from ebpfvpn.kernel.layout import number
from ebpfvpn.kernel.map import Map
from ebpfvpn.keypair import Keypair, Session
from kernel.nodes import INNER, OUTER, PEER, PORT, Node, node
from netns import Namespace
from rows.packets import data_message, ethernet, ip, pad, udp
from rows.tunnel import MTU

FRAMES = 8192
"""The replay window: none is late, however much faster one flow is than another."""
SIZES = (92, 1420)
"""Of the inner packets: 64 bytes of UDP payload, and what fills the MTU."""
FLOWS = 4
"""In the tunnel, as in ebpf/tests/arrivals.bpf.c."""
PORTS = (1, FLOWS)
PASSES = 16
WINDOW = 64
"""Of all flows the segmenter's ring, 256, could hold them."""
_BATCH = 32
_INDEX = 0x11223344
_ELSEWHERE = 2
"""Of the flows, the first ones, where there are as many ports."""
_MOST_PROBES = 1000
_PAUSE = 20e-6
_PATIENCE = 2.0
_KEY = bytes(range(32))
_SINK = 9
_FIRST_PORT = 1000
_SO_ATTACH_BPF, _SO_SNDBUFFORCE = 50, 32
_BUFFER = 16 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
_INNER, _OUTER = (tuple(each.partition("/")[0] for each in both) for both in (INNER, OUTER))


@dataclass(frozen=True, slots=True)
class Received:
    """In one round."""

    per_second: float
    receiving: list[float]
    """Of each CPU, 0 to 1: its part spent in softirq."""
    sending: float
    """The same, of the sending CPU: what it was busy with otherwise."""


def compare(rounds: int, quick: bool, file: TextIO) -> str:
    """Writes JSON lines to the file; returns a table. LabError, BpfError, lab.Interrupted."""
    if len(os.sched_getaffinity(0)) < 2:
        raise LabError("there is one CPU alone: nothing can be shared")
    found: dict[tuple[int, int], list[Received]] = defaultdict(list)

    def body(here: Lab) -> None:
        with _receiver(here) as receiver:
            port = receiver.even_port()
            for size in SIZES:
                count = FRAMES // (16 if quick else 1)
                senders = {ports: receiver.sender(size, ports, port, count) for ports in PORTS}
                for at, ports in itertools.product(range(1, rounds + 1), PORTS):
                    got = receiver.measure(senders[ports], 1 if quick else PASSES)
                    found[size, ports].append(got)
                    emit(file, _line(size, ports, at, got))

    lab.in_lab("scaling", body)
    return _table(found)


def _line(size: int, ports: int, at: int, got: Received) -> dict[str, Any]:
    return {
        "size": size,
        "flow_ports": ports,
        "round": at,
        "per_second": round(got.per_second),
        "receiving": got.receiving,
        "sending": got.sending,
    }


def _table(found: dict[tuple[int, int], list[Received]]) -> str:
    lines = [
        "| inner bytes | flow ports | received a second | to one port "
        "| CPUs receiving | CPU sending |",
        "|---|---|---|---|---|---|",
    ]
    for (size, ports), got in found.items():
        rates = [one.per_second for one in got]
        first = [one.per_second for one in found[size, PORTS[0]]]
        gain = statistics.median(a / b for a, b in zip(rates, first, strict=True))
        cpus = zip(*(one.receiving for one in got), strict=True)
        receiving = " + ".join(f"{statistics.median(cpu):.2f}" for cpu in cpus)
        rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f}..{max(rates):,.0f})"
        sending = statistics.median(one.sending for one in got)
        cells = [size, ports, rate, f"{gain:.2f}", receiving, f"{sending:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


class Sender:
    """Frames of FLOWS flows in turn, each frame once for each pass, past the device's queue."""

    def __init__(self, ns: Namespace, frames: list[bytes]) -> None:
        self.of_flow = len(frames) // FLOWS
        frames = [frame for flow in range(FLOWS) for frame in frames[flow::FLOWS]]
        self._socket = ns.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind((UNDERLAY, 0))
        self._socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        # Else it would wait, where many long ones are under way.
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        self._buffer = ctypes.create_string_buffer(b"".join(frames))
        self._vectors = (Iovec * len(frames))()
        self._headers = (Mmsghdr * len(frames))()
        start = ctypes.addressof(self._buffer)
        for vector, header, frame in zip(self._vectors, self._headers, frames, strict=True):
            vector.base, vector.length = start, len(frame)
            header.header.iov = ctypes.pointer(vector)
            header.header.iov_count = 1
            start += len(frame)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def send(self, flow: int, first: int, count: int) -> int:
        """Of a flow, from its message `first` on; returns how many the kernel took."""
        at = (flow * self.of_flow + first) * ctypes.sizeof(Mmsghdr)
        headers = ctypes.byref(self._headers, at)
        sent: int = self._libc.sendmmsg(self._socket.fileno(), headers, count, 0)
        return max(0, sent)


@contextmanager
def _receiver(here: Lab) -> Iterator[Receiver]:
    """A node with a session, and a socket that counts."""
    ns = Namespace(here.left.namespace)
    with ExitStack() as closing:
        arrivals = objects.load(ROOT / "build" / "arrivals.bpf.o")
        closing.callback(arrivals.close)
        one = closing.enter_context(node(ns, mode="tc", flow_ports=FLOWS, addresses=(INNER[0],)))
        datapath = one.datapath
        datapath.add_peer(PEER, bytes(32))
        datapath.set_flow_ports(PEER, FLOWS)
        datapath.set_allowed_ips(PEER, [ip_interface(INNER[1]).network])
        ns.call(datapath.set_endpoint, PEER, Endpoint(ip_address(_OUTER[1]), PORT))
        session = Session(_INDEX, 1, True, time.clock_gettime(time.CLOCK_BOOTTIME))
        datapath.install(PEER, Keypair(session, _KEY, _KEY), confirmed=True)
        sock = closing.enter_context(ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
        program = arrivals.programs["count_and_drop"]
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program.fd)
        sock.bind((_INNER[0], _SINK))
        (device,) = _devices(one)
        if "RPS" not in device["reason"]:
            raise LabError(f"{UNDERLAY}: nothing shares its queue: {device['reason']}")
        yield Receiver(one, Namespace(here.right.namespace), arrivals.maps["arrived"])


def _devices(one: Node) -> list[dict[str, str]]:
    return one.datapath.describe()["devices"]  # type: ignore[return-value]


class Receiver:
    def __init__(self, one: Node, sending: Namespace, arrived: Map) -> None:
        self._sending = sending
        self._arrived = arrived
        pins = pin_directory(one.name)
        self._sessions = Map.pinned(pins / "sessions")
        self._windows = Map.pinned(pins / "windows")
        self._cpu = max(os.sched_getaffinity(0))
        link = one.netlink.link(one.ns.ifindex(UNDERLAY))
        assert link is not None
        assert link.mac is not None
        self._mac = link.mac

    def even_port(self) -> int:
        """See above. LabError."""
        first = secrets.randbelow(20000) + 20000
        elsewhere: list[bool] = []
        for port in range(first, first + _MOST_PROBES):
            elsewhere.append(self._cpu_of(port) != self._cpu)
            if elsewhere[-FLOWS:] == [True] * _ELSEWHERE + [False] * (FLOWS - _ELSEWHERE):
                return port - FLOWS + 1
        raise LabError("RPS does not share the ports among CPUs")

    def _cpu_of(self, port: int) -> int:
        before = self._by_cpu()
        self.measure(self.sender(SIZES[0], 1, port, FLOWS * _BATCH), 1)
        new = [sum(now) - sum(was) for now, was in zip(self._by_cpu(), before, strict=True)]
        return new.index(max(new))

    def _by_cpu(self) -> list[tuple[int, ...]]:
        """Messages that arrived, of each flow."""
        raw = self._arrived.lookup(number(0))
        assert raw is not None
        return list(struct.iter_unpack(f"={FLOWS}Q", raw))

    def _by_flow(self) -> list[int]:
        return [sum(cpus) for cpus in zip(*self._by_cpu(), strict=True)]

    def sender(self, size: int, ports: int, port: int, count: int) -> Sender:
        """Of messages of one session, by counter."""
        found = []
        for counter in range(count):
            flow = counter % FLOWS
            packet = udp(_INNER[1], _FIRST_PORT + flow, _INNER[0], _SINK, bytes(size - 28))
            text = pad(ip(_INNER[1], _INNER[0], packet))[:MTU]
            message = data_message(_KEY, _INDEX, counter, text)
            header = struct.pack("!HHHH", port + flow % ports, PORT, 8 + len(message), 0)
            outer = ip(_OUTER[1], _OUTER[0], header + message)
            found.append(ethernet(outer, destination=self._mac))
        return Sender(self._sending, found)

    def measure(self, sender: Sender, passes: int) -> Received:
        """LabError: something was lost."""
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})
        try:
            seconds, packets = 0.0, 0
            before, start = _times(), time.monotonic()
            for _ in range(passes):
                self._renew()
                began = time.monotonic()
                packets += self._pass(sender)
                seconds += time.monotonic() - began
            total = time.monotonic() - start
        finally:
            os.sched_setaffinity(0, cpus)
        spent = [
            tuple(round((now - then) / total, 2) for now, then in zip(*both, strict=True))
            for both in zip(_times(), before, strict=True)
        ]
        receiving, other = zip(*spent, strict=True)
        return Received(packets / seconds, list(receiving), other[self._cpu])

    def _renew(self) -> None:
        """The session, as if nothing had been received."""
        raw = self._sessions.lookup(number(_INDEX))
        assert raw is not None
        session = layout.Session.from_buffer_copy(raw)
        session.receive_highest = 0
        session.expires = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**11
        self._windows.update(number(_INDEX), bytes(self._windows.value_size))
        self._sessions.update(number(_INDEX), bytes(session))

    def _pass(self, sender: Sender) -> int:
        """Until one flow's messages are used up; returns how many arrived."""
        before = self._by_flow()
        sent, arrived = [0] * FLOWS, [0] * FLOWS

        def rank(flow: int) -> tuple[bool, bool, int]:
            return sent[flow] - arrived[flow] > WINDOW - _BATCH, flow >= _ELSEWHERE, sent[flow]

        heard = time.monotonic()
        while arrived != sent or max(sent) < sender.of_flow:
            flow = min(range(FLOWS), key=rank)
            if not rank(flow)[0] and max(sent) < sender.of_flow:
                sent[flow] += sender.send(flow, sent[flow], _BATCH)
            else:
                time.sleep(_PAUSE)
            now = [all_ - then for all_, then in zip(self._by_flow(), before, strict=True)]
            if now != arrived:
                heard, arrived = time.monotonic(), now
            elif time.monotonic() > heard + _PATIENCE:
                raise LabError(f"{sum(sent) - sum(arrived)} of {sum(sent)} messages were lost")
        return sum(arrived)


def _times() -> list[tuple[float, float]]:
    """Of each CPU, the seconds spent in softirq, and those in anything else, since the machine
    booted; neither idle nor stolen."""
    found = []
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu") and line[3].isdigit():
            user, nice, system, _idle, _iowait, irq, softirq = map(int, line.split()[1:8])
            found.append((softirq / _TICKS, (user + nice + system + irq) / _TICKS))
    return found
