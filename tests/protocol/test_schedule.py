from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn.schedule import Schedule

STEPS = st.lists(
    st.tuples(st.integers(0, 5), st.none() | st.integers(0, 50).map(float)), max_size=100
)


@given(STEPS, st.integers(0, 50).map(float))
def test_a_schedule_is_a_dictionary_of_deadlines(
    steps: list[tuple[int, float | None]], now: float
) -> None:
    schedule = Schedule()
    model: dict[int, float] = {}
    for key, deadline in steps:
        schedule.set(key, deadline)
        model.pop(key, None)
        if deadline is not None:
            model[key] = deadline
        assert schedule.next() == min(model.values(), default=None)
    due = schedule.due(now)
    assert sorted(due) == sorted(key for key, deadline in model.items() if deadline <= now)
    assert [model[key] for key in due] == sorted(model[key] for key in due)
    assert schedule.due(now) == []


def test_memory_is_bounded_when_deadlines_only_move() -> None:
    schedule = Schedule()
    for time in range(100_000):
        schedule.set(1, float(time))
    assert len(schedule._heap) < 100
    assert schedule.next() == 99_999.0
