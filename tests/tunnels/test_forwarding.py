"""Super-packets that are forwarded into a tunnel, and from tunnel to tunnel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from both_paths import in_userspace
from echo import ping
from netns import Namespace, address, namespace
from tunnels.nodes import INNER, OUTER, PORT, Node, connect, endpoint, introduce, node, underlay
from tunnels.traffic import Numbered, tcp

CLIENT = "172.16.1.2"
SERVER = "172.16.2.2"


def forward(ns: Namespace) -> None:
    ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")


@contextlib.contextmanager
def stub(behind: Namespace, host: str) -> Iterator[Namespace]:
    """A host in a network of its own behind a namespace, which routes for it."""
    with namespace() as ns:
        connect(behind, ns, "lan0")
        prefix, _, _ = host.rpartition(".")
        address(behind, "lan0", f"{prefix}.1/24")
        address(ns, "lan0", f"{host}/24")
        ns.run("ip", "route", "add", "default", "via", f"{prefix}.1")
        forward(behind)
        yield ns


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "no-offload"])
@pytest.mark.parametrize("mode", ["native", "tc"])
def test_hosts_behind_nodes(mode: str, offload: bool) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other, stub(a, CLIENT) as client, \
            stub(b, SERVER) as server:  # fmt: skip
        for here, there, near, far, lan in (
            (one, other, 0, 1, "172.16.2.0/24"),
            (other, one, 1, 0, "172.16.1.0/24"),
        ):
            here.configure(
                {"ListenPort": PORT, "Address": f"{INNER[near]}/24", "AttachMode": mode},
                [there.peer(INNER[far], lan, endpoint=endpoint(OUTER[far]))],
            )
            here.up()
        if not offload:
            for ns in (a, b, client, server):
                ns.run("ethtool", "-K", "lan0", "rx", "off", "tx", "off")
        assert ping(client, SERVER) == 3
        tcp(client, server, SERVER)
        tcp(server, client, CLIENT)
        with Numbered(client, server, SERVER) as flow:
            flow.wait_for_more(300)
        assert (flow.lost, flow.duplicates) == ([], [])
        for each in (one, other):
            assert each.failures() == 0


@contextlib.contextmanager
def spokes() -> Iterator[tuple[Node, Node, Node, Node]]:
    """Two spokes and, on one host between them, two nodes that are not yet configured."""
    with namespace() as a, namespace() as hub, namespace() as b, contextlib.ExitStack() as undo:
        connect(a, hub, "under0")
        connect(b, hub, "under1")
        address(a, "under0", "192.0.2.1/24")
        address(hub, "under0", "192.0.2.254/24")
        address(hub, "under1", "198.51.100.254/24")
        address(b, "under1", "198.51.100.1/24")
        forward(hub)
        nodes = [undo.enter_context(node(ns)) for ns in (a, b, hub, hub)]
        yield nodes[0], nodes[1], nodes[2], nodes[3]


def spoke(here: Node, hub: Node, own: str, others: str, hub_endpoint: str, mode: str) -> None:
    here.configure(
        {"ListenPort": PORT, "Address": own, "AttachMode": mode},
        [hub.peer(others, endpoint=hub_endpoint)],
    )
    here.up()


def both_ways(a: Namespace, b: Namespace, one: str, other: str) -> None:
    """Between spokes whose devices know no checksum offload: what comes in must be right."""
    for ns, device in ((a, "under0"), (b, "under1")):
        ns.run("ethtool", "-K", device, "rx", "off", "tx", "off")
    assert ping(a, other) == 3
    tcp(a, b, other)
    tcp(b, a, one)
    with Numbered(a, b, other) as flow:
        flow.wait_for_more(300)
    assert (flow.lost, flow.duplicates) == ([], [])


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_spoke_to_hub_to_spoke_by_one_tunnel(mode: str) -> None:
    with spokes() as (one, other, hub, _):
        hub.configure(
            {"ListenPort": PORT, "Address": "10.66.0.254/24", "AttachMode": mode},
            [one.peer("10.66.0.1/32"), other.peer("10.66.0.2/32")],
        )
        hub.up()
        spoke(one, hub, "10.66.0.1/32", "10.66.0.0/24", endpoint("192.0.2.254"), mode)
        spoke(other, hub, "10.66.0.2/32", "10.66.0.0/24", endpoint("198.51.100.254"), mode)
        assert ping(other.ns, "10.66.0.254") == 3
        both_ways(one.ns, other.ns, "10.66.0.1", "10.66.0.2")
        assert set(hub.devices()) == (set() if in_userspace() else {"under0", "under1"})
        assert hub.failures() == 0


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_spoke_to_hub_to_spoke_by_two_tunnels(mode: str) -> None:
    with spokes() as (one, other, left, right):
        left.configure(
            {"ListenPort": PORT, "Address": "10.66.1.254/24", "AttachMode": mode},
            [one.peer("10.66.1.1/32")],
        )
        right.configure(
            {"ListenPort": PORT + 1, "Address": "10.66.2.254/24", "AttachMode": mode},
            [other.peer("10.66.2.1/32")],
        )
        left.up()
        right.up()
        hubs = endpoint("192.0.2.254"), endpoint("198.51.100.254", PORT + 1)
        spoke(one, left, "10.66.1.1/32", "10.66.0.0/16", hubs[0], mode)
        spoke(other, right, "10.66.2.1/32", "10.66.0.0/16", hubs[1], mode)
        assert ping(one.ns, "10.66.1.254") == 3
        assert ping(other.ns, "10.66.2.254") == 3
        both_ways(one.ns, other.ns, "10.66.1.1", "10.66.2.1")
        for each in (left, right):
            assert each.failures() == 0


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_vxlan_inside(mode: str) -> None:
    """Its packets are marked as encapsulated, and tc cannot change the tail of those."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, AttachMode=mode)
        one.up()
        other.up()
        for i, ns in enumerate((a, b)):
            ns.run("ip", "link", "add", "vx0", "type", "vxlan", "id", "5", "dstport", "4789",
                   "local", INNER[i], "remote", INNER[1 - i])  # fmt: skip
            ns.run("ip", "link", "set", "vx0", "mtu", "1370", "up")
            address(ns, "vx0", f"172.16.9.{i + 1}/24")
        assert ping(a, "172.16.9.2") == 3
        tcp(a, b, "172.16.9.2", 4 << 20)
        tcp(b, a, "172.16.9.1", 4 << 20)
