"""What crosses the underlay is what was asked for, or nothing is measured."""

from __future__ import annotations

from functools import partial

import pytest

import lab
import underlay
from lab import UNDERLAY, Lab, LabError
from measurements import MEASUREMENTS

ETHTOOL = """Features for net0:
tcp-segmentation-offload: on
\ttx-tcp-segmentation: on
generic-receive-offload: off
tx-udp-segmentation: off [requested on]
"""


def test_features() -> None:
    found = underlay.features(ETHTOOL)
    assert found["tcp-segmentation-offload"] is True
    assert found["generic-receive-offload"] is False
    assert found["tx-udp-segmentation"] is False


def test_every_kind_is_what_it_says() -> None:
    def body(here: Lab) -> None:
        for kind in (*underlay.KINDS, *underlay.KINDS):
            underlay.prepare(here, kind)
            underlay.check(here, kind)
            for other in set(underlay.KINDS) - {kind}:
                with pytest.raises(LabError, match=rf"^underlay {other}: .* of net0 is "):
                    underlay.check(here, other)

    lab.in_lab("underlay", body)


def test_tunnels_leave_room_for_their_headers() -> None:
    mtus = {name: kind.inner_mtu for name, kind in underlay.KINDS.items()}
    assert mtus == {"super": 1420, "gro": 1420, "nogro": 1420, "jumbo": 8921}
    assert all(kind.large + 28 <= kind.inner_mtu for kind in underlay.KINDS.values())
    for kind in underlay.KINDS.values():
        assert f"udp_{kind.large}_flood" in MEASUREMENTS


def test_another_mtu_is_refused() -> None:
    def body(here: Lab) -> None:
        underlay.prepare(here, "jumbo")
        here.right.run("ip", "link", "set", UNDERLAY, "mtu", "1500")
        underlay.check(here, "jumbo")

    message = "underlay jumbo: the MTU of net0 is 1500 with this tunnel"
    with pytest.raises(LabError, match=message):
        lab.in_lab("underlay", body)


def test_what_was_changed_since_is_refused() -> None:
    def body(here: Lab, kind: str) -> None:
        underlay.prepare(here, kind)
        here.right.offload(UNDERLAY, generic_receive_offload=False)
        underlay.check(here, kind)

    message = "underlay gro: generic-receive-offload of net0 is off with this tunnel"
    with pytest.raises(LabError, match=message):
        lab.in_lab("underlay", partial(body, kind="gro"))
