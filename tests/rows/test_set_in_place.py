"""What the daemon changes while packets pass: named fields, in place, and nothing beside them."""

from __future__ import annotations

import pytest

from ebpfvpn.kernel import layout
from ebpfvpn.kernel.layout import number, octets
from rows.tunnel import HEAVY_FOR, LOCAL_INDEX, PEER, RECEIVE_KEY, SEND_KEY, Tunnel, now

NEW = {
    "current": 7,
    "expires": 8,
    "next": 9,
    "usable": 0,
    "max_inner": 1300,
    "timestamp": octets(bytes(range(12))),
    "flow_ports": 10,
}
FIELDS = {
    layout.SET_CURRENT: {"current", "expires"},
    layout.SET_NEXT: {"next"},
    layout.SET_USABLE: {"usable"},
    layout.SET_MAX_INNER: {"max_inner"},
    layout.SET_TIMESTAMP: {"timestamp"},
    layout.SET_FLOW_PORTS: {"flow_ports"},
}


ARRAYS = ("public_key", "timestamp")


def values(peer: layout.Peer | layout.SetPeer) -> dict[str, object]:
    return {
        name: bytes(getattr(peer, name)) if name in ARRAYS else getattr(peer, name)
        for name, *_ in peer._fields_
    }


@pytest.mark.parametrize("fields", range(64))
def test_set_peer(tunnel: Tunnel, fields: int) -> None:
    tunnel.change_peer(rx_packets=1, tx_bytes=2, last_sent=3, unacknowledged_since=4)
    before = values(tunnel.peer())
    to = layout.SetPeer(peer=PEER, fields=fields, **NEW)
    assert tunnel.loaded.programs["set_peer"].syscall(to) == 0
    named = {name for flag, names in FIELDS.items() if fields & flag for name in names}
    assert values(tunnel.peer()) == before | {name: values(to)[name] for name in named}


def test_first_packets_are_not_overtaken(tunnel: Tunnel) -> None:
    """They go by the segmenter, and so does what is sent in the next moment."""
    for usable in (0, 1):
        tunnel.change_peer(usable=0, heavy_until=0)
        before = now()
        to = layout.SetPeer(peer=PEER, fields=layout.SET_USABLE, usable=usable)
        assert tunnel.loaded.programs["set_peer"].syscall(to) == 0
        until = tunnel.peer().heavy_until
        assert before + HEAVY_FOR <= until <= now() + HEAVY_FOR if usable else until == 0


def test_set_peer_that_is_gone(tunnel: Tunnel) -> None:
    to = layout.SetPeer(peer=PEER + 10, fields=63, **NEW)
    assert tunnel.loaded.programs["set_peer"].syscall(to) == -1
    assert tunnel.loaded.maps["peers"].lookup(number(PEER + 10)) is None


def test_wipe_keys(tunnel: Tunnel) -> None:
    keys = tunnel.loaded.maps["keys"]
    assert keys.lookup(number(LOCAL_INDEX)) == SEND_KEY + RECEIVE_KEY
    wipe = tunnel.loaded.programs["wipe_keys"]
    assert wipe.syscall(layout.WipeKeys(LOCAL_INDEX)) == 0
    assert keys.lookup(number(LOCAL_INDEX)) == bytes(64)
    assert wipe.syscall(layout.WipeKeys(LOCAL_INDEX + 1)) == -1
