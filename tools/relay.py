#!/usr/bin/env python3
"""A relay of UDP datagrams between two nodes, which does to them what it is told.

relay.py A-LOCAL A-REMOTE B-LOCAL B-REMOTE PORT    addresses; the port is the same everywhere

Prints a line. Then takes commands, a line of JSON each, and answers each with a line of JSON:
  {"set": {"a": [["Lose", {"types": [1], "every": 2}], ...], "b": []}}
        what is done from now on to what node a, or b, sends (names of patterns.py); what an earlier
        pattern held back is sent
  {"report": true}    counts so far
Ends with its input. It forwards nothing that is no message of WireGuard's by its length.
"""

from __future__ import annotations

import io
import json
import os
import select
import socket
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "daemon"))

import mmsg
import patterns
from patterns import Chain
from watcher import SIDES, Watcher, watchers

_SHORTEST = 32
_PRIORITY = -10


class Direction:
    """What comes from one node and goes to the other."""

    def __init__(self, source: socket.socket, target: socket.socket, watcher: Watcher) -> None:
        self.source = source
        self.watcher = watcher
        self.chain = Chain([])
        self.sent = 0
        self.strange = 0
        self._receiver = mmsg.Receiver(source)
        self._sender = mmsg.Sender(target)

    def forward(self, now: float) -> bool:
        """Reads one batch; whether there may be more."""
        messages = self._receiver.messages()
        see, take = self.watcher.see, self.chain.take
        outgoing: list[bytes] = []
        changes = bool(self.chain.patterns)
        for message in messages:
            if len(message) < _SHORTEST:
                self.strange += 1
                continue
            see(message)
            if changes:
                outgoing += take(message, now)
            else:
                outgoing.append(message)
        self._send(outgoing)
        return len(messages) == mmsg.BATCH

    def send_due(self, now: float) -> None:
        self._send(self.chain.due(now))

    def set(self, described: list[tuple[str, dict[str, Any]]]) -> None:
        self._send(self.chain.release())
        self.chain = Chain(getattr(patterns, name)(**values) for name, values in described)

    def _send(self, messages: Any) -> None:
        if messages:
            self._sender.send(messages)
            self.sent += len(messages)

    def report(self) -> dict[str, Any]:
        watcher = self.watcher
        pattern_counts: Counter[str] = Counter()
        for pattern in self.chain.patterns:
            for name in ("lost", "jumped", "played"):
                pattern_counts[name] += getattr(pattern, name, 0)
        return {
            "data": watcher.data,
            "handshakes": {str(kind): watcher.handshakes[kind] for kind in patterns.HANDSHAKE},
            "sessions": dict(watcher.sessions),
            "reused_counters": watcher.reused,
            "highest_counter": watcher.highest_counter,
            "sent": self.sent,
            **pattern_counts,
            "failures": {
                "overflow": mmsg.dropped(self.source),
                "strange": self.strange,
                **self._sender.refused,
            },
        }


class Relay:
    def __init__(self, a: tuple[str, str], b: tuple[str, str], port: int) -> None:
        """Each: the relay's address towards the node, the node's address."""
        self._commands = io.FileIO(sys.stdin.fileno(), closefd=False)
        sockets = []
        for local, remote in (a, b):
            sock = mmsg.udp_socket(local, port)
            sock.connect((remote, port))
            sockets.append(sock)
        both = watchers()
        self.directions = {
            side: Direction(sockets[i], sockets[1 - i], both[side]) for i, side in enumerate(SIDES)
        }

    def run(self) -> None:
        poll = select.poll()
        by_descriptor = {d.source.fileno(): d for d in self.directions.values()}
        for descriptor in (*by_descriptor, self._commands.fileno()):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = poll.poll(self._timeout())
            now = time.monotonic()
            for descriptor, _ in ready:
                direction = by_descriptor.get(descriptor)
                if direction:
                    direction.forward(now)
                elif not self._command():
                    return
            for direction in by_descriptor.values():
                if direction.chain.patterns:
                    direction.send_due(now)

    def _timeout(self) -> float | None:
        """Milliseconds."""
        deadlines = [d.chain.deadline() for d in self.directions.values()]
        known = [deadline for deadline in deadlines if deadline is not None]
        return max(0.0, (min(known) - time.monotonic()) * 1000) if known else None

    def _command(self) -> bool:
        """Whether there was one."""
        line = self._commands.readline()
        if not line:
            return False
        command = json.loads(line)
        for side, described in command.get("set", {}).items():
            self.directions[side].set(described)
        report = {side: d.report() for side, d in self.directions.items()}
        print(json.dumps(report if "report" in command else {}), flush=True)
        return True


def main(arguments: list[str]) -> int:
    if len(arguments) != 5:
        print(__doc__, file=sys.stderr)
        return 2
    a_local, a_remote, b_local, b_remote, port = arguments
    # Both nodes' kernel work and the load share the machine: who is late here loses packets.
    os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    relay = Relay((a_local, a_remote), (b_local, b_remote), int(port))
    print("{}", flush=True)
    relay.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
