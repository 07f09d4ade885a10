"""The userspace path behind a kernel path that works again."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from unittest.mock import MagicMock

import pytest

from ebpfvpn import tai64n
from ebpfvpn.datapath import Confirmed, Left, PathChanged
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.paths import Paths
from ebpfvpn.userspace.state import PeerState
from userspace.bench import LOCAL_INDEX, PEER, REMOTE, SOCKET, Bench, message


@pytest.mark.parametrize("has_older", [False, True])
def test_a_session_that_is_confirmed_there_is_sealed_with_there(has_older: bool) -> None:
    """It waited for its first packet when the kernel path came."""
    bench = Bench()
    paths = Paths(tun=bench.tun, udp=bench.udp, userspace=bench.datapath, kernel=None, reason="",
                  build=None)  # fmt: skip
    paths._peers[PEER] = MagicMock()
    bench.tun.persist = MagicMock()  # type: ignore[method-assign]
    if not has_older:
        bench.datapath.retire(LOCAL_INDEX)
    bench.install(LOCAL_INDEX + 1, confirmed=False)
    kernel = MagicMock(KernelDatapath)
    kernel.events_fd.return_value = os.eventfd(0, os.EFD_CLOEXEC)
    kernel.events.return_value = []
    paths._go_up(kernel)
    assert paths.events() == [PathChanged(sealing_lost=False)]
    bench.udp.arrivals.append((message(0, b"", index=LOCAL_INDEX + 1), 0, REMOTE[4], 0))
    with bench.clock():
        assert paths.messages(SOCKET) == []
        assert paths.events() == [Confirmed(PEER, LOCAL_INDEX + 1)]
        paths.send(PEER, [b""])
        paths.set_usable(PEER, True)
        paths.send(PEER, [b""])
    assert [counter for _, counter, _ in bench.texts()] == [0, 1]
    kernel.send.assert_not_called()
    os.close(kernel.events_fd())


def with_state(bench: Bench, state: Sequence[PeerState], left: Sequence[Left]) -> Paths:
    """After a restart: behind a kernel path, in which `left` was left."""
    kernel = MagicMock(KernelDatapath)
    kernel.events_fd.return_value = os.eventfd(0, os.EFD_CLOEXEC)
    weakref.finalize(bench, os.close, kernel.events_fd.return_value)
    kernel.events.return_value = []
    kernel.traffic.return_value = {}
    kernel.left.return_value = left
    bench.datapath.remove_peer(PEER)
    return Paths(tun=bench.tun, udp=bench.udp, userspace=bench.datapath, kernel=kernel, reason="",
                 build=None, state=state)  # fmt: skip


def test_figures_go_over_every_restart() -> None:
    """Also when all sessions that they are of are over. Nobody needs a new one for that."""
    bench = Bench()
    bench.send(b"", b"", b"")
    before = bench.traffic()
    bench.datapath.retire(LOCAL_INDEX)
    state: Sequence[PeerState] | None = bench.datapath.state({PEER: tai64n.NEVER})
    for _ in range(2):
        assert state is not None
        bench = Bench()
        paths = with_state(bench, state, [Left(bytes(32), PEER)])
        assert [one.number for one in paths.left()] == [PEER]
        assert paths.events() == []
        assert paths.traffic() == {PEER: before}
        state = paths.state()


def test_without_figures_or_sessions_there_is_no_state() -> None:
    bench = Bench()
    paths = with_state(bench, (), [Left(bytes(32), PEER)])
    paths.left()
    assert paths.state() is None


def test_sessions_behind_the_kernel_path_are_renewed() -> None:
    before, bench = Bench(), Bench()
    state = before.datapath.state({PEER: tai64n.NEVER})
    paths = with_state(bench, state, [Left(bytes(32), PEER)])
    (one,) = paths.left()
    assert one.current is not None
    assert paths.events() == [PathChanged(sealing_lost=False)]


@pytest.mark.parametrize("heard", [False, True])
def test_what_an_older_kernel_path_left_of_a_peer_is_told_with_it(heard: bool) -> None:
    """Else its sessions there would be forgotten, and never renewed."""
    before, bench = Bench(), Bench()
    if not heard:
        before.peer.endpoint = None
    state = before.datapath.state({PEER: bytes(12)})
    older = Left(bytes(32), None, endpoint=REMOTE[6], timestamp=bytes([1] * 12), renew=True)
    stranger = Left(bytes([1] * 32), None, renew=True)
    paths = with_state(bench, state, [older, stranger])
    told = {one.public_key: one for one in paths.left()}
    assert told.pop(bytes([1] * 32)) == stranger
    (one,) = told.values()
    assert (one.number, one.renew, one.timestamp) == (PEER, True, bytes([1] * 12))
    assert one.current == before.session.known
    assert one.endpoint == REMOTE[4 if heard else 6]


@pytest.mark.parametrize("length", [4, 16, 31, 32, 200])
def test_what_is_of_no_session_is_not_reinjected(length: int) -> None:
    """It would come back: the programs pass it on, to the socket."""
    bench = Bench()
    paths = Paths(tun=bench.tun, udp=bench.udp, userspace=bench.datapath, kernel=None, reason="",
                  build=None)  # fmt: skip
    kernel = MagicMock(KernelDatapath)
    kernel.events_fd.return_value = os.eventfd(0, os.EFD_CLOEXEC)
    kernel.has.side_effect = lambda index: index == 77
    kernel.drops.return_value = {}
    paths._take_front(kernel)
    stray = (4).to_bytes(4, "little") + (78).to_bytes(4, "little") + bytes(192)
    own = (4).to_bytes(4, "little") + (77).to_bytes(4, "little") + bytes(192)
    for data in (stray[:length], own):
        bench.udp.arrivals.append((data, 0, REMOTE[4], 0))
    with bench.clock():
        assert paths.messages(SOCKET) == []
    kernel.reinject.assert_called_once_with(own, REMOTE[4], 0)
    assert paths.drops()["unknown_index"] == 1
    os.close(kernel.events_fd())
