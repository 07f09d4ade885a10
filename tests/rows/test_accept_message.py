"""The socket filter: which of the messages that the data path passed reach the daemon.

It sees them from the UDP header on; a test run takes 14 bytes of Ethernet away first.
"""

from __future__ import annotations

import struct

import pytest

from rows.packets import data_message, ethernet, udp
from rows.tunnel import LOCAL_INDEX, OUR_ADDRESS, PEER_ADDRESS, PEER_PORT, PORT, Tunnel

OTHER = 0x88B5  # an EtherType for experiments: a test run does not look into it
LENGTH = {1: 148, 2: 92, 3: 64}
KEY = bytes(32)


def accepted(tunnel: Tunnel, message: bytes) -> bool:
    datagram = udp(PEER_ADDRESS[4], PEER_PORT, OUR_ADDRESS[4], PORT, message)
    kept = tunnel.run("accept_message", ethernet(datagram, ethertype=OTHER)).retval
    assert kept == 0 or kept >= len(datagram)  # whole, or not at all
    return kept > 0


def handshake(kind: int, length: int) -> bytes:
    return struct.pack("<I", kind) + bytes(length - 4)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_handshake_messages(tunnel: Tunnel, kind: int) -> None:
    assert accepted(tunnel, handshake(kind, LENGTH[kind]))
    assert tunnel.counted() == {}


@pytest.mark.parametrize("text", [b"", bytes(16), bytes(1420), bytes(3000)])
def test_data_of_a_live_session(tunnel: Tunnel, text: bytes) -> None:
    assert accepted(tunnel, data_message(KEY, LOCAL_INDEX, 0, text))
    assert tunnel.counted() == {}


def test_data_of_an_unknown_session(tunnel: Tunnel) -> None:
    assert not accepted(tunnel, data_message(KEY, LOCAL_INDEX + 1, 0, bytes(64)))
    assert tunnel.counted() == {"socket_refused": 1}


MALFORMED = {
    "nothing": b"",
    "less than a type": b"\x04\0\0",
    "a type alone": b"\x04\0\0\0",
    "type 0": handshake(0, 148),
    "type 5": handshake(5, 148),
    "type 4 with reserved bytes": handshake(0x01000004, 64),
    "type 1 with reserved bytes": handshake(0x00000101, 148),
    "data cut short": data_message(KEY, LOCAL_INDEX, 0, b"")[:31],
    **{
        f"type {kind} of {length + off} bytes": handshake(kind, length + off)
        for kind, length in LENGTH.items()
        for off in (-1, 1)
    },
    "type 2 as long as type 1": handshake(2, 148),
}


@pytest.mark.parametrize("message", MALFORMED.values(), ids=MALFORMED)
def test_malformed(tunnel: Tunnel, message: bytes) -> None:
    assert not accepted(tunnel, message)
    assert tunnel.counted() == {"socket_refused": 1}
