"""One run of tools/soak: traffic over a tunnel through the relay, and what became of it."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from ends import ADDRESSES, Keys, Tunnel
from lab import LabError
from patterns import Pattern
from soak_lab import Flow, Outcome, RelayLab, RelayProcess
from watcher import SIDES

_OWN = re.compile(r"^(refused E(NOBUFS|AGAIN|NOMEM)|receiver )")
"""Failures of generator and receiver that say nothing about the tunnel."""
_POLL = 0.25
_PROGRESS = 60.0
"""Seconds between two lines for people who wait."""


@dataclass(frozen=True, slots=True)
class Options:
    peer: str
    """ebpfvpn or wireguard-go: what b is."""
    rate: int
    """Packets a second, each way."""
    rekeys: int
    seconds: float
    datapath: str = "auto"
    """Of our ends: what their Datapath says."""


@dataclass(frozen=True, slots=True)
class Step:
    """One damage, and what it cost."""

    damage: str
    repaired: float
    """Seconds from when it was begun until the daemon said so."""
    lost: dict[str, int]
    """Packets, by the side that sends; also the next two."""
    allowed: dict[str, int]
    gap: dict[str, float]
    """Seconds without an arrival."""
    drops: dict[str, dict[str, int]]
    """As in Result."""
    path: str
    """Of a, afterwards: how messages are opened, or userspace."""


@dataclass(slots=True)
class Result:
    case: str
    options: Options
    flows: dict[str, Outcome] = field(default_factory=dict)
    """By the side that sends."""
    sessions: dict[str, int] = field(default_factory=dict)
    """That carried data from a to b, by the side that initiated them."""
    relay: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What the relay saw, by the side that sends."""
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    """Packets that our ends dropped or handed on meanwhile, by side and reason."""
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the case has to say besides; one line each."""
    broken: list[str] = field(default_factory=list)
    """Promises that were not kept."""
    invalid: list[str] = field(default_factory=list)
    """Why losses of this run say nothing about the tunnel."""

    @property
    def verdict(self) -> Literal["kept", "broken", "invalid"]:
        if self.broken:
            return "broken"
        return "invalid" if self.invalid else "kept"

    def expect(self, promise: bool, otherwise: str) -> None:
        if not promise:
            self.broken.append(otherwise)

    def expect_nothing_lost(self) -> None:
        """A loss counts only where nothing else has lost packets."""
        for side, flow in self.flows.items():
            if flow.lost and not self.invalid:
                stretches = ", ".join(f"{first} to {last}" for first, last in flow.lost_first)
                self.broken.append(
                    f"{flow.lost} packets from {side} lost: {stretches or 'the last'}"
                )

    def expect_nothing_twice(self) -> None:
        for side, flow in self.flows.items():
            self.expect(flow.twice == 0, f"{flow.twice} packets from {side} delivered twice")
            reused = self.relay[side]["reused_counters"]
            self.expect(reused == 0, f"{side} used {reused} counters twice")


def _sessions(relay: dict[str, dict[str, Any]]) -> dict[str, int]:
    """By who initiated them, who is also the first to seal under them."""
    return {side: relay[side]["sessions"][side] for side in SIDES}


def increases(
    before: dict[str, dict[str, int]], now: dict[str, dict[str, int]]
) -> dict[str, dict[str, int]]:
    """Of counters by side and name; those that did not change are left out."""
    return {
        side: {
            name: count - before[side].get(name, 0)
            for name, count in counts.items()
            if count != before[side].get(name, 0)
        }
        for side, counts in now.items()
    }


class Run:
    """A tunnel and traffic in it, in a lab of its own. Every step is bounded in time."""

    def __init__(
        self,
        here: RelayLab,
        case: str,
        options: Options,
        a: Keys | None = None,
        b: Keys | None = None,
    ) -> None:
        """`a` and `b`: own keys of the two ends."""
        self.here = here
        self.options = options
        self.result = Result(case, options)
        self.relay = RelayProcess(here)
        ours = {"Datapath": options.datapath}
        self.tunnel = Tunnel(here, options.peer, ours | dict(a or {}), ours | dict(b or {}))
        self.flows: dict[str, Flow] = {}
        """By the side that sends."""
        self._outside: Counter[str] = Counter()
        self._drops: dict[str, dict[str, int]] = {}

    def start(self, rate: int | None = None) -> None:
        """Traffic both ways."""
        self._outside = self.dropped_outside()
        self._drops = self.drops()
        for i, side in enumerate(SIDES):
            sender, receiver = self.here.nodes[i], self.here.nodes[1 - i]
            flow = Flow(sender, receiver, ADDRESSES[1 - i], rate or self.options.rate)
            self.here.defer(flow.end)
            self.flows[side] = flow

    def dropped_outside(self) -> Counter[str]:
        """What others than the tunnel have lost so far."""
        found = Counter(self.here.dropped())
        for side, seen in self.relay.report().items():
            for name, count in seen["failures"].items():
                found[f"relay, from {side}, {name}"] = count
        found["wireguard-go's socket and device"] = self.tunnel.overflow_at_peer()
        return found

    def forgive(self, before: Counter[str]) -> None:
        """What others have lost since `before` (see `dropped_outside`) they were meant to."""
        for name, count in self.dropped_outside().items():
            self._outside[name] += count - before[name]

    def drops(self) -> dict[str, dict[str, int]]:
        """Of our ends, so far, by side and reason."""
        return {side: end.drops() for side, end in self.tunnel.ours.items()}

    def received(self) -> dict[str, int]:
        """Different packets so far, by the side that sends."""
        return {side: flow.received() for side, flow in self.flows.items()}

    def finish(self) -> Result:
        """Stops the traffic, then the relay's pattern, and counts."""
        result = self.result
        for flow in self.flows.values():
            flow.stop()
        patterns = self.relay.report()
        self.relay.set([], [])
        result.flows = {side: flow.outcome() for side, flow in self.flows.items()}
        result.relay = self.relay.report()
        for side in SIDES:
            result.relay[side] = patterns[side] | result.relay[side]
        result.sessions = _sessions(result.relay)
        result.drops = increases(self._drops, self.drops())
        result.invalid += self._lost_elsewhere()
        return result

    def _lost_elsewhere(self) -> list[str]:
        now = self.dropped_outside()
        found = [
            f"{name}: {count - self._outside[name]}"
            for name, count in now.items()
            if count > self._outside[name]
        ]
        for side in SIDES:
            for name, count in self.result.flows[side].failures.items():
                if _OWN.match(name):
                    found.append(f"traffic from {side}, {name}: {count}")
        return found

    # What a case waits for.

    def sessions(self) -> dict[str, int]:
        """As Result.sessions, so far."""
        return _sessions(self.relay.report())

    def wait_for_sessions(self, side: str, count: int, patience: float = 30) -> None:
        """Until `side` has initiated `count`, or `patience` seconds add none: a promise broken."""
        best, since = -1, time.monotonic()
        told = since
        while (now := self.sessions()[side]) < count:
            if now > best:
                best, since = now, time.monotonic()
            if time.monotonic() > since + patience:
                self.result.broken.append(
                    f"{side} made no new session for {patience:g} s, after {now}"
                )
                return
            if time.monotonic() > told + _PROGRESS:
                told = time.monotonic()
                print(f"{self.result.case}: {now} of {count} from {side}", file=sys.stderr)
            time.sleep(_POLL)

    def wait(self, condition: Callable[[], bool], patience: float, what: str) -> None:
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise LabError(f"{what}: not within {patience:g} s")
            time.sleep(_POLL)

    def both(self, *patterns: Pattern) -> None:
        """The relay does this to both directions from now on."""
        self.relay.set(list(patterns), list(patterns))
