#!/usr/bin/env python3
"""Numbered UDP packets: a generator and a receiver that tells what became of each.

numbered.py send ADDRESS PORT FLOW RATE    RATE packets a second; FLOW is a number of theirs
numbered.py receive FLOW                   on every address

Both print a line of JSON first (the receiver its port), and one with their counts for each line of
their input; they end with it. The generator stops sending at the first line. The receiver's
`recent_gap` is that since the last line.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import select
import socket
import sys
import threading
import time
from array import array
from typing import Any

import mmsg
from seen import Arrivals

_WORDS = 2
"""Of 8 bytes: flow, number."""
_SLOT_WORDS = mmsg.SLOT // 8
_BATCH = 32
"""An eighth of a veth's ring, so that pacing does not overrun it by itself."""
_LONGEST_CATCHING_UP = 0.01  # seconds
_READ_EVERY = 0.002
"""Seconds between two looks: the kernel says when each packet arrived, so none is missed."""
_PR_SET_TIMERSLACK = 29
_IP_RECVERR = 11


class Generator:
    def __init__(self, address: str, port: int, flow: int, rate: int) -> None:
        connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        # Else a packet dropped by a full queue of this machine would count as sent.
        connected.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        connected.connect((address, port))
        self._rate = rate
        self._sender = mmsg.Sender(connected)
        self._sender.set_length(_WORDS * 8)
        self._words = self._sender.view.cast("Q")
        for i in range(mmsg.BATCH):
            self._words[i * _SLOT_WORDS] = flow
        self.sent = 0
        self.held_up = 0.0
        """Seconds that the generator came too late to catch up."""

    def run(self, stop: threading.Event) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
        batch = max(1, min(_BATCH, self._rate // 1000))
        interval = batch / self._rate
        due = time.monotonic()
        while not stop.is_set():
            self._send(batch)
            due += interval
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            elif pause < -_LONGEST_CATCHING_UP:
                due -= pause
                self.held_up -= pause

    def _send(self, count: int) -> None:
        numbers = memoryview(array("Q", range(self.sent, self.sent + count)))
        self._words[1 : count * _SLOT_WORDS : _SLOT_WORDS] = numbers
        self._sender.send_slots(count)
        self.sent += count

    def report(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "refused": self._sender.refused,
            "held_up": round(self.held_up, 3),
        }


def send(address: str, port: int, flow: int, rate: int) -> None:
    generator = Generator(address, port, flow, rate)
    print(json.dumps({}), flush=True)
    stop = threading.Event()

    def wait_for_input() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait_for_input, daemon=True).start()
    start = time.monotonic()
    generator.run(stop)
    seconds = time.monotonic() - start
    print(json.dumps(generator.report() | {"seconds": round(seconds, 3)}), flush=True)


class Listener:
    def __init__(self, flow: int) -> None:
        self._flow = flow
        self._socket = mmsg.udp_socket("0.0.0.0")
        self._receiver = mmsg.Receiver(self._socket, timestamps=True)
        self._words = self._receiver.view.cast("Q")
        self.port: int = self._socket.getsockname()[1]
        self.arrivals = Arrivals()
        self.foreign = 0

    def run(self) -> None:
        """Until the input ends."""
        commands = io.FileIO(sys.stdin.fileno(), closefd=False)
        while True:
            while self._read() == mmsg.BATCH:
                pass
            if select.select([commands], [], [], _READ_EVERY)[0]:
                if not commands.readline():
                    return
                print(json.dumps(self.report()), flush=True)
                self.arrivals.recent_gap = 0

    def _read(self) -> int:
        count = self._receiver.read()
        if count:
            flows = self._words[0 : count * _SLOT_WORDS : _SLOT_WORDS].tolist()
            numbers = self._words[1 : count * _SLOT_WORDS : _SLOT_WORDS].tolist()
            times = self._receiver.times(count)
            if flows.count(self._flow) != count:
                ours = [i for i, flow in enumerate(flows) if flow == self._flow]
                self.foreign += count - len(ours)
                numbers, times = [numbers[i] for i in ours], [times[i] for i in ours]
            self.arrivals.take(numbers, times)
        return count

    def report(self) -> dict[str, Any]:
        arrivals = self.arrivals
        return {
            "unique": arrivals.unique,
            "twice": arrivals.twice,
            "late": arrivals.late,
            "most_late": arrivals.most_late,
            "missing": arrivals.missing,
            "longest_gap": round(arrivals.longest_gap / 1e9, 4),
            "recent_gap": round(arrivals.recent_gap / 1e9, 4),
            "lost_first": arrivals.lost(arrivals.highest + 1),
            "failures": {"overflow": mmsg.dropped(self._socket), "foreign": self.foreign},
        }


def receive(flow: int) -> None:
    listener = Listener(flow)
    os.setpriority(os.PRIO_PROCESS, 0, -5)
    print(json.dumps({"port": listener.port}), flush=True)
    listener.run()


def main(arguments: list[str]) -> int:
    match arguments:
        case ["send", address, port, flow, rate]:
            send(address, int(port), int(flow), int(rate))
        case ["receive", flow]:
            receive(int(flow))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
