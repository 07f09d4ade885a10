"""What goes over a restart comes back equal."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn import tai64n
from ebpfvpn.datapath import Left
from ebpfvpn.losses import SocketLosses
from ebpfvpn.userspace import state
from ebpfvpn.userspace.replay_window import ReplayWindow, Verdict
from ebpfvpn.userspace.state import State
from rows import replay_rows
from rows.packets import pad
from rows.replay_rows import NEW, SIZES, Model
from userspace.bench import LOCAL_INDEX, OTHER_PEER, PEER, REMOTE, Bench, message

TIMESTAMPS = {PEER: bytes(range(12)), OTHER_PEER: tai64n.NEVER}


def written(bench: Bench) -> State:
    """As the next process reads it."""
    peers = bench.datapath.state(TIMESTAMPS)
    found = state.read(
        state.write(State("identity", 51820, 7, ["10.5.0.0/16"], SocketLosses([3, 4], 5), peers))
    )
    assert found is not None
    assert found.peers == peers
    return found


def restarted(bench: Bench) -> tuple[Bench, list[Left]]:
    """Another bench, with what the first one had."""
    new = Bench(replay_window=bench.session.window._size)
    new.now = bench.now
    new.datapath.remove_peer(PEER)
    left = [new.datapath.restore(peer) for peer in written(bench).peers]
    for peer in left:
        assert peer.number is not None
        new.allow(peer.number, *("10.5.0.0/16", "fd05::/32"))
        new.datapath.set_usable(peer.number, True)
    return new, left


def test_it_is_all_there() -> None:
    old = Bench()
    old.add_other("10.9.0.0/16")
    old.install(LOCAL_INDEX + 1, confirmed=False)
    old.install_receiving(130, 64, 0b101)
    old.send(b"", old.leaving(), b"")
    old.arrive(message(5, pad(old.arriving())), message(5, b""))
    new, left = restarted(old)
    assert {one.number for one in left} == {PEER, OTHER_PEER}
    (mine,) = (one for one in left if one.number == PEER)
    assert mine.current == old.session.known
    assert mine.next is not None
    assert mine.next.local_index == LOCAL_INDEX + 1
    assert [one.local_index for one in mine.others] == [LOCAL_INDEX + 9]
    assert (mine.endpoint, mine.timestamp) == (REMOTE[4], TIMESTAMPS[PEER])
    assert new.datapath.traffic() == old.datapath.traffic()
    assert new.datapath.sessions() == old.datapath.sessions()
    # And goes on.
    new.send(b"")
    assert [counter for _, counter, _ in new.texts()] == [3]
    new.arrive(message(5, b""), message(6, b""), message(64, b"", index=LOCAL_INDEX + 9))
    assert new.counted() == {"replayed": 2}
    new.arrive(message(0, b"", index=LOCAL_INDEX + 1))
    new.send(b"")
    assert new.peer.current is not None
    assert new.peer.current.send_counter == 1


@pytest.mark.parametrize("size", SIZES)
def test_after_many_packets(size: int) -> None:
    bench = Bench(replay_window=size)
    top = 5 * size + 2**40
    for counter in range(top - 2 * size, top + 1, 3):
        bench.session.window.accept(counter)
    new, _ = restarted(bench)
    edge = bench.session.window.highest - size
    for counter in range(edge - 1, top + 2):
        assert new.session.window.check(counter) is bench.session.window.check(counter), counter


@given(data=st.data(), size=st.sampled_from(SIZES), start=replay_rows.STARTS)
@settings(max_examples=200, deadline=None, database=None)
def test_a_window_goes_over_at_any_point(data: st.DataObject, size: int, start: int) -> None:
    window, model = ReplayWindow(size), Model(size)
    model.start(start)
    if start:
        window.accept(start - 1)
    for _ in range(3):
        for step in data.draw(replay_rows.steps(size)):
            counter = max(model.received + step, 0)
            is_new = window.check(counter) is Verdict.NEW
            assert is_new == (model.take(counter) == NEW)
            if is_new:
                window.accept(counter)
        base, seen = window.seen()
        assert base % 64 == 0
        assert base <= window.highest
        window = ReplayWindow(size, window.highest, base, seen)


def test_of_another_version_nothing_is_taken() -> None:
    for text in (b"", b"{", b"[]", b"{}", b'{"peers": 1}', b'{"peers": [{"sessions": []}]}'):
        fd = os.memfd_create("test")
        os.write(fd, text)
        assert state.read(fd) is None
    bench = Bench()
    found = written(bench)
    assert replace(found, port=1) != found
