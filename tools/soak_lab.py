"""Two nodes, a relay between them, a tunnel through it and numbered packets inside the tunnel."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab
from lab import UNDERLAY, Lab, LabError, Node
from patterns import Pattern
from watcher import SIDES

TOOLS = Path(__file__).resolve().parent
PORT = 51820
"""Of both nodes, and of the relay towards both."""
_QUEUE = 10_000
"""Packets before a full ring of the relay's devices; without a queue they would be lost."""
_DROPS = re.compile(r"(drops|drop|errors?|missed|nohandler)$")
_PROGRAMS_OWN = re.compile(r"xdp_drops$")
"""Verdicts of XDP programs: what they drop they count by reason."""


class RelayLab(Lab):
    """`left` is node a, `right` node b; `relay` is between them and does not route."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.left = Node(self.left.namespace, "192.0.2.1")
        self.right = Node(self.right.namespace, "203.0.113.1")
        self.relay = Node(f"{name}-{os.getpid()}-relay", "")

    relay_addresses = ("192.0.2.254", "203.0.113.254")
    relay_devices = ("left0", "right0")

    def connect(self) -> None:
        self.add(self.relay)
        for side in range(len(SIDES)):
            self.connect_side(side)

    def connect_side(self, side: int) -> None:
        """a (0) or b (1) to the relay, by a new pair of devices."""
        node, near = self.nodes[side], self.relay_addresses[side]
        device = self.relay_devices[side]
        lab.join(node, UNDERLAY, self.relay, device)
        node.run("ip", "address", "add", f"{node.address}/24", "dev", UNDERLAY)
        self.relay.run("ip", "address", "add", f"{near}/24", "dev", device)
        # What XDP redirects to a veth arrives only where GRO is on.
        node.offload(UNDERLAY, gro=True)
        self.relay.offload(device, gro=True)
        self.relay.run("tc", "qdisc", "add", "dev", device, "root", "pfifo", "limit", str(_QUEUE))

    def dropped(self) -> dict[str, int]:
        """What the devices between the nodes, and the nodes' UDP, have lost so far."""
        found: dict[str, int] = {}
        ends = [(node, UNDERLAY, side) for node, side in zip(self.nodes, SIDES, strict=True)]
        ends += [(self.relay, device, "relay") for device in self.relay_devices]
        for node, device, name in ends:
            for counter, value in _device_drops(node, device).items():
                found[f"{name} {device} {counter}"] = value
        return found


def _device_drops(node: Node, device: str) -> dict[str, int]:
    found: dict[str, int] = {}
    (link,) = json.loads(node.run("ip", "-j", "-s", "-s", "link", "show", "dev", device))
    for way in ("rx", "tx"):
        for counter, value in link["stats64"][way].items():
            if _DROPS.search(counter) or counter in ("dropped", "carrier_errors"):
                found[f"{way} {counter}"] = value
    for line in node.run("ethtool", "-S", device).splitlines():
        counter, _, text = line.strip().rpartition(": ")
        if _DROPS.search(counter) and not _PROGRAMS_OWN.search(counter):
            found[counter] = int(text)
    (queue, *_) = json.loads(node.run("tc", "-j", "-s", "qdisc", "show", "dev", device))
    found["queue"] = queue.get("drops", 0)
    return found


class Child:
    """One of our tools in a namespace, which answers lines of its input with lines of JSON."""

    def __init__(self, node: Node, tool: str, *arguments: str) -> None:
        self._name = f"{tool} {arguments[0]}"
        self._process = subprocess.Popen(
            node.argv(sys.executable, str(TOOLS / tool), *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the lab alone
        )

    def read(self, timeout: float = 20) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = b""
        if select.select([self._process.stdout], [], [], timeout)[0]:
            line = self._process.stdout.readline()
        if not line:
            raise LabError(f"{self._name} does not answer")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LabError(f"{self._name} has ended") from None
        return self.read()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class RelayProcess:
    """The relay, running."""

    def __init__(self, here: RelayLab) -> None:
        near, far = here.relay_addresses
        addresses = (near, here.left.address, far, here.right.address)
        self._child = Child(here.relay, "relay.py", *addresses, str(PORT))
        here.defer(self._child.end)
        self._child.read()

    def set(self, a: list[Pattern] | None = None, b: list[Pattern] | None = None) -> None:
        """What is done from now on to what a and b send; None: as before."""
        described = {
            side: [(type(pattern).__name__, _settings(pattern)) for pattern in patterns]
            for side, patterns in zip(SIDES, (a, b), strict=True)
            if patterns is not None
        }
        self._child.ask({"set": described})

    def report(self) -> dict[str, dict[str, Any]]:
        """By the side that sends; see relay.py."""
        return self._child.ask({"report": True})


def _settings(pattern: Pattern) -> dict[str, Any]:
    fields = type(pattern).__dataclass_fields__  # type: ignore[attr-defined]
    return {name: getattr(pattern, name) for name, field in fields.items() if field.init}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the packets of one direction."""

    sent: int
    lost: int
    twice: int
    late: int
    most_late: int
    """Packets behind the highest."""
    longest_gap: float
    """Seconds without an arrival."""
    seconds: float
    lost_first: list[tuple[int, int]]
    """The first stretches of lost numbers."""
    failures: dict[str, int]
    """Of generator and receiver."""


class Flow:
    """Numbered packets from one node to an address of the other."""

    def __init__(self, sender: Node, receiver: Node, address: str, rate: int) -> None:
        flow = str(int.from_bytes(os.urandom(7), "big"))
        self._receiver = Child(receiver, "numbered.py", "receive", flow)
        port = self._receiver.read()["port"]
        self._sender = Child(sender, "numbered.py", "send", address, str(port), flow, str(rate))
        self._sender.read()
        self._sent: dict[str, Any] = {}

    def stop(self) -> None:
        """Sends no more."""
        self._sent = self._sender.ask({})

    def received(self) -> int:
        """Different packets, so far."""
        unique: int = self.seen()["unique"]
        return unique

    def seen(self) -> dict[str, Any]:
        """See numbered.py's receiver."""
        return self._receiver.ask({})

    def outcome(self) -> Outcome:
        """After `stop`; waits for what is on its way."""
        seen = self._receiver.ask({})
        deadline = time.monotonic() + 10
        quiet = 0
        while seen["unique"] < self._sent["sent"] and quiet < 10 and time.monotonic() < deadline:
            time.sleep(0.1)
            before, seen = seen, self._receiver.ask({})
            quiet = quiet + 1 if seen["unique"] == before["unique"] else 0
        sent = self._sent["sent"]
        return Outcome(
            sent=sent,
            lost=sent - seen["unique"],
            twice=seen["twice"],
            late=seen["late"],
            most_late=seen["most_late"],
            longest_gap=seen["longest_gap"],
            seconds=self._sent["seconds"],
            lost_first=seen["lost_first"],
            failures={
                **{f"refused {name}": n for name, n in self._sent["refused"].items()},
                **{f"receiver {name}": n for name, n in seen["failures"].items() if n},
            },
        )

    def end(self) -> None:
        self._sender.end()
        self._receiver.end()
