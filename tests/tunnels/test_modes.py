"""Every attach mode, IP version inside and IP version outside."""

from __future__ import annotations

import pytest

from both_paths import in_userspace
from echo import ping
from netns import Namespace
from tunnels.nodes import INNER, INNER6, MODES, OUTER, OUTER6, introduce, node, pair, underlay
from tunnels.traffic import Numbered, tcp


def all_traffic(a: Namespace, b: Namespace, inner: tuple[str, str]) -> None:
    assert ping(a, inner[1]) == 3
    assert ping(b, inner[0]) == 3
    tcp(a, b, inner[1])
    tcp(b, a, inner[0])
    with Numbered(a, b, inner[1]) as there, Numbered(b, a, inner[0]) as back:
        there.wait_for_more(300)
        back.wait_for_more(300)
    for flow in (there, back):
        assert (flow.lost, flow.duplicates) == ([], [])


@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["outer4", "outer6"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_carries_everything(mode: str, outer: tuple[str, str]) -> None:
    with pair(outer=outer, AttachMode=mode) as (one, other):
        for inner in (INNER, INNER6):
            all_traffic(one.ns, other.ns, inner)
        for each in (one, other):
            status = each.show()
            if in_userspace():
                assert status["datapath"] == {
                    "path": "userspace", "devices": [], "reason": "asked for"
                }  # fmt: skip
            else:
                (device,) = status["datapath"]["devices"]
                assert (device["name"], device["open"]) == ("under0", mode)
                assert device["reason"].startswith("open: asked for")
                assert device["seal"] == ("xdp" if mode == "native" else "tc")
                assert status["datapath"]["path"] == "kernel"
                # What the daemon handed on: at most the first packets.
                assert status["drops"]["pass_no_usable_session"] < 20
            assert status["daemon"].get("reinjected", 0) == 0
            assert status["drops"]["bad_tag"] == 0
            assert each.failures() == 0


def test_auto_takes_native_first() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        assert one.device() == other.device()
        assert one.device()["open"] == "native"
        assert one.device()["seal"] == "xdp"
        assert one.device()["reason"] == "open: first choice"


@pytest.mark.parametrize("modes", [("native", "tc"), ("generic", "native"), ("tc", "generic")])
def test_nodes_of_different_modes(modes: tuple[str, str]) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        for each, mode in zip((one, other), modes, strict=True):
            introduce(one, other, AttachMode=mode)
            each.up()
        all_traffic(a, b, INNER)
        assert [each.device()["open"] for each in (one, other)] == list(modes)
