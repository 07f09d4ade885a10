"""The segmenter in a namespace, as the kernel shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ebpfvpn.kernel import segmenter
from ebpfvpn.kernel.segmenter import Segmenter
from ebpfvpn.netlink import Netlink
from netns import Namespace, namespace


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as ns:
        yield ns


@pytest.fixture
def netlink(ns: Namespace) -> Iterator[Netlink]:
    netlink = ns.call(Netlink)
    yield netlink
    netlink.close()


def links(ns: Namespace) -> dict[int, dict[str, Any]]:
    shown = json.loads(ns.run("ip", "-d", "-j", "link"))
    return {link["ifindex"]: link for link in shown if link["ifname"] != "lo"}


def active_features(ns: Namespace, device: str) -> set[str]:
    lines = (line.partition(":") for line in ns.run("ethtool", "-k", device).splitlines()[1:])
    return {name.strip() for name, _, state in lines if state.split()[0] == "on"}


@pytest.mark.parametrize(
    ("mtu", "outer_mtu", "jumbo"), [(1420, 3498, False), (3398, 3498, False), (3399, 65535, True)]
)
def test_pair(ns: Namespace, netlink: Netlink, mtu: int, outer_mtu: int, jumbo: bool) -> None:
    made = ns.call(segmenter.create, netlink, "wg0", mtu)
    outer, inner = (links(ns)[i] for i in (made.outer, made.inner))
    assert made.jumbo == jumbo
    assert (outer["mtu"], inner["mtu"]) == (outer_mtu, 65535)
    assert outer["ifalias"] == "ebpfvpn wg0 outer"
    assert inner["ifalias"] == "ebpfvpn wg0 inner"
    assert made.outer_mac.hex(":") == outer["address"]
    for end in (outer, inner):
        assert {"UP", "NOARP"} <= set(end["flags"])
        active = active_features(ns, end["ifname"])
        assert not {name for name in active if name.startswith("tx-")}
        assert not active & {"scatter-gather", "generic-segmentation-offload"}
        assert ("generic-receive-offload" in active) == (end is outer)
        assert ns.run("ip", "-6", "address", "show", "dev", end["ifname"]) == ""


def test_outer_queues(ns: Namespace, netlink: Netlink) -> None:
    made = ns.call(segmenter.create, netlink, "wg0", 1420)
    outer = links(ns)[made.outer]
    queues = json.loads(ns.run("tc", "-j", "qdisc", "show", "dev", outer["ifname"]))
    fifos = [q for q in queues if q["kind"] == "pfifo"]
    assert len(fifos) == outer["num_tx_queues"]
    assert {q["options"]["limit"] for q in fifos} == {1000}
    assert [q["kind"] for q in queues if q.get("root")] in (["mq"], ["pfifo"])


def test_removal(ns: Namespace, netlink: Netlink) -> None:
    one: Segmenter = ns.call(segmenter.create, netlink, "wg0", 1420)
    other = ns.call(segmenter.create, netlink, "wg01", 1420)
    assert segmenter.find(netlink, "wg0", 1420) == one
    for _ in range(2):
        segmenter.remove(netlink, "wg0")
        assert set(links(ns)) == {other.outer, other.inner}
        assert segmenter.find(netlink, "wg0", 1420) is None
    segmenter.remove(netlink, "wg01")
    assert not links(ns)
