"""What a replay window does, whatever implements it: rows of counters and verdicts for windows of
any size, a model, and steps that lead it astray."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hypothesis import strategies as st

from ebpfvpn.wire import REJECT_AFTER_MESSAGES

SIZES = (64, 65, 97, 98, 128, 8192, 65536)
"""Packets: both ends of what may be configured; 97 counters fill four words of 32 bits wherever
they begin, 98 may need a fifth."""

NEW, REPLAYED, LATE = "new", "replayed", "late"


class Counts(NamedTuple):
    """What is told of a peer."""

    late: int = 0
    replayed: int = 0
    max_lateness: int = 0


class Window(Protocol):
    """An implementation, with a window of `size`."""

    size: int

    def start(self, received: int) -> None:
        """A new session, or one that has got to `received` (the highest counter plus one) and in
        whose window no more than that last counter was seen; all counts are zero."""

    def take(self, counter: int) -> str:
        """What becomes of a message with this counter: NEW, REPLAYED or LATE."""

    def counts(self) -> Counts: ...


class Model:
    """See Window; what RFC 6479 says, with a set."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.start(0)

    def start(self, received: int) -> None:
        self.received = received
        self._seen = {received - 1} if received else set[int]()
        self._counts = Counts()

    def take(self, counter: int) -> str:
        late, replayed, max_lateness = self._counts
        lateness = self.received - 1 - counter
        if lateness >= self.size:
            self._counts = Counts(late + 1, replayed, max(max_lateness, lateness))
            return LATE
        if counter in self._seen:
            self._counts = Counts(late, replayed + 1, max_lateness)
            return REPLAYED
        self._counts = Counts(late, replayed, max(max_lateness, lateness))
        self._seen.add(counter)
        self.received = max(self.received, counter + 1)
        return NEW

    def counts(self) -> Counts:
        return self._counts


@dataclass(slots=True)
class Row:
    description: str
    start: int
    script: list[tuple[int, str]]
    """Counters and verdicts."""
    counts: Counts
    """At the end."""


def rows(size: int) -> Iterator[Row]:
    """For a window of so many packets."""
    yield _each_once()
    for jump in (130, 1000, 8000):
        yield _one_ahead(size, jump)
    power = 1 << (size - 1).bit_length()
    for ahead in (size, power, power + 1, 2 * power, 2 * power + 1, 6 * power + 17, 2**33, 2**37):
        yield _edges(size, 5, ahead)
    yield _edges(size, REJECT_AFTER_MESSAGES - 2 - size, size)
    yield _fresh(size)
    yield _moving_on(size)
    # 2^32 is the end of 32 bits; where a ring has 2^n words of 32 bits, the count of its turns has
    # reached 31 and 32 bits at 2^(36+n) and 2^(37+n).
    for bits in (32, 38, 39, 40, 45, 46, 48, 49, 63):
        yield _stream(size, 2**bits, f"2^{bits}")
    yield _stream(size, REJECT_AFTER_MESSAGES - 400, "nearly the last counter")


def _each_once() -> Row:
    script = []
    for counter in (0, 1, 2, 31, 32, 33, 63, 3, 62):
        script += [(counter, NEW), (counter, REPLAYED)]
    return Row("each counter once", 0, script, Counts(0, 9, 60))


def _one_ahead(size: int, jump: int) -> Row:
    """One packet comes so many too early; of the others, which follow in order, 200 are looked at
    and those at the edge of the window."""
    others = range(1, jump)
    edge = [c for c in range(jump - size - 3, jump - size + 4) if c in others]
    chosen = {1, *random.Random(jump).sample(others, min(len(others), 200)), *edge}
    script = [(0, NEW), (jump, NEW)]
    script += [(c, NEW if jump - c < size else LATE) for c in sorted(chosen)]
    script += [(jump, REPLAYED), (jump + 1, NEW)]
    late = sum(c <= jump - size for c in chosen)
    return Row(f"one packet {jump} ahead", 0, script, Counts(late, 1, jump - 1))


def _edges(size: int, start: int, ahead: int) -> Row:
    top = start + ahead
    script = [
        (start, NEW),
        (top, NEW),
        (top - size, LATE),
        (top - size + 1, NEW),
        (top - size + 1, REPLAYED),
        (top + 1, NEW),
        (top - size + 1, LATE),
        (top, REPLAYED),
    ]
    return Row(f"edges after {ahead} from {start}", start, script, Counts(2, 2, size))


def _fresh(size: int) -> Row:
    """What lies in the window is taken once after a jump, in whatever order."""
    top = 7 * size
    late = list(range(top - size + 1, top))
    chosen = random.Random(6479).sample(late, min(len(late), 300))
    script = [(top, NEW), *((c, NEW) for c in chosen), *((c, REPLAYED) for c in chosen)]
    script += [(c, LATE) for c in range(top - size - 40, top - size + 1)]
    return Row("anywhere in the window", 0, script, Counts(41, len(chosen), size + 40))


def _moving_on(size: int) -> Row:
    """Each new counter takes exactly one away at the other end, wherever in a word that is."""
    start, steps = 3 * size, 60
    script = []
    for top in range(start, start + steps):
        script += [(top, NEW), (top - size, LATE), (top - size + 1, NEW)]
    return Row("moving on by one", 0, script, Counts(steps, 0, size))


def _stream(size: int, crossed: int, what: str) -> Row:
    """Blocks that come backwards, each packet twice, across a counter where something may wrap."""
    length = 32
    start = crossed - 2 * length - length // 3
    script = []
    for block in range(start, start + 4 * length, length):
        for counter in reversed(range(block, block + length)):
            script += [(counter, NEW), (counter, REPLAYED)]
    top = start + 4 * length - 1
    script += [(top - size, LATE), (crossed + 1, REPLAYED), (top + 1, NEW)]
    return Row(f"a stream across {what}", start, script, Counts(1, 4 * length + 1, size))


def steps(size: int) -> st.SearchStrategy[list[int]]:
    """From the highest counter so far: near it, at the edges of the window and of any ring that
    holds it, and beyond. A peer cannot skip 2^38 counters within a session, so no window need
    follow it there: all the steps of one run stay below that."""
    power = 1 << (size - 1).bit_length()
    edges = [-2 * power, -power, -size - 1, -size, -size + 1, 0, size, power, 2 * power - 1]
    step = st.one_of(
        st.integers(-40, 40),
        st.integers(-size - 40, size + 40),
        st.sampled_from([*edges, 2 * power, 2 * power + 1]),
        st.integers(0, 2**32),
    )
    return st.lists(step, min_size=1, max_size=60)


STARTS = st.sampled_from([0, 0, 0, 2**32 - 100, 2**39 - 100, 2**46 - 100, 2**60])
