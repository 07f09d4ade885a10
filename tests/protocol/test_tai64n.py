from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import tai64n

TIMES = st.integers(0, 2**62)


def test_example_of_the_specification() -> None:
    # https://cr.yp.to/libtai/tai64.html: 1992-06-02 08:07:09 TAI, and TAI - UTC taken as 10 s.
    assert tai64n.encode(707472419 * 10**9)[:8].hex() == "400000002a2b2c2d"


@given(TIMES, TIMES)
def test_later_times_compare_greater_or_equal(one: int, other: int) -> None:
    earlier, later = sorted((one, other))
    assert tai64n.encode(earlier) <= tai64n.encode(later)
    if later - earlier >= tai64n.RESOLUTION * 2:
        assert tai64n.encode(earlier) < tai64n.encode(later)


@given(TIMES)
def test_only_the_resolution_shows(time: int) -> None:
    nanoseconds = int.from_bytes(tai64n.encode(time)[8:], "big")
    assert nanoseconds % tai64n.RESOLUTION == 0
    assert 0 <= time % 10**9 - nanoseconds < tai64n.RESOLUTION


@given(TIMES)
def test_successor_is_greater_and_never_is_least(time: int) -> None:
    timestamp = tai64n.encode(time)
    assert tai64n.NEVER < timestamp < tai64n.successor(timestamp)
