"""The userspace path's replay window: the rows and the model of the kernel's; and handing one over
from there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn.kernel import window as kernel_window
from ebpfvpn.userspace.replay_window import ReplayWindow, Verdict
from rows import replay_rows, replay_suite
from rows.packets import pad
from rows.replay_rows import LATE, NEW, REPLAYED, SIZES, Counts, Model, Window
from userspace.bench import Bench, message

VERDICTS = {Verdict.NEW: NEW, Verdict.SEEN: REPLAYED, Verdict.TOO_OLD: LATE}


class Alone:
    """A ReplayWindow, counting as who uses it does: see replay_rows.Window."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.start(0)

    def start(self, received: int) -> None:
        # As a session gets there: by the one counter.
        self._window = ReplayWindow(self.size)
        if received:
            self._window.accept(received - 1)
        self._counts = Counts()

    def take(self, counter: int) -> str:
        verdict = VERDICTS[self._window.check(counter)]
        late, replayed, max_lateness = self._counts
        lateness = self._window.highest - 1 - counter
        if verdict != REPLAYED:
            max_lateness = max(max_lateness, lateness)
        if verdict == NEW:
            self._window.accept(counter)
        self._counts = Counts(late + (verdict == LATE), replayed + (verdict == REPLAYED),
                              max_lateness)  # fmt: skip
        return verdict

    def counts(self) -> Counts:
        return self._counts


class Opened:
    """That of a session, through the whole of opening."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.start(0)

    def start(self, received: int) -> None:
        self._bench = Bench(replay_window=self.size)
        self._text = pad(self._bench.arriving())
        if received:
            self._bench.session.window.accept(received - 1)
        self._counted = self._bench.counted()

    def take(self, counter: int) -> str:
        bench = self._bench
        bench.arrive(message(counter, self._text))
        before, self._counted = self._counted, bench.counted()
        moved = {k for k, n in self._counted.items() if n != before.get(k, 0)}
        if not moved:
            assert bench.tun.took() == [self._text[: len(bench.arriving())]]
            return NEW
        assert bench.tun.took() == []
        assert sum(self._counted.values()) == sum(before.values()) + 1
        return {"replayed": REPLAYED, "too_old": LATE}[moved.pop()]

    def counts(self) -> Counts:
        found = self._bench.traffic()
        dropped = {"too_old": found.late, "replayed": found.replayed}
        assert self._bench.counted() == {k: n for k, n in dropped.items() if n}
        return Counts(found.late, found.replayed, found.max_lateness)


@pytest.fixture(scope="module", params=SIZES)
def size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module", params=[Alone, Opened])
def window(request: pytest.FixtureRequest, size: int) -> Window:
    found: Window = request.param(size)
    return found


test_rows = replay_suite.rows
test_same_verdicts_as_the_model = replay_suite.same_verdicts_as_the_model(examples=100)
test_once_round_the_ring_and_back = replay_suite.once_round_the_ring_and_back


def test_what_is_dropped_may_be_forged() -> None:
    """Nobody decrypts it to find out. What would be taken is decrypted, and then not counted."""
    bench = Bench()
    bench.arrive(message(20000, b""))
    for counter in (20000, 1, 19000, 30000):
        bench.arrive(message(counter, b"", key=bytes(32)))
    assert bench.counted() == {"replayed": 1, "too_old": 1, "bad_tag": 2}
    found = bench.traffic()
    assert (found.late, found.replayed, found.max_lateness) == (1, 1, 19999)
    assert bench.session.window.highest == 20001


# Handing over.


class Ring:
    """As ebpf/replay.h keeps it in the map, without the exchange."""

    def __init__(self, size: int, received: int = 0) -> None:
        """`received`: see replay_rows.Window.start."""
        self._order = int(kernel_window.geometry(size).order)
        words = 1 << self._order
        turn, at = divmod((received - 1) // 32, words)
        epochs = [max(turn - (i > at), 0) & 0xFFFFFFFF for i in range(words)]
        self._words = [epoch << 32 for epoch in epochs]
        if received:
            self._words[at] |= 1 << (received - 1) % 32
        self._size = size
        self.highest = received

    def take(self, counter: int) -> bool:
        """Whether it is new; then it is marked."""
        if counter < self.highest and self.highest - counter > self._size:
            return False
        at, bit = counter // 32 & (1 << self._order) - 1, 1 << counter % 32
        epoch = counter // 32 >> self._order & 0xFFFFFFFF
        word = self._words[at]
        behind = (word >> 32) - epoch & 0xFFFFFFFF
        if 0 < behind < 2**31 or (behind == 0 and word & bit):
            return False
        self._words[at] = word | bit if behind == 0 else epoch << 32 | bit
        self.highest = max(self.highest, counter + 1)
        return True

    def bytes(self) -> bytes:
        return b"".join(word.to_bytes(8, "little") for word in self._words)


@given(data=st.data(), start=replay_rows.STARTS)
@settings(max_examples=300, deadline=None, database=None)
def test_nothing_is_taken_twice_nor_lost_when_handed_over(
    size: int, data: st.DataObject, start: int
) -> None:
    ring, model = Ring(size, start), Model(size)
    model.start(start)
    for step in data.draw(replay_rows.steps(size)):
        counter = max(model.received + step, 0)
        assert ring.take(counter) == (model.take(counter) == NEW)
    handed = ReplayWindow(size, ring.highest, *kernel_window.seen(ring.bytes(), ring.highest))
    assert handed.highest == ring.highest
    after = data.draw(replay_rows.steps(size))
    edge = max(ring.highest - size - 70, 0)
    for counter in [*(max(ring.highest + step, 0) for step in after), *range(edge, edge + 140),
                    *range(max(ring.highest - 70, 0), ring.highest + 3)]:  # fmt: skip
        verdict = VERDICTS[handed.check(counter)]
        assert (verdict == NEW) == (model.take(counter) == NEW), counter
        if verdict == NEW:
            handed.accept(counter)


def test_everything_in_the_window_is_known_after_it_was_handed_over(size: int) -> None:
    ring, top = Ring(size), 21 * size + 13
    taken = [counter for counter in range(top - size + 1, top + 1) if counter % 3]
    for counter in taken:
        assert ring.take(counter)
    base, seen = kernel_window.seen(ring.bytes(), ring.highest)
    assert base % 64 == 0
    handed = ReplayWindow(size, ring.highest, base, seen)
    edge = ring.highest - size
    expected = {c: Verdict.SEEN if c % 3 else Verdict.NEW for c in range(edge, ring.highest)}
    assert {c: handed.check(c) for c in expected} == expected
    assert handed.check(edge - 1) is Verdict.TOO_OLD


def test_an_unused_window_is_handed_over() -> None:
    handed = ReplayWindow(64, 0, *kernel_window.seen(Ring(64).bytes(), 0))
    assert handed.check(0) is Verdict.NEW
    handed.accept(0)
    assert handed.check(0) is Verdict.SEEN
