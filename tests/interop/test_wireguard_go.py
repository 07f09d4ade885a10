"""Interoperation with wireguard-go: handshakes, keepalives, sizes, content."""

from __future__ import annotations

import itertools
import secrets
import time
from base64 import b64encode

import pytest

from both_paths import in_userspace
from interop.ebpfvpn_node import nothing_failed
from interop.pair import INNER, OUTER, PORTS, SIDES, Side, host_port, pair
from interop.traffic import NumberedPackets, ping, send_tcp, wait_for
from interop.wireguard_go import genkey

KEEPALIVE = 32
"""Bytes of a message without data."""


def preshared_key() -> str:
    return b64encode(secrets.token_bytes(32)).decode()


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("initiator", SIDES)
def test_handshake(initiator: Side, outer: int) -> None:
    with pair(initiator, outer=outer) as p:
        ends = ((p.our_ns, 1), (p.their_ns, 0))
        for inner in (4, 6):
            # The initiator's packet causes the handshake, and is not lost by it.
            for ns, other in ends if initiator == "ours" else ends[::-1]:
                ping(ns, INNER[inner][other])
        role = "initiator" if initiator == "ours" else "responder"
        peer = p.our_peer()
        assert [(s["role"], s["state"]) for s in peer["sessions"]] == [(role, "current")]
        assert peer["endpoint"] == host_port(OUTER[outer][1], PORTS[1])
        assert p.their_peer().endpoint == host_port(OUTER[outer][0], PORTS[0])
        assert peer["latest_handshake"] is not None
        assert abs(peer["latest_handshake"] - p.their_peer().latest_handshake) <= 1
        assert p.ours.status()["refused"] == {}


@pytest.mark.parametrize("initiator", SIDES)
def test_preshared_key(initiator: Side) -> None:
    line = f"PresharedKey = {preshared_key()}"
    with pair(initiator, our_peer=line, their_peer=line) as p:
        ping(p.our_ns if initiator == "ours" else p.their_ns, INNER[4][initiator == "ours"])


@pytest.mark.parametrize("initiator", SIDES)
def test_wrong_preshared_key(initiator: Side) -> None:
    ours, theirs = (f"PresharedKey = {preshared_key()}" for _ in range(2))
    with pair(initiator, our_peer=ours, their_peer=theirs) as p:
        ends = (p.our_ns, p.their_ns) if initiator == "ours" else (p.their_ns, p.our_ns)
        to = INNER[4][initiator == "ours"]
        with NumberedPackets(*ends, to, rate=10) as packets:
            if initiator == "ours":
                refused = "our own handshake's response is refused"
                wait_for(lambda: bool(p.ours.status()["refused"]), 3, refused)
                assert p.our_peer()["sessions"] == []
            else:
                # An initiation is repeated after 5 s if its response was of no use.
                answered = "two responses of ours"
                wait_for(lambda: p.ours.status()["daemon"].get("handshake_sent") == 2, 8, answered)
                assert p.their_peer().latest_handshake == 0
                assert [s["state"] for s in p.our_peer()["sessions"]] == ["next"]
        assert packets.received == []


@pytest.mark.parametrize("initiator", SIDES)
def test_unknown_key(initiator: Side) -> None:
    stranger = genkey()[1]
    views = (
        {"their_view_of_our_key": stranger}
        if initiator == "ours"
        else {"our_view_of_their_key": stranger}
    )
    with pair(initiator, **views) as p:  # type: ignore[arg-type]
        ends = (p.our_ns, p.their_ns) if initiator == "ours" else (p.their_ns, p.our_ns)
        to = INNER[4][initiator == "ours"]
        with NumberedPackets(*ends, to, rate=10) as packets:
            if initiator == "ours":
                sent = "a second initiation, after 5 s without an answer"
                wait_for(lambda: p.ours.status()["daemon"].get("handshake_sent") == 2, 8, sent)
            else:
                wait_for(lambda: bool(p.ours.status()["refused"]), 3, "initiation refused")
                assert "handshake_sent" not in p.ours.status()["daemon"]
        assert p.our_peer()["sessions"] == []
        assert packets.received == []


