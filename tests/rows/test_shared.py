"""What CPUs share without a lock: in a tight loop on every CPU at once, so that they meet."""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from ebpfvpn.kernel import layout, objects
from ebpfvpn.kernel.layout import number
from rows.at_once import at_once
from rows.tunnel import BUILD

COUNTERS = 65536
LAST = 16384
ANY_PACKET = bytes(64)
WINDOW_BYTES = 8 * layout.WINDOW_WORDS


class Shared:
    """The programs on their maps."""

    def __init__(self, loaded: objects.Object) -> None:
        self._programs = loaded.programs
        self._shared = loaded.maps["shared"]
        self._last = loaded.maps["last"]
        self._taken = loaded.maps["taken"]
        self.threads = max(2, len(os.sched_getaffinity(0)))

    def run(self, program: str, session: layout.Session) -> dict[int, list[int]]:
        """Runs it on every CPU at once; returns the counters by how often they were taken."""
        self._shared.update(number(0), bytes(WINDOW_BYTES + 8) + bytes(session))
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
    def highest(self) -> int:
        return int.from_bytes(self._read()[WINDOW_BYTES : WINDOW_BYTES + 8], "little")

    @property
    def session(self) -> layout.Session:
        return layout.Session.from_buffer_copy(self._read(), WINDOW_BYTES + 8)

    def _read(self) -> bytes:
        found = self._shared.lookup(number(0))
        assert found is not None
        return found


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    loaded = objects.load(BUILD / "shared.bpf.o")
    yield Shared(loaded)
    loaded.close()


def how_often(times: dict[int, list[int]]) -> Counter[int]:
    return Counter({often: len(counters) for often, counters in times.items()})


@pytest.mark.parametrize("attempt", range(5))
def test_each_message_is_accepted_once(shared: Shared, attempt: int) -> None:
    times = shared.run("receive_all", layout.Session())
    assert how_often(times) == {1: COUNTERS}
    assert shared.highest == COUNTERS


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
