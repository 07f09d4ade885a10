"""The arithmetic of the measurements; what they measure is real in test_bench."""

from __future__ import annotations

import pytest

import measure
from measure import Transfer


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (99, 99.0), (100, 100.0), (0.1, 1.0)]
)
def test_percentile_is_nearest_rank(percent: float, expected: float) -> None:
    assert measure.percentile([float(number) for number in range(1, 101)], percent) == expected


@pytest.mark.parametrize("limit", [900, 100_000, 640_000])
def test_highest_rate_finds_where_loss_begins(limit: int) -> None:
    def trial(rate: int) -> Transfer:
        return Transfer(sent=rate, received=min(rate, limit), seconds=1)

    flood = 700_000
    found = measure.highest_rate(trial, flood)
    assert found <= limit * 1.011
    assert found >= limit - flood / 2**measure.SEARCH_STEPS


def test_highest_rate_counts_what_was_received() -> None:
    # A sender that cannot keep to the rate must not be credited with it.
    found = measure.highest_rate(lambda _rate: Transfer(5_000, 5_000, 1), 700_000)
    assert found == 5_000


def test_cpu_seconds_leaves_out_idle_and_stolen() -> None:
    assert measure.cpu_seconds("cpu  100 20 300 999 999 4 50 999 0 0\ncpu0 1\n") == 4.74


def test_nothing_sent_is_no_success() -> None:
    assert Transfer(0, 0, 1).loss == 1
