"""New sessions while traffic runs."""

from __future__ import annotations

import time

import pytest

from both_paths import in_userspace
from echo import ping
from tunnels.nodes import INNER, Node, introduce, node, underlay, wait_for
from tunnels.traffic import Numbered

pytestmark = pytest.mark.alone


def current(node: Node) -> set[int]:
    sessions = node.show()["peers"][0]["sessions"]
    return {session["local_index"] for session in sessions if session["state"] == "current"}


def test_a_number_of_messages_calls_for_new_keys() -> None:
    """At most every five seconds, as handshakes are."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, RekeyAfterMessages=2000)
        one.up()
        other.up()
        assert ping(one.ns, INNER[1]) == 3
        first = current(one)
        with Numbered(one.ns, other.ns, INNER[1], rate=2000) as there:
            wait_for(lambda: len(current(one) - first) == 1, 10)
        assert (there.refused, there.lost, there.duplicates) == (0, [], [])


def test_nothing_is_lost_or_doubled_by_a_rekey() -> None:
    """One node in XDP, one in tc, so that both seal and both open."""
    seconds = 12 if in_userspace() else 16
    with underlay() as (a, b), node(a) as one, node(b) as other:
        for here, mode in ((one, "native"), (other, "tc")):
            introduce(one, other, AttachMode=mode, RekeyAfterTime=5)
            here.up()
        assert ping(one.ns, INNER[1]) == 3
        seen: tuple[set[int], set[int]] = (set(), set())
        with (
            Numbered(one.ns, other.ns, INNER[1], rate=2000) as there,
            Numbered(other.ns, one.ns, INNER[0], rate=2000) as back,
        ):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for i, each in enumerate((one, other)):
                    seen[i].update(current(each))
                time.sleep(0.5)
        for flow in (there, back):
            assert flow.sent > 1000 * seconds
            assert (flow.refused, flow.lost, flow.duplicates) == (0, [], [])
        for sessions in seen:
            assert len(sessions) >= 3
        for each in (one, other):
            status = each.show()
            assert len(status["peers"][0]["sessions"]) <= 6  # three, and three that fade
            assert status["drops"]["unknown_index"] == 0
            assert status["drops"]["socket_refused"] == 0
            assert status["drops"]["bad_tag"] == 0
