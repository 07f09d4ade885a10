"""What CPUs share without a lock: in a tight loop on every CPU at once, so that they meet."""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from ebpfvpn.datapath import REPLAY_WINDOW
from ebpfvpn.kernel import layout, objects
from ebpfvpn.kernel.layout import number
from rows.at_once import at_once
from rows.tunnel import BUILD

COUNTERS = 65536
LAST = 16384
FIRST_RECEIVED = 2**32 - COUNTERS // 2
ANY_PACKET = bytes(64)


class Shared:
    """The programs on their maps."""

    def __init__(self, loaded: objects.Object) -> None:
        self._programs = loaded.programs
        self._session = loaded.maps["session"]
        self._windows = loaded.maps["windows"]
        self._last = loaded.maps["last"]
        self._taken = loaded.maps["taken"]
        self.threads = max(2, len(os.sched_getaffinity(0)))

    def run(self, program: str, session: layout.Session) -> dict[int, list[int]]:
        """Runs it on every CPU at once; returns the counters by how often they were taken."""
        self._session.update(number(0), bytes(session))
        self._windows.update(number(0), bytes(self._windows.value_size))
        self._last.update(number(0), bytes(session) * LAST)
        self._taken.update(number(0), bytes(8 * COUNTERS))
        run = self._programs[program].test_run
        at_once([lambda: run(ANY_PACKET)] * self.threads)
        raw = self._taken.lookup(number(0))
        assert raw is not None
        times: dict[int, list[int]] = {}
        for counter, (often,) in enumerate(struct.iter_unpack("=Q", raw)):
            times.setdefault(often, []).append(counter)
        return times

    @property
    def session(self) -> layout.Session:
        found = self._session.lookup(number(0))
        assert found is not None
        return layout.Session.from_buffer_copy(found)


@contextlib.contextmanager
def loaded(replay_window: int) -> Iterator[Shared]:
    found = objects.load(BUILD / "shared.bpf.o", replay_window=replay_window)
    yield Shared(found)
    found.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with loaded(REPLAY_WINDOW) as found:
        yield found


@pytest.fixture(scope="module", params=[64, 8192, 65536])
def sized(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """With a window of so many packets."""
    with loaded(request.param) as found:
        yield found


def how_often(times: dict[int, list[int]]) -> Counter[int]:
    return Counter({often: len(counters) for often, counters in times.items()})


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("order", ["receive_all", "receive_shuffled"])
def test_each_message_is_accepted_once(sized: Shared, order: str, attempt: int) -> None:
    times = sized.run(order, layout.Session())
    assert how_often(times) == {1: COUNTERS}
    assert sized.session.receive_highest == FIRST_RECEIVED + COUNTERS


@pytest.mark.parametrize("attempt", range(5))
def test_each_counter_is_sent_once(shared: Shared, attempt: int) -> None:
    # Every thread asks for as many as there are in all.
    times = shared.run("send_all", layout.Session(send_limit=COUNTERS))
    assert how_often(times) == {1: COUNTERS}
    assert COUNTERS <= shared.session.send_counter <= COUNTERS + shared.threads


@pytest.mark.parametrize("attempt", range(5))
def test_the_last_counter_is_sent_once(shared: Shared, attempt: int) -> None:
    times = shared.run("send_last", layout.Session(send_counter=9, send_limit=10))
    assert how_often(times) == {0: COUNTERS - LAST, 1: LAST}
