"""Timestamps only ever grow: over restarts, with a clock that jumps, with several daemons."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import tai64n
from ebpfvpn.timestamps import Timestamps

NOW = 1_700_000_000 * 10**9


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ebpfvpn" / "timestamp"


def test_they_are_the_clocks(path: Path) -> None:
    clock = Clock()
    timestamps = Timestamps(path, clock)
    assert timestamps.next() == tai64n.encode(NOW)
    clock.now += 10**9
    assert timestamps.next() == tai64n.encode(NOW + 10**9)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700


@given(st.lists(st.tuples(st.sampled_from(["jump", "restart", "other", "next"]), st.integers())))
def test_they_only_grow(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        daemons = [Timestamps(Path(directory, "timestamp"), clock) for _ in range(2)]
        last = tai64n.NEVER
        for step, number in [*steps, ("next", 0)]:
            if step == "jump":
                clock.now = NOW + number % (1 << 60) - (1 << 59)
            elif step == "restart":
                daemons[0].close()
                daemons[0] = Timestamps(Path(directory, "timestamp"), clock)
            else:
                following = daemons[step == "other"].next()
                assert following > last
                last = following
        for daemon in daemons:
            daemon.close()


def test_a_clock_that_was_set_back_before_the_start(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    first = Timestamps(path, clock).next()
    clock.now -= 3600 * 10**9
    with caplog.at_level(logging.WARNING):
        second = Timestamps(path, clock).next()
    # What a crash of the machine kept from the disk is skipped.
    assert tai64n.later(first, 60) < second < tai64n.later(first, 61)
    assert "set back" in caplog.text
    clock.now += 2 * 3600 * 10**9
    assert Timestamps(path, clock).next() == tai64n.encode(clock.now)


def test_a_file_that_holds_something_else(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    for content in (b"nonsense", b"12", b"\xff" * 24, b"f" * 24):
        path.write_bytes(content)
        timestamps = Timestamps(path, Clock())
        assert str(path) in caplog.text
        assert timestamps.next() == tai64n.encode(NOW)
        assert path.read_bytes() == timestamps._last.hex().encode()


def test_without_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    timestamps = Timestamps(tmp_path / "file" / "timestamp", Clock())
    assert "will not outlive a restart" in caplog.text
    assert timestamps.next() == tai64n.encode(NOW)
    assert timestamps.next() == tai64n.successor(tai64n.encode(NOW))
