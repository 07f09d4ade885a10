"""Tests of whatever has a fixture `window` (replay_rows.Window)."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from rows import replay_rows
from rows.replay_rows import Model, Row, Window


def run(window: Window, row: Row) -> None:
    window.start(row.start)
    for i, (counter, verdict) in enumerate(row.script):
        found = window.take(counter)
        assert found == verdict, f"{row.description}: counter {counter}, line {i}: {found}"
    found_counts = window.counts()
    assert found_counts == row.counts, f"{row.description}: {found_counts}"


def compare(window: Window, start: int, steps: list[int]) -> None:
    """With the model."""
    model = Model(window.size)
    model.start(start)
    window.start(start)
    for step in steps:
        counter = max(model.received + step, 0)
        verdicts = window.take(counter), model.take(counter)
        assert verdicts[0] == verdicts[1], (counter, *verdicts)
    counts = window.counts(), model.counts()
    assert counts[0] == counts[1], counts


def rows(window: Window) -> None:
    for row in replay_rows.rows(window.size):
        run(window, row)


def same_verdicts_as_the_model(examples: int) -> Callable[..., None]:
    @given(data=st.data(), start=replay_rows.STARTS)
    @settings(max_examples=examples, deadline=None, database=None)
    def test(window: Window, data: st.DataObject, start: int) -> None:
        compare(window, start, data.draw(replay_rows.steps(window.size)))

    return test


def once_round_the_ring_and_back(window: Window) -> None:
    ring = 2 << (window.size - 1).bit_length()
    compare(window, 0, [0, ring, -ring, -window.size, 1, -window.size])
