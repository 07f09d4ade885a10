"""The replay window: of several sizes against rows and a model, and shared by CPUs."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn.kernel import window as kernel_window
from ebpfvpn.kernel.layout import number
from ebpfvpn.userspace.replay_window import ReplayWindow
from ebpfvpn.userspace.replay_window import Verdict as Seen
from rows import replay_rows, replay_suite
from rows.at_once import at_once
from rows.packets import ethernet, ipv4, pad
from rows.replay_rows import LATE, NEW, REPLAYED, SIZES, Counts, Model, Window
from rows.tunnel import (
    INNER_HERE,
    INNER_THERE,
    LOCAL_INDEX,
    OTHER_PEER,
    PEER,
    Tunnel,
    Verdict,
    message,
    outer,
    retval,
)
from rows.tunnel import tunnel as loaded

HOOKS = ("open_xdp", "open_tc")
INNER = pad(ipv4(INNER_THERE[4], INNER_HERE[4], b"replay"))
REASONS = {"replayed": REPLAYED, "too_old": LATE}


def arrival(counter: int) -> bytes:
    return ethernet(outer(message(counter, INNER)))


def counts(tunnel: Tunnel, peer: int = PEER) -> Counts:
    entry = tunnel.peer(peer)
    return Counts(entry.late, entry.replayed, entry.max_lateness)


class Opened:
    """The window of a program: see replay_rows.Window."""

    def __init__(self, tunnel: Tunnel, hook: str, size: int) -> None:
        self._tunnel = tunnel
        self._hook = hook
        self.size = size

    def start(self, received: int) -> None:
        self._tunnel.set_up()
        self._tunnel.install(LOCAL_INDEX, received=received)
        self._counted: dict[str, int] = {}

    def take(self, counter: int) -> str:
        if self._tunnel.run(self._hook, arrival(counter)).retval == retval(self._hook, Verdict.GO):
            return NEW
        before, self._counted = self._counted, self._tunnel.counted()
        moved = {k for k, n in self._counted.items() if n != before.get(k, 0)}
        assert sum(self._counted.values()) == sum(before.values()) + 1
        return REASONS[moved.pop()]

    def counts(self) -> Counts:
        found = counts(self._tunnel)
        # The same packets, whoever sent them.
        dropped = {"too_old": found.late, "replayed": found.replayed}
        assert self._tunnel.counted() == {k: n for k, n in dropped.items() if n}
        return found


@pytest.fixture(scope="module", params=SIZES)
def sized(request: pytest.FixtureRequest) -> Iterator[tuple[Tunnel, int]]:
    """A tunnel of its own for each size."""
    with loaded(replay_window=request.param) as found:
        yield found, request.param


@pytest.fixture(scope="module", params=HOOKS)
def window(request: pytest.FixtureRequest, sized: tuple[Tunnel, int]) -> Window:
    return Opened(sized[0], request.param, sized[1])


@pytest.mark.parametrize("size", SIZES)
def test_the_model_itself(size: int) -> None:
    for row in replay_rows.rows(size):
        replay_suite.run(Model(size), row)


test_rows = replay_suite.rows
test_same_verdicts_as_the_model = replay_suite.same_verdicts_as_the_model(examples=20)
test_once_round_the_ring_and_back = replay_suite.once_round_the_ring_and_back


@given(data=st.data(), start=replay_rows.STARTS)
@settings(max_examples=20, deadline=None, database=None)
def test_nothing_is_taken_twice_nor_lost_when_handed_over(
    sized: tuple[Tunnel, int], data: st.DataObject, start: int
) -> None:
    """To the userspace path, which goes on with the window as the programs left it."""
    tunnel, size = sized
    window, model = Opened(tunnel, "open_tc", size), Model(size)
    model.start(start)
    window.start(start)
    for step in data.draw(replay_rows.steps(size)):
        counter = max(model.received + step, 0)
        assert window.take(counter) == model.take(counter)
    ring = tunnel.loaded.maps["windows"].lookup(number(LOCAL_INDEX))
    assert ring is not None
    highest = tunnel.session().receive_highest
    handed = ReplayWindow(size, highest, *kernel_window.seen(ring, highest))
    edge = max(highest - size - 70, 0)
    for counter in [*range(edge, edge + 140), *range(max(highest - 140, 0), highest + 3)]:
        is_new = handed.check(counter) is Seen.NEW
        assert is_new == (model.take(counter) == NEW), counter
        if is_new:
            handed.accept(counter)


@pytest.mark.parametrize("hook", HOOKS)
def test_nothing_is_lost_when_one_packet_jumps_ahead(tunnel: Tunnel, hook: str) -> None:
    jump = 8000
    for counter in (0, jump, *range(1, jump)):
        assert tunnel.run(hook, arrival(counter)).retval == retval(hook, Verdict.GO), counter
    assert tunnel.counted() == {}
    assert counts(tunnel) == Counts(0, 0, jump - 1)


@pytest.mark.parametrize("hook", HOOKS)
def test_peers_are_counted_apart(tunnel: Tunnel, hook: str) -> None:
    index = LOCAL_INDEX + 1
    tunnel.add_peer(OTHER_PEER)
    tunnel.install(index, OTHER_PEER)
    for counter in (0, 20000, 5000, 20000, 19000, 4000):
        tunnel.run(hook, arrival(counter))
    assert counts(tunnel) == Counts(2, 1, 16000)
    assert counts(tunnel, OTHER_PEER) == Counts()


@pytest.mark.parametrize("hook", HOOKS)
def test_in_order_is_never_late(tunnel: Tunnel, hook: str) -> None:
    for counter in range(100):
        tunnel.run(hook, arrival(counter * 3))
    assert tunnel.peer().rx_packets == 100
    assert counts(tunnel) == Counts()


@pytest.mark.parametrize("hook", HOOKS)
def test_what_is_dropped_may_be_forged(tunnel: Tunnel, hook: str) -> None:
    """Nobody decrypts it to find out. What would be taken is decrypted, and then not counted."""
    assert tunnel.run(hook, arrival(20000)).retval == retval(hook, Verdict.GO)
    for counter in (20000, 1, 19000, 30000):
        forged = ethernet(outer(message(counter, INNER, key=bytes(32))))
        assert tunnel.run(hook, forged).retval == retval(hook, Verdict.DROP)
    assert tunnel.counted() == {"replayed": 1, "too_old": 1, "bad_tag": 2}
    assert counts(tunnel) == Counts(1, 1, 19999)
    assert tunnel.session().receive_highest == 20001


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
    late, replayed, max_lateness = counts(tunnel)
    assert late + replayed == 2 * len(arrivals) - sum(times)
    if order == "far apart":  # whoever is behind finds it too old
        assert max(times) == 1
    else:
        assert times == [1] * len(arrivals)
        assert tunnel.counted() == {"replayed": len(arrivals)}
        assert max_lateness < len(arrivals)
    assert tunnel.session().receive_highest == max(counters) + 1
