"""What the messages look like between the nodes."""

from __future__ import annotations

import socket

import pytest

from both_paths import in_userspace
from tunnels.nodes import INNER, OUTER, OUTER6, pair
from tunnels.sniff import Sniffer
from tunnels.traffic import udp_socket

_HEADERS, _TAG = 16, 16
_IP_RECVTOS = 13
_IP_TOS = 1
_DATA = 4


@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["outer4", "outer6"])
@pytest.mark.parametrize("mode", ["native", "tc"])
def test_messages_are_padded_and_have_right_checksums(mode: str, outer: tuple[str, str]) -> None:
    """Seen on the receiving device, in tc mode: XDP redirects past the sending device's taps."""
    with pair(outer=outer, AttachMode=mode) as (one, other):
        other.down()
        other.configure(
            {"ListenPort": 51820, "Address": f"{INNER[1]}/24", "AttachMode": "tc"},
            [one.peer(INNER[0])],
        )
        other.up()
        if in_userspace():
            one.ns.run("ethtool", "-K", "under0", "tx", "off")  # then the kernel fills them in
        lengths = [1, 4, 5, 100, 612, 1000, 1380, 1391, 1392]
        with udp_socket(one.ns, INNER[0]) as near, udp_socket(other.ns, INNER[1]) as far:
            far.settimeout(5)
            with Sniffer(other.ns, "under0", outgoing=False) as sniffer:
                for length in lengths:
                    near.sendto(bytes(length), far.getsockname())
                    far.recv(2000)
        messages = sniffer.messages()
        # Those of handshake messages may be left to the device, and a veth does nothing.
        data = [m for m in messages if m.payload[0] == _DATA]
        assert {(m.source, m.destination) for m in data} == {outer}
        assert {m.sum for m in data} == {0}
        assert {m.ipv4_sum for m in data} == {0}
        assert all(m.udp_checksum for m in data)
        carried = [len(m.payload) - _HEADERS - _TAG for m in data]
        # A keepalive may stand between, and first packets may have been longer.
        expected = [min((length + 28 + 15) // 16 * 16, 1420) for length in lengths]
        assert [length for length in carried if length] == expected
        counters = [int.from_bytes(m.payload[8:16], "little") for m in data]
        assert counters == list(range(len(data)))


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_congestion_marks_go_through(mode: str) -> None:
    """Inner ECN to outer, and back: what the sender may be told survives (RFC 6040)."""
    with pair(AttachMode=mode) as (one, other):
        other.down()
        other.configure(
            {"ListenPort": 51820, "Address": f"{INNER[1]}/24", "AttachMode": "tc"},
            [one.peer(INNER[0])],
        )
        other.up()
        with udp_socket(one.ns, INNER[0]) as near, udp_socket(other.ns, INNER[1]) as far:
            far.settimeout(5)
            far.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
            near.sendto(b"handshake", far.getsockname())
            far.recv(100)
            for tos in (0, 1, 2, 3, 0xB8 | 2):
                near.setsockopt(socket.IPPROTO_IP, _IP_TOS, tos)
                with Sniffer(other.ns, "under0", outgoing=False) as sniffer:
                    near.sendto(b"x", far.getsockname())
                    _, control, _, _ = far.recvmsg(100, 100)
                assert [data[0] for _, kind, data in control if kind == _IP_TOS] == [tos]
                data = [m for m in sniffer.messages() if m.payload[0] == _DATA]
                assert tos & 3 in [m.tos for m in data]
