"""Endpoints that move, and which of a node's addresses answers."""

from __future__ import annotations

import os
import signal

import pytest

from echo import ping
from netns import Namespace, address
from tunnels.nodes import (
    INNER,
    MODES,
    OUTER,
    OUTER6,
    PORT,
    endpoint,
    introduce,
    node,
    underlay,
    wait_for,
)
from tunnels.sniff import Sniffer
from tunnels.traffic import Numbered


def replace_address(ns: Namespace, old: str, new: str) -> None:
    # Else the new one, secondary to the old, goes with it.
    ns.run("sysctl", "-qw", "net.ipv4.conf.under0.promote_secondaries=1")
    address(ns, "under0", new)
    ns.run("ip", "address", "del", old, "dev", "under0")


@pytest.mark.parametrize("mode", MODES)
def test_the_endpoint_follows_an_address_that_changes_under_traffic(mode: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, AttachMode=mode)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        # Only who moves knows where the other one is: it has to send first.
        with Numbered(a, b, INNER[1]) as there, Numbered(b, a, INNER[0]) as back:
            there.wait_for_more(200)
            replace_address(a, f"{OUTER[0]}/24", "192.0.2.99/24")
            there.wait_for_more(500)
            back.wait_for_more(500)
        assert other.show()["peers"][0]["endpoint"] == f"192.0.2.99:{PORT}"
        # One that was overtaken leads back for a moment.
        assert other.show()["daemon"]["roamed"] in (1, 3, 5)
        assert (there.duplicates, back.duplicates) == ([], [])
        # Not more than what was on its way, or had the old source until the daemon heard of it.
        assert len(there.lost) < 200
        assert len(back.lost) < 200


def test_the_endpoint_follows_from_ipv4_to_ipv6_and_to_another_port() -> None:
    """Without a word from the daemon that stays: it is frozen meanwhile."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        one.down()
        one.configure(
            {"ListenPort": PORT + 7, "Address": f"{INNER[0]}/24"},
            [other.peer(INNER[1], endpoint=endpoint(OUTER6[1]))],
        )
        one.up()
        assert ping(a, INNER[1]) == 3
        assert ping(b, INNER[0]) == 3
        wait_for(lambda: other.show()["peers"][0]["endpoint"] == f"[{OUTER6[0]}]:{PORT + 7}")


def test_roaming_needs_no_daemon() -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        one.up()
        other.up()
        address(a, "under0", "192.0.2.99/24")
        assert ping(a, INNER[1]) == 3
        frozen = other.processes()
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            replace_address(a, f"{OUTER[0]}/24", "192.0.2.98/24")
            wait_for(lambda: ping(a, INNER[1], 1) == 1)
            assert ping(a, INNER[1], 20) == 20
            assert ping(b, INNER[0], 3) == 3
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        wait_for(lambda: other.show()["peers"][0]["endpoint"] != endpoint(OUTER[0]))


@pytest.mark.parametrize("mode", MODES)
def test_answers_come_from_the_address_that_was_contacted(mode: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        second = "192.0.2.222"
        address(b, "under0", f"{second}/24")
        introduce(one, other, (OUTER[0], second), AttachMode="tc")
        other.configure(
            {"ListenPort": PORT, "Address": f"{INNER[1]}/24", "AttachMode": mode},
            [one.peer(INNER[0])],
        )
        other.up()
        one.up()
        with Sniffer(a, "under0", outgoing=False) as sniffer:
            assert ping(a, INNER[1], 10) == 10
            assert ping(b, INNER[0], 10) == 10
        messages = sniffer.messages()
        # In userspace messages of a length may leave joined, and are one frame here.
        echo = 16 + 96 + 16  # header; 20 + 8 + 56 bytes, padded; tag
        assert sum(max(len(message.payload) // echo, 1) for message in messages) >= 21
        assert {message.source for message in messages} == {second}
        assert one.show()["peers"][0]["endpoint"] == endpoint(second)
        assert one.show()["daemon"].get("roamed", 0) == 0
