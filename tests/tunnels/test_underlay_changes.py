"""Next hops, routes and devices of the underlay that come and go."""

from __future__ import annotations

import pytest

from both_paths import in_userspace
from echo import ping
from netns import Namespace, address, namespace
from tunnels.nodes import (
    INNER,
    MODES,
    OUTER,
    OUTER6,
    PORT,
    connect,
    endpoint,
    introduce,
    node,
    pair,
    underlay,
    wait_for,
)
from tunnels.traffic import Numbered, tcp


@pytest.mark.parametrize("outer", [OUTER, OUTER6], ids=["outer4", "outer6"])
@pytest.mark.parametrize("mode", ["native", "tc"])
def test_nothing_is_lost_when_a_neighbour_is_forgotten(mode: str, outer: tuple[str, str]) -> None:
    with pair(outer=outer, AttachMode=mode) as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with Numbered(one.ns, other.ns, INNER[1], rate=500) as flow:
            for _ in range(5):
                one.ns.run("ip", "neigh", "flush", "dev", "under0")
                flow.wait_for_more(100)
        assert (flow.lost, flow.duplicates) == ([], [])
        assert one.failures() == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_gateway_between_the_nodes(mode: str) -> None:
    with namespace() as a, namespace() as router, namespace() as b, node(a) as one, \
            node(b) as other:  # fmt: skip
        connect(a, router, "under0")
        connect(router, b, "under1")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        address(a, "under0", "192.0.2.1/24")
        address(router, "under0", "192.0.2.254/24")
        address(router, "under1", "198.51.100.254/24")
        address(b, "under1", "198.51.100.1/24")
        a.run("ip", "route", "add", "default", "via", "192.0.2.254")
        b.run("ip", "route", "add", "default", "via", "198.51.100.254")
        introduce(one, other, ("192.0.2.1", "198.51.100.1"), AttachMode=mode)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        tcp(a, b, INNER[1])
        tcp(b, a, INNER[0])
        # The router is replaced, and its successor says so.
        router.run("sysctl", "-qw", "net.ipv4.conf.under0.arp_notify=1")
        router.run("ip", "link", "set", "under0", "address", "02:00:00:00:00:77")
        wait_for(lambda: ping(a, INNER[1], 1) == 1, 20)
        assert ping(a, INNER[1], 10) == 10


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_the_route_moves_to_another_device_under_traffic(mode: str) -> None:
    """The other node is reached at an address of its own, by two networks."""
    remote = "203.0.113.1"
    with underlay() as (a, b), node(a) as one, node(b) as other:
        connect(a, b, "under1")
        for i, ns in enumerate((a, b)):
            address(ns, "under1", f"198.51.100.{i + 1}/24")
            ns.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
            ns.run("sysctl", "-qw", "net.ipv4.conf.under1.rp_filter=0")
        address(b, "lo", f"{remote}/32")
        a.run("ip", "route", "add", remote, "via", OUTER[1])
        introduce(one, other, (OUTER[0], remote), AttachMode=mode)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        with Numbered(a, b, INNER[1]) as flow:
            flow.wait_for_more(200)
            a.run("ip", "route", "replace", remote, "via", "198.51.100.2")
            wait_for(lambda: in_userspace() or len(one.devices()) == 2)
            before = transmitted(a, "under1")
            flow.wait_for_more(500)
            assert transmitted(a, "under1") >= before + 400 * 250
        assert flow.duplicates == []
        assert len(flow.lost) < 200
        assert set(one.devices()) == (set() if in_userspace() else {"under0", "under1"})


def transmitted(ns: Namespace, device: str) -> int:
    """Bytes that left by a device, as it counts them itself."""
    for line in ns.run("cat", "/proc/net/dev").splitlines():
        name, _, numbers = line.strip().partition(":")
        if name == device:
            return int(numbers.split()[8])
    raise AssertionError(device)


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_a_device_that_goes_and_comes_back(mode: str) -> None:
    with pair(AttachMode=mode) as (one, other):
        a, b = one.ns, other.ns
        assert ping(a, INNER[1]) == 3
        a.run("ip", "link", "del", "under0")
        wait_for(lambda: one.devices() == {})
        wait_for(lambda: other.devices() == {})
        assert ping(a, INNER[1], 1) == 0
        connect(a, b, "under0")
        for i, ns in enumerate((a, b)):
            address(ns, "under0", f"{OUTER[i]}/24")
        wait_for(lambda: ping(a, INNER[1], 1) == 1, 15)
        tcp(a, b, INNER[1])
        tcp(b, a, INNER[0])
        expected = {} if in_userspace() else {"under0": mode}
        assert one.devices() == other.devices() == expected


