"""The arithmetic of the measurements; what they measure is real in test_bench."""

from __future__ import annotations

import pytest

import measure
import udp
from measure import Transfer
from rows import packets


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
    found = measure.highest_rate(trial, flood, steps=8)
    assert 0.97 * limit <= found <= 1.002 * limit


def test_one_hiccup_is_not_the_limit() -> None:
    hiccups = iter([True, False] * 8)

    def trial(rate: int) -> Transfer:
        return Transfer(sent=rate, received=0 if next(hiccups) else rate, seconds=1)

    assert measure.highest_rate(trial, 700_000, steps=8) > 0.97 * 700_000


def test_highest_rate_counts_what_was_received() -> None:
    # A sender that cannot keep to the rate must not be credited with it.
    found = measure.highest_rate(lambda _rate: Transfer(5_000, 5_000, 1), 700_000, 8)
    assert found == 5_000


def test_nothing_sent_is_no_success() -> None:
    assert Transfer(0, 0, 1).loss == 1


def test_frames_carry_packets_as_the_rfcs_have_them() -> None:
    ours = udp.packet("203.0.113.2", "203.0.113.130", 40001, 64)
    text = packets.udp("203.0.113.2", 40001, "203.0.113.130", 40001, bytes(64))
    assert ours == packets.ipv4("203.0.113.2", "203.0.113.130", text)
