"""The replay window: against a model of a window of 8,192 counters, and shared by CPUs."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ebpfvpn.wire import REJECT_AFTER_MESSAGES
from rows.at_once import at_once
from rows.packets import ethernet, ipv4, pad
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    LOCAL_INDEX,
    Tunnel,
    Verdict,
    message,
    outer,
    retval,
)

HOOKS = ("open_xdp", "open_tc")
WINDOW = 8192
RING = 16384
INNER = pad(ipv4(INNER_THERE[4], INNER_HERE[4], b"replay"))

NEW, REPLAYED, TOO_OLD = "new", "replayed", "too_old"


class Model:
    """What RFC 6479 says, with a set."""

    def __init__(self, received: int = 0) -> None:
        self.received = received
        self.seen = {received - 1} if received else set[int]()

    def take(self, counter: int) -> str:
        if counter + WINDOW < self.received:
            return TOO_OLD
        if counter in self.seen:
            return REPLAYED
        self.seen.add(counter)
        self.received = max(self.received, counter + 1)
        return NEW


def take(tunnel: Tunnel, hook: str, counter: int) -> str:
    """What the program does with a message of this counter."""
    before = tunnel.counted()
    result = tunnel.run(hook, ethernet(outer(message(counter, INNER))))
    if result.retval == retval(hook, Verdict.GO):
        assert tunnel.counted() == before
        return NEW
    assert result.retval == retval(hook, Verdict.DROP)
    moved = {k: v - before.get(k, 0) for k, v in tunnel.counted().items() if v != before.get(k, 0)}
    assert list(moved.values()) == [1]
    return next(iter(moved))


@pytest.mark.parametrize("hook", HOOKS)
def test_each_counter_once(tunnel: Tunnel, hook: str) -> None:
    for counter in (0, 1, 2, 31, 32, 33, 63, 64, 65, 3, 500, 499):
        assert take(tunnel, hook, counter) == NEW
        assert take(tunnel, hook, counter) == REPLAYED
    assert tunnel.session().receive_highest == 501


@pytest.mark.parametrize("hook", HOOKS)
def test_late_ones_after_a_jump_ahead(tunnel: Tunnel, hook: str) -> None:
    jump = 8000
    assert take(tunnel, hook, 0) == NEW
    assert take(tunnel, hook, jump) == NEW
    late = list(range(1, jump))
    random.Random(6479).shuffle(late)
    for counter in late:
        packet = ethernet(outer(message(counter, INNER)))
        assert tunnel.run(hook, packet).retval == retval(hook, Verdict.GO), counter
    assert tunnel.counted() == {}
    for counter in (0, jump, *late[:50]):
        assert take(tunnel, hook, counter) == REPLAYED


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("ahead", [WINDOW, RING, RING + 1, 3 * RING + 17, 2**33, 2**44])
def test_edges_of_the_window(tunnel: Tunnel, hook: str, ahead: int) -> None:
    top = 5 + ahead
    assert take(tunnel, hook, 5) == NEW
    assert take(tunnel, hook, top) == NEW
    assert take(tunnel, hook, top - WINDOW) == TOO_OLD
    assert take(tunnel, hook, top - WINDOW + 1) == NEW
    assert take(tunnel, hook, top - WINDOW + 1) == REPLAYED
    assert take(tunnel, hook, top + 1) == NEW
    assert take(tunnel, hook, top - WINDOW + 1) == TOO_OLD
    assert take(tunnel, hook, top) == REPLAYED


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("crossed", [2**32, 2**46, 2**63, REJECT_AFTER_MESSAGES])
def test_window_far_up(tunnel: Tunnel, hook: str, crossed: int) -> None:
    start = crossed - 40
    tunnel.install(LOCAL_INDEX, received=start)
    model = Model(start)
    for counter in (*range(start - 50, crossed), start - WINDOW, start - WINDOW - 1, start):
        assert take(tunnel, hook, counter) == model.take(counter), counter
    if crossed == REJECT_AFTER_MESSAGES:
        assert take(tunnel, hook, crossed) == "expired_receive"
    else:
        for counter in (crossed, crossed + 1, crossed - 1, crossed + WINDOW, crossed):
            assert take(tunnel, hook, counter) == model.take(counter), counter


# Steps from the highest counter so far: near it, at the edges of window and ring, and beyond.
# A peer cannot skip 2**45 counters within a session, so the window need not follow it there: all
# the steps of one run stay below that.
STEPS = st.one_of(
    st.integers(-40, 40),
    st.integers(-WINDOW - 40, WINDOW + 40),
    st.sampled_from([-RING, -WINDOW - 1, -WINDOW, -WINDOW + 1, WINDOW, RING - 1, RING, RING + 1]),
    st.integers(0, 2**38),
)


@pytest.mark.parametrize("hook", HOOKS)
@given(
    start=st.sampled_from([0, 0, 0, 2**32 - 100, 2**46 - 100, 2**60]),
    steps=st.lists(STEPS, min_size=1, max_size=60),
)
@example(start=0, steps=[0, RING, -RING, -WINDOW, 1, -WINDOW])
@settings(max_examples=60, deadline=None, database=None)
def test_same_verdicts_as_the_model(
    programs: Tunnel, hook: str, start: int, steps: list[int]
) -> None:
    programs.set_up()
    programs.install(LOCAL_INDEX, received=start)
    model = Model(start)
    for step in steps:
        counter = max(model.received + step, 0)
        assert take(programs, hook, counter) == model.take(counter), counter
    assert programs.session().receive_highest == model.received


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("order", ["the same", "shuffled", "far apart"])
def test_two_receivers_accept_each_message_once(tunnel: Tunnel, hook: str, order: str) -> None:
    # Long enough that both are often between the first look at the window and the second.
    text = pad(ipv4(INNER_THERE[4], INNER_HERE[4], bytes(1300)))
    counters = list(range(3000))
    if order == "shuffled":
        random.Random(2).shuffle(counters)
    if order == "far apart":
        counters = [counter * 1000 for counter in counters]
    arrivals = [ethernet(outer(message(counter, text))) for counter in counters]
    program, accepted = tunnel.loaded.programs[hook], retval(hook, Verdict.GO)
    verdicts: list[list[bool]] = [[], []]

    def receive(mine: list[bool]) -> None:
        mine.extend(program.test_run(packet).retval == accepted for packet in arrivals)

    at_once([lambda mine=mine: receive(mine) for mine in verdicts])  # type: ignore[misc]
    times = [sum(both) for both in zip(*verdicts, strict=True)]
    if order == "far apart":  # whoever is behind finds it too old
        assert max(times) == 1
    else:
        assert times == [1] * len(arrivals)
        assert tunnel.counted() == {"replayed": len(arrivals)}
    assert tunnel.session().receive_highest == max(counters) + 1