def test_our_persistent_keepalive() -> None:
    with pair("ours", our_peer="PersistentKeepalive = 1") as p:
        # An initiation of 148 bytes, then one keepalive at once and one a second.
        wait_for(lambda: p.their_peer().rx_bytes >= 148 + KEEPALIVE, 3, "a keepalive")
        start = time.monotonic()
        wait_for(lambda: p.their_peer().rx_bytes >= 148 + 4 * KEEPALIVE, 6, "three more")
        assert 2.5 < time.monotonic() - start < 4.5
        assert p.their_peer().rx_bytes == 148 + 4 * KEEPALIVE
        assert p.our_peer()["tx_packets"] * KEEPALIVE == p.our_peer()["tx_bytes"]


def test_their_persistent_keepalive() -> None:
    with pair("theirs", their_peer="PersistentKeepalive = 1") as p:
        wait_for(lambda: p.our_peer()["rx_packets"] >= 1, 7, "a keepalive")
        start = time.monotonic()
        wait_for(lambda: p.our_peer()["rx_packets"] >= 4, 6, "three more")
        assert 2.0 < time.monotonic() - start < 4.5
        peer = p.our_peer()
        assert peer["rx_bytes"] == peer["rx_packets"] * KEEPALIVE
        assert peer["tx_packets"] == 0  # keepalives are not answered


def test_data_is_acknowledged_by_a_keepalive() -> None:
    """If nothing else is sent for 10 s (whitepaper section 6.5), in either direction."""
    with pair("theirs") as to_us, pair("ours") as to_them:
        for p, ns, to in ((to_us, to_us.their_ns, 0), (to_them, to_them.our_ns, 1)):
            ping(ns, INNER[4][to])
            ends = (p.their_ns, p.our_ns) if to == 0 else (p.our_ns, p.their_ns)
            with NumberedPackets(*ends, INNER[4][to], rate=50) as packets:
                packets.arrive(3, "data")
            assert not packets.lost
        start = time.monotonic()
        ours, theirs = to_us.our_peer(), to_them.our_peer()
        wait_for(lambda: to_us.our_peer()["tx_packets"] > ours["tx_packets"], 12, "a keepalive")
        assert 8.5 < time.monotonic() - start < 11.5
        assert to_us.our_peer()["tx_packets"] == ours["tx_packets"] + 1
        assert to_us.our_peer()["tx_bytes"] == ours["tx_bytes"] + KEEPALIVE
        received = theirs["rx_packets"]
        wait_for(lambda: to_them.our_peer()["rx_packets"] > received, 2, "their keepalive")
        assert to_them.our_peer()["rx_packets"] == received + 1
        assert to_them.our_peer()["rx_bytes"] == theirs["rx_bytes"] + KEEPALIVE


@pytest.mark.parametrize("mtu", [1280, 1420])
def test_sizes(mtu: int) -> None:
    with pair(mtu=mtu) as p:
        for (family, headers), (ns, other) in itertools.product(
            ((4, 28), (6, 48)), ((p.our_ns, 1), (p.their_ns, 0))
        ):
            to = INNER[family][other]
            ping(ns, to, size=mtu - headers, whole=True)  # exactly one packet
            ping(ns, to, size=4000)  # fragments inside
            for size in (16, 17, 31, 32, 33):  # around the padding
                ping(ns, to, size=size, count=1)


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize(("mode", "seal"), [("native", "xdp"), ("generic", "tc"), ("tc", "tc")])
def test_tcp_content(mode: str, seal: str, outer: int) -> None:
    inside = INNER[6 if outer == 4 else 4]
    with pair(our_interface=f"#! AttachMode = {mode}", outer=outer) as p:
        send_tcp(p.our_ns, p.their_ns, inside[1])
        send_tcp(p.their_ns, p.our_ns, inside[0])
        status = p.ours.status()
        found = [(d["open"], d["seal"]) for d in status["datapath"]["devices"]]
        assert found == ([] if in_userspace() else [(mode, seal)])
        nothing_failed(status)
