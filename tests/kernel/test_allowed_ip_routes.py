"""Routes and rules for allowed-ips, as wg-quick makes them, in a namespace with a dummy TUN."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface, ip_network

import pytest

from ebpfvpn.allowed_ip_routes import AllowedIpRoutes, free_table
from ebpfvpn.netlink import Netlink
from ebpfvpn.tun import Tun, TunError
from kernel.nodes import read
from netns import Namespace, address, namespace, veth

MARK = 51820


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """With an underlay, over which goes the default route."""
    with namespace() as ns, namespace() as other:
        veth(ns, other)
        address(ns, "under0", "192.0.2.1/24", "fd00::1/64")
        ns.run("ip", "route", "add", "default", "via", "192.0.2.2")
        ns.run("ip", "route", "add", "default", "via", "fd00::2")
        yield ns


@pytest.fixture
def netlink(ns: Namespace) -> Iterator[Netlink]:
    netlink = ns.call(Netlink)
    yield netlink
    netlink.close()


@pytest.fixture
def tun(ns: Namespace, netlink: Netlink) -> Iterator[Tun]:
    tun = ns.call(Tun.create, "wg0")
    netlink.set_up(tun.ifindex)
    netlink.add_address(tun.ifindex, ip_interface("10.66.0.1/24"))
    netlink.add_address(tun.ifindex, ip_interface("fd66::1/64"))
    yield tun
    tun.close()


def device(ns: Namespace, target: str, *how: str) -> str:
    """By which device a packet goes."""
    words = ns.run("ip", "route", "get", target, *how).split()
    return words[words.index("dev") + 1]


def test_default_route_leaves_marked_packets_and_known_networks(
    ns: Namespace, netlink: Netlink, tun: Tun
) -> None:
    rules = [ns.run("ip", family, "rule") for family in ("-4", "-6")]
    routes = AllowedIpRoutes(netlink, tun.ifindex, "auto")
    networks = [ip_network("0.0.0.0/0"), ip_network("::/0"), ip_network("10.7.0.0/16")]
    assert routes.fwmark_needed(networks)
    assert free_table(netlink) == MARK
    # As wg-quick's sysctl, which a container without its own /proc/sys cannot set either.
    ns.call(routes.add, networks, MARK)
    assert free_table(netlink) == MARK + 1
    for target, near in (("198.51.100.1", "192.0.2.9"), ("2001:db8::1", "fd00::9")):
        assert device(ns, target) == "wg0"
        assert device(ns, target, "mark", str(MARK)) == "under0"
        assert device(ns, near) == "under0"
    assert device(ns, "10.7.1.1", "mark", str(MARK)) == "wg0"
    ns.call(routes.add, networks, MARK + 1)
    routes.remove(networks, MARK, networks, MARK + 1)
    assert device(ns, "198.51.100.1", "mark", str(MARK + 1)) == "under0"
    assert device(ns, "198.51.100.1", "mark", str(MARK)) == "wg0"
    assert device(ns, "10.7.1.1") == "wg0"
    routes.remove(networks, MARK + 1, [], 0)
    assert device(ns, "10.7.1.1") == "under0"
    assert [ns.run("ip", family, "rule") for family in ("-4", "-6")] == rules


def test_without_default_route_no_rules(ns: Namespace, netlink: Netlink, tun: Tun) -> None:
    rules = ns.run("ip", "rule")
    routes = AllowedIpRoutes(netlink, tun.ifindex, "auto")
    networks = [ip_network("10.66.0.0/24"), ip_network("10.8.0.0/16"), ip_network("fd67::/64")]
    assert not routes.fwmark_needed(networks)
    ns.call(routes.add, networks, 0)
    assert ns.run("ip", "rule") == rules
    assert {device(ns, target) for target in ("10.66.0.2", "10.8.0.1", "fd67::1")} == {"wg0"}


def test_other_table_and_none(ns: Namespace, netlink: Netlink, tun: Tun) -> None:
    network = ip_network("10.8.0.0/16")
    AllowedIpRoutes(netlink, tun.ifindex, "off").add([network], 0)
    assert device(ns, "10.8.0.1") == "under0"
    AllowedIpRoutes(netlink, tun.ifindex, 4711).add([network, ip_network("0.0.0.0/0")], 0)
    assert device(ns, "10.8.0.1") == "under0"
    assert "10.8.0.0/16 dev wg0" in ns.run("ip", "route", "show", "table", "4711")
    assert "default dev wg0" in ns.run("ip", "route", "show", "table", "4711")


def test_tun(ns: Namespace, tun: Tun) -> None:
    ns.run("ping", "-c", "1", "-W", "0.1", "10.66.0.2", check=False)
    packets = []
    while (packet := read(tun)) is not None:
        packets.append(packet)
    assert any(packet[0] >> 4 == 4 for packet in packets)
    with pytest.raises(TunError, match="wg0 exists already"):
        ns.call(Tun.create, "wg0")
    with pytest.raises(TunError, match="no device name"):
        Tun.create("longer-than-15-b")
    tun.close()
    assert "wg0" not in ns.run("ip", "-br", "link")
    tun.close()
