"""Rings for replay windows: large enough wherever the window begins, no larger than needed, and
known to programs and maps alike."""

from __future__ import annotations

import pytest

from ebpfvpn.datapath import REPLAY_WINDOW
from ebpfvpn.kernel import layout, objects, window
from rows.tunnel import pins

BITS = 32


def words_touched(packets: int) -> int:
    """The most words that so many counters in a row lie in."""
    return max((first + packets - 1) // BITS + 1 for first in range(BITS))


def test_ring() -> None:
    for packets in range(64, 65537):
        geometry = window.geometry(packets)
        assert geometry.size == packets
        assert 1 << geometry.order >= words_touched(packets) > 1 << geometry.order - 1, packets
        assert window.ring_bytes(packets) == 8 << geometry.order


def test_the_default_takes_one_page() -> None:
    assert window.ring_bytes(REPLAY_WINDOW) == 4096


@pytest.mark.parametrize("packets", [64, 8192, 65536])
def test_both_objects_are_told(packets: int) -> None:
    with pins() as directory:
        for path in (objects.TC_OBJECT, objects.XDP_OBJECT):
            loaded = objects.load(path, pin_root=directory, replay_window=packets)
            told = loaded.maps[window.CONSTANTS].lookup(layout.number(0))
            assert told == bytes(window.geometry(packets)), path
            assert loaded.maps[window.MAP].value_size == window.ring_bytes(packets), path
            loaded.close()


def test_a_window_for_each_of_many_sessions() -> None:
    """As fast as they come: the largest, which the kernel does not reserve beforehand."""
    sessions = 1000
    with pins() as directory:
        loaded = objects.load_tunnel(directory, peers=sessions, xdp=False, replay_window=65536)
        try:
            windows = loaded.maps[window.MAP]
            for index in range(sessions):
                windows.update(layout.number(index), bytes(windows.value_size))
            assert len([*windows.keys()]) == sessions
        finally:
            loaded.close()
