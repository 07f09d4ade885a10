"""From the kernel path, which fails in whatever way, to userspace and back."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock, call

import pytest

from ebpfvpn.datapath import DatapathError, PathChanged, Receiving, Roamed, TooLong
from ebpfvpn.kernel import bpffs
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.keypair import Session
from ebpfvpn.paths import Paths
from userspace.bench import LOCAL_INDEX, PEER, RECEIVE_KEY, REMOTE, Bench, message

READ_ONLY = OSError(errno.EROFS, "Read-only file system")
HALF = Receiving(PEER, Session(77, 78, True, 1000.0), RECEIVE_KEY, 0, 0, 0)


@pytest.fixture
def bench() -> Bench:
    found = Bench()
    found.tun.persist = MagicMock()  # type: ignore[method-assign]
    found.datapath.retire(LOCAL_INDEX)
    return found


@pytest.fixture
def kernel() -> Iterator[MagicMock]:
    found = MagicMock(KernelDatapath)
    found.events_fd.return_value = os.eventfd(0, os.EFD_CLOEXEC)
    found.events.return_value = []
    found.release.return_value = [HALF]
    found.traffic.return_value = found.drops.return_value = {}
    found.check.return_value = found.unread.return_value = []
    found.endpoint.return_value = REMOTE[4]
    yield found
    os.close(found.events_fd())


def paths_of(
    bench: Bench, kernel: KernelDatapath | None, build: Callable[[], KernelDatapath] | None = None
) -> Paths:
    made = Paths(tun=bench.tun, udp=bench.udp, userspace=bench.datapath, kernel=kernel, reason="",
                 build=build)  # fmt: skip
    made._peers[PEER] = MagicMock()
    return made


def test_the_receiving_halves_go_on(bench: Bench, kernel: MagicMock) -> None:
    paths = paths_of(bench, kernel)
    kernel.check.side_effect = DatapathError("no")
    assert paths.check() == []
    assert paths.events() == [PathChanged(sealing_lost=True)]
    bench.arrive(message(0, bench.arriving(), index=77))
    assert len(bench.tun.took()) == 1
    assert paths.describe()["reason"] == "no"


@pytest.mark.parametrize("error", [READ_ONLY, DatapathError("no"), KeyError("a bug")])
@pytest.mark.parametrize(
    "what",
    ["check", "accept_only_messages", "release", "unread", "endpoint", "traffic", "drops"],
)
def test_whatever_fails_userspace_goes_on(
    bench: Bench, kernel: MagicMock, what: str, error: Exception
) -> None:
    paths = paths_of(bench, kernel)
    kernel.check.side_effect = DatapathError("broken")
    if what == "accept_only_messages":
        kernel.check.side_effect = None
    getattr(kernel, what).side_effect = error
    for _ in range(3):
        assert paths.check() == []
    assert paths.describe()["path"] == "userspace"
    assert paths.counters == {"path_down": 1}
    assert paths.events() == [PathChanged(sealing_lost=True)]
    bench.tun.persist.assert_called_once_with(False)  # type: ignore[attr-defined]
    paths.close()
    kernel.discard.assert_called_once_with()


@pytest.mark.parametrize("what", ["set_timestamp", "set_endpoint", "network_changed"])
def test_one_that_cannot_be_told_everything_is_not_gone_up_to(
    bench: Bench, kernel: MagicMock, what: str
) -> None:
    paths = paths_of(bench, None)
    paths.set_timestamp(PEER, bytes(12))
    kernel.endpoint.return_value = REMOTE[6]
    getattr(kernel, what).side_effect = DatapathError("no")
    paths._builder.poll = MagicMock(side_effect=[kernel, None])  # type: ignore[method-assign]
    assert paths.check() == paths.check() == []
    assert paths.describe() == {"path": "userspace", "devices": [], "reason": "no"}
    assert paths.counters == {}
    assert paths.events() == []
    paths.close()
    kernel.discard.assert_called_once_with()


def test_what_is_left_of_one_that_could_not_be_taken_away_goes_at_the_end(
    bench: Bench, kernel: MagicMock
) -> None:
    """Of a real one its pins, here a directory that is called so."""
    bpffs.mount()
    bench.tun.name = f"kt{secrets.token_hex(4)}"
    pins = bpffs.pin_directory(bench.tun.name)
    paths = paths_of(bench, kernel)
    kernel.discard.side_effect = READ_ONLY
    paths.leave_kernel()
    pins.mkdir()
    paths.remove()
    assert not pins.exists()


def test_what_the_kernel_path_knew_last_is_told_first(bench: Bench, kernel: MagicMock) -> None:
    """Where a peer is by now, and messages that wait to be sent."""
    message = TooLong(b"message", REMOTE[4], 0)
    paths = paths_of(bench, kernel)
    kernel.check.side_effect = DatapathError("no")
    kernel.unread.return_value = [message]
    kernel.endpoint.return_value = REMOTE[6]
    paths.check()
    assert paths.events() == [message, Roamed(PEER), PathChanged(sealing_lost=True)]
    assert paths.endpoint(PEER) == REMOTE[6]


def test_the_network_may_have_changed_while_a_kernel_path_was_built(
    bench: Bench, kernel: MagicMock
) -> None:
    paths = paths_of(bench, None)
    kernel.endpoint.return_value = REMOTE[6]
    paths._go_up(kernel)
    assert kernel.mock_calls.index(call.set_endpoint(PEER, REMOTE[4])) < kernel.mock_calls.index(
        call.network_changed()
    )
    assert paths.events() == [PathChanged(sealing_lost=False)]


@pytest.mark.parametrize("how", [Paths.close, Paths.remove])
def test_nothing_stays_open(bench: Bench, kernel: MagicMock, how: Callable[[Paths], None]) -> None:
    bench.tun.name = "nobody"
    paths = paths_of(bench, kernel)
    how(paths)
    how(paths)
    assert paths._poll.closed