def test_several_underlay_devices() -> None:
    """Peers by different devices, and a peer that roams from one to the other."""
    with namespace() as hub, namespace() as a, namespace() as b, node(hub) as middle, \
            node(a) as one, node(b) as other:  # fmt: skip
        connect(hub, a, "under0")
        connect(hub, b, "under1", 9001)
        address(hub, "under0", "192.0.2.254/24")
        address(a, "under0", "192.0.2.1/24")
        address(hub, "under1", "198.51.100.254/24")
        address(b, "under1", "198.51.100.1/24")
        middle.configure(
            {"ListenPort": PORT, "Address": "10.66.0.254/24", "MTU": 1420},
            [one.peer("10.66.0.1/32"), other.peer("10.66.0.2/32")],
        )
        for here, own, hub_address in (
            (one, "10.66.0.1/24", "192.0.2.254"),
            (other, "10.66.0.2/24", "198.51.100.254"),
        ):
            here.configure(
                {"ListenPort": PORT, "Address": own, "MTU": 1420},
                [middle.peer("10.66.0.0/24", endpoint=endpoint(hub_address))],
            )
        middle.up()
        one.up()
        other.up()
        for ns, own in ((a, "10.66.0.1"), (b, "10.66.0.2")):
            assert ping(ns, "10.66.0.254") == 3
            tcp(ns, hub, "10.66.0.254")
            tcp(hub, ns, own)
        if not in_userspace():
            modes = middle.devices()
            assert modes["under0"] == "native"
            assert modes["under1"] in ("generic", "tc")


@pytest.mark.parametrize("mode", MODES)
def test_two_tunnels_on_one_device(mode: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other, node(a) as third, \
            node(b) as fourth:  # fmt: skip
        introduce(one, other, AttachMode=mode)
        for here, there, i in ((third, fourth, 0), (fourth, third, 1)):
            here.configure(
                {"ListenPort": PORT + 1, "Address": f"10.67.0.{i + 1}/24", "AttachMode": mode},
                [there.peer(f"10.67.0.{2 - i}", endpoint=endpoint(OUTER[1 - i], PORT + 1))],
            )
        nodes = (one, other, third, fourth)
        for each in nodes:
            each.up()
        for _ in range(2):
            assert ping(a, INNER[1]) == 3
            assert ping(a, "10.67.0.2") == 3
        tcp(a, b, INNER[1])
        tcp(a, b, "10.67.0.2")
        with Numbered(a, b, "10.67.0.2") as flow:
            flow.wait_for_more(100)
            one.down()
            other.down()
            flow.wait_for_more(300)
        assert (flow.lost, flow.duplicates) == ([], [])
        tcp(b, a, "10.67.0.1")
        third.down()
        fourth.down()
        for ns in (a, b):
            assert "xdp" not in ns.run("ip", "link", "show", "under0")
            assert "clsact" not in ns.run("tc", "qdisc", "show", "dev", "under0")


def test_the_attach_mode_is_shared_by_two_tunnels() -> None:
    """A device has one XDP slot: who comes second takes the mode of who came first, or goes on in
    userspace and says why."""
    with underlay() as (a, b), node(a) as one, node(b) as other, node(a) as third:
        introduce(one, other, AttachMode="native")
        third.configure(
            {"ListenPort": PORT + 1, "Address": "10.67.0.1/24", "AttachMode": "generic"},
            [other.peer("10.67.0.2", endpoint=endpoint(OUTER[1], PORT + 1))],
        )
        one.up()
        third.up()
        wait_for(lambda: third.show()["datapath"]["path"] == "userspace")
        assert "another tunnel has attached native XDP" in third.show()["datapath"]["reason"]
        other.up()
        assert ping(a, INNER[1]) == 3
