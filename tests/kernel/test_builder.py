"""The builder of kernel paths: what becomes of those that are wanted no more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from unittest.mock import MagicMock

import pytest

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel.backoff import Backoff
from ebpfvpn.kernel.builder import Builder
from ebpfvpn.kernel.datapath import KernelDatapath
from kernel.nodes import wait_for

LONG_AGO = -1000.0


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """What the threads wait for."""
    found = threading.Event()
    yield found
    found.set()


def builder_of(build: MagicMock) -> Builder:
    """It is time to build."""
    made = Builder(build)
    made._backoff = Backoff(LONG_AGO)
    return made


def test_a_build_fails_for_its_own_reason() -> None:
    kernel = MagicMock(KernelDatapath)
    kernel.check.side_effect = DatapathError("the reason")
    kernel.discard.side_effect = OSError("another")
    builder = builder_of(MagicMock(return_value=kernel))
    assert builder.poll(MagicMock()) is None
    with pytest.raises(DatapathError, match="the reason"):
        wait_for(lambda: builder.poll(MagicMock()) is not None)
    builder.close()


def test_what_only_waits_to_be_built_is_not(go_on: threading.Event) -> None:
    before, build = MagicMock(KernelDatapath), MagicMock()
    before.discard.side_effect = go_on.wait
    builder = builder_of(build)
    builder.discard(before)
    assert builder.poll(MagicMock()) is None
    stopped = builder.stop()
    go_on.set()
    stopped.result(10)
    builder.close()
    before.discard.assert_called_once_with()
    build.assert_not_called()


def test_what_is_being_built_is_taken_away_while_others_work(go_on: threading.Event) -> None:
    kernel, begun = MagicMock(KernelDatapath), threading.Event()

    def build() -> KernelDatapath:
        begun.set()
        go_on.wait()
        return kernel

    builder = builder_of(MagicMock(side_effect=build))
    assert builder.poll(MagicMock()) is None
    assert begun.wait(10)
    stopped = builder.stop()
    assert not stopped.done()
    assert builder.poll(MagicMock()) is None
    go_on.set()
    stopped.result(10)
    kernel.discard.assert_called_once_with()
    builder.close()
    builder.close()
