"""The key ReplayWindow, from the file to the kernel."""

from __future__ import annotations

import pytest

from ebpfvpn.kernel import window
from ebpfvpn.kernel.map import Map
from echo import ping
from tunnels.nodes import INNER, MODES, pair


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("packets", [64, 65536])
def test_window(packets: int, mode: str) -> None:
    with pair(ReplayWindow=packets, AttachMode=mode) as (one, other):
        assert ping(one.ns, INNER[1], 100) == 100
        for node in (one, other):
            windows = Map.pinned(node.pins / window.MAP)
            (ring,) = (value for _, value in windows.items())
            assert len(ring) == window.ring_bytes(packets)
            assert any(ring)
            (peer,) = node.show()["peers"]
            assert (peer["late"], peer["replayed"]) == (0, 0)
            assert peer["max_lateness"] < 64
