"""Interoperation with wireguard-go while something changes: addresses, keys, processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from interop.pair import INNER, OUTER, PORTS, PREFIX, SIDES, Pair, Side, host_port, pair
from interop.traffic import NumberedPackets, ping, wait_for
from netns import Namespace, address

MOVED = {4: ("192.0.2.11", "192.0.2.12"), 6: ("2001:db8::11", "2001:db8::12")}
"""Other addresses on the underlay: of ours, of theirs."""


@contextlib.contextmanager
def both_ways(p: Pair, rate: int) -> Iterator[tuple[NumberedPackets, NumberedPackets]]:
    """To theirs, to ours."""
    ping(p.our_ns, INNER[4][1])  # else both sides may begin a session at once
    with (
        NumberedPackets(p.our_ns, p.their_ns, INNER[4][1], rate) as there,
        NumberedPackets(p.their_ns, p.our_ns, INNER[4][0], rate) as back,
    ):
        there.arrive(8, "packets to theirs")
        back.arrive(8, "packets to ours")
        yield there, back


def move(ns: Namespace, old: str, new: str) -> None:
    family = 6 if ":" in old else 4
    ns.run("ip", "address", "del", f"{old}/{PREFIX[family]}", "dev", "under0")
    address(ns, "under0", f"{new}/{PREFIX[family]}")


@pytest.mark.parametrize("outer", [4, 6])
def test_our_address_changes(outer: int) -> None:
    with pair(outer=outer) as p, both_ways(p, rate=100) as (there, back):
        move(p.our_ns, OUTER[outer][0], MOVED[outer][0])
        expected = host_port(MOVED[outer][0], PORTS[0])
        wait_for(lambda: p.their_peer().endpoint == expected, 3, "theirs follows")
        there.arrive(2, "packets to theirs after the move")
        back.arrive(2, "packets to ours after the move")
        # Without a new handshake: the next data packet told.
        assert len(p.our_peer()["sessions"]) == 1


@pytest.mark.parametrize("outer", [4, 6])
def test_their_address_changes(outer: int) -> None:
    with pair(outer=outer) as p, both_ways(p, rate=100) as (there, back):
        move(p.their_ns, OUTER[outer][1], MOVED[outer][1])
        # wireguard-go would go on with its old IPv4 source address, in vain.
        p.theirs.set("peer", p.our_key, "endpoint", host_port(OUTER[outer][0], PORTS[0]))
        expected = host_port(MOVED[outer][1], PORTS[1])
        wait_for(lambda: p.our_peer()["endpoint"] == expected, 5, "ours follows")
        there.arrive(2, "packets to theirs after the move")
        back.arrive(2, "packets to ours after the move")
        assert len(p.our_peer()["sessions"]) == 1


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_their_port_changes(mode: str) -> None:
    with (
        pair(our_interface=f"#! AttachMode = {mode}") as p,
        both_ways(p, rate=100) as (there, back),
    ):
        p.theirs.set("listen-port", "51999")
        expected = host_port(OUTER[4][1], 51999)
        wait_for(lambda: p.our_peer()["endpoint"] == expected, 3, "ours follows")
        there.arrive(2, "packets to theirs at the new port")
        back.arrive(2, "packets to ours from the new port")
        assert len(p.our_peer()["sessions"]) == 1


def test_their_family_changes() -> None:
    """From IPv4 to IPv6, as when a laptop changes networks."""
    with pair() as p:
        ping(p.our_ns, INNER[4][1])
        # Not both ways: a packet of ours would move their endpoint back to IPv4.
        with NumberedPackets(p.their_ns, p.our_ns, INNER[4][0], rate=100) as back:
            back.arrive(2, "packets to ours")
            p.theirs.set("peer", p.our_key, "endpoint", host_port(OUTER[6][0], PORTS[0]))
            expected = host_port(OUTER[6][1], PORTS[1])
            wait_for(lambda: p.our_peer()["endpoint"] == expected, 3, "ours follows")
            back.arrive(2, "packets to ours by IPv6")
        assert back.lost == []
        ping(p.our_ns, INNER[4][1])
        assert p.their_peer().endpoint == host_port(OUTER[6][0], PORTS[0])


def no_packet_is_lost_by_rekeys(p: Pair, rekeys: int, seconds: float) -> None:
    """Waits for so many, at most `seconds`."""
    handshakes: set[int] = set()

    def another() -> bool:
        handshakes.add(p.their_peer().latest_handshake)
        time.sleep(0.2)  # so as not to disturb
        return len(handshakes) > rekeys

    with both_ways(p, rate=1000) as (there, back):
        wait_for(another, seconds, f"{rekeys} rekeys")
        there.arrive(2, "packets to theirs under the last session")
        back.arrive(2, "packets to ours under the last session")
    for packets in (there, back):
        assert packets.refused == 0
        assert packets.lost == []
        assert len(packets.received) == packets.sent  # none twice


def test_we_rekey_under_traffic() -> None:
    with pair(our_interface="#! RekeyAfterTime = 5") as p:
        no_packet_is_lost_by_rekeys(p, rekeys=2, seconds=16)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("initiator", SIDES)
def test_rekey_after_two_minutes_under_traffic(initiator: Side) -> None:
    """By whoever initiated, after REKEY_AFTER_TIME."""
    with pair(initiator) as p:
        # Before that, who has no endpoint loses what it sends.
        ping(*((p.our_ns, INNER[4][1]) if initiator == "ours" else (p.their_ns, INNER[4][0])))
        no_packet_is_lost_by_rekeys(p, rekeys=1, seconds=130)
        roles = [s["role"] for s in p.our_peer()["sessions"]]
        assert set(roles) == {"initiator" if initiator == "ours" else "responder"}


@pytest.mark.parametrize("restarted", SIDES)
def test_restarted_end_initiates(restarted: Side) -> None:
    """At once; the other still has the old session and the timestamps of its handshakes."""
    with pair(restarted) as p:
        here, there = p.our_ns, INNER[4][1]
        if restarted == "theirs":
            here, there = p.their_ns, INNER[4][0]
        ping(here, there)
        end = p.ours if restarted == "ours" else p.theirs
        for _ in range(2):
            end.stop()
            end.start()
            ping(here, there)  # each of them arrives


def test_other_end_recovers_after_a_restart() -> None:
    """Who goes on sending data without an answer shakes hands after 15 s (whitepaper 6.5). The
    restarted one does not know where the other is."""
    with pair("ours") as we_send, pair("theirs") as they_send:
        for p, sender in ((we_send, p_ns := we_send.our_ns), (they_send, they_send.their_ns)):
            ping(sender, INNER[4][1 if sender is p_ns else 0])
            assert len(p.our_peer()["sessions"]) == 1
        with (
            NumberedPackets(we_send.our_ns, we_send.their_ns, INNER[4][1], rate=20) as to_theirs,
            NumberedPackets(they_send.their_ns, they_send.our_ns, INNER[4][0], rate=20) as to_ours,
        ):
            to_theirs.arrive(3, "packets to theirs")
            to_ours.arrive(3, "packets to ours")
            start = time.monotonic()
            we_send.theirs.stop()
            they_send.ours.stop()
            we_send.theirs.start()
            they_send.ours.start()
            took = time.monotonic() - start
            to_theirs.arrive(20, "packets to the restarted wireguard-go")
            assert time.monotonic() - start > 10, "by a session that was gone"
            to_ours.arrive(21 + took - (time.monotonic() - start), "packets to the restarted us")
