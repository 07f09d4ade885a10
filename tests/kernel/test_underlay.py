"""Resolution of endpoints as the kernel would route them, in namespaces."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ebpfvpn.netlink import Monitor, Netlink
from ebpfvpn.underlay import Way, resolve
from kernel.nodes import wait_for
from netns import Namespace, address, namespace, veth


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """Its under0 has 192.0.2.1 and fd00::1; .2 and ::2 answer behind it."""
    with namespace() as ns, namespace() as other:
        veth(ns, other)
        address(ns, "under0", "192.0.2.1/24", "192.0.2.101/24", "fd00::1/64")
        address(other, "under0", "192.0.2.2/24", "fd00::2/64", "fe80::2/64")
        yield ns


@pytest.fixture
def netlink(ns: Namespace) -> Iterator[Netlink]:
    netlink = ns.call(Netlink)
    yield netlink
    netlink.close()


def way(netlink: Netlink, remote: str, local: str | None = None, **options: int) -> Way | None:
    links = {link.ifindex: link for link in netlink.links()}
    return resolve(
        netlink,
        links.get,
        ip_address(remote),
        ip_address(local) if local else None,
        ifindex=options.get("ifindex", 0),
        fwmark=options.get("fwmark", 0),
    )


@pytest.mark.parametrize(("remote", "source"), [("192.0.2.2", "192.0.2.1"), ("fd00::2", "fd00::1")])
def test_on_link(ns: Namespace, netlink: Netlink, remote: str, source: str) -> None:
    found = way(netlink, remote)
    assert found is not None
    assert found.neighbour is None  # asked for now
    wait_for(lambda: (again := way(netlink, remote)) is not None and again.neighbour is not None)
    found = way(netlink, remote)
    assert found is not None
    assert (found.link.name, found.source) == ("under0", ip_address(source))
    assert (found.gateway, found.mtu) == (ip_address(remote), 1500)


def test_gateway_source_and_mtu_of_a_route(ns: Namespace, netlink: Netlink) -> None:
    route = "198.51.100.0/24 via 192.0.2.2 mtu 1300 src 192.0.2.101"
    ns.run("ip", "route", "add", *route.split())
    found = way(netlink, "198.51.100.9")
    assert found is not None
    assert (found.gateway, found.mtu) == (ip_address("192.0.2.2"), 1300)
    assert found.source == ip_address("192.0.2.101")


def test_gateway_of_the_other_family(ns: Namespace, netlink: Netlink) -> None:
    ns.run(*["ip", "route", "add", "198.51.100.0/24", "via", "inet6", "fd00::2"])
    found = way(netlink, "198.51.100.9")
    assert found is not None
    assert found.gateway == ip_address("fd00::2")


def test_mark_decides(ns: Namespace, netlink: Netlink) -> None:
    ns.run(*["ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.2", "table", "77"])
    ns.run(*["ip", "rule", "add", "fwmark", "0x77", "table", "77"])
    assert way(netlink, "198.51.100.9") is None
    assert way(netlink, "198.51.100.9", fwmark=0x77) is not None


def test_source_that_is_not_ours(netlink: Netlink) -> None:
    assert way(netlink, "192.0.2.2", "192.0.2.101") is not None
    assert way(netlink, "192.0.2.2", "192.0.2.77") is None
    assert way(netlink, "fd00::2", "fd00::77") is None


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
@pytest.mark.parametrize("network", ["198.51.100.0/24", "2001:db8::/32"])
def test_no_way(ns: Namespace, netlink: Netlink, kind: str, network: str) -> None:
    remote = "198.51.100.9" if "." in network else "2001:db8::9"
    assert way(netlink, remote) is None
    ns.run("ip", "route", "add", kind, network)
    assert way(netlink, remote) is None


def test_device_without_addresses_needs_no_neighbour(netlink: Netlink) -> None:
    found = way(netlink, "127.0.0.1")
    assert found is not None
    assert found.link.loopback
    assert found.neighbour == bytes(6)


def test_link_local_goes_by_its_device(ns: Namespace, netlink: Netlink) -> None:
    found = way(netlink, "fe80::2", ifindex=ns.ifindex("under0"))
    assert found is not None
    assert found.link.name == "under0"


def test_stale_neighbour_is_asked_again(ns: Namespace, netlink: Netlink) -> None:
    wait_for(lambda: (found := way(netlink, "192.0.2.2")) is not None and bool(found.neighbour))
    entry = ns.run(*["ip", "-o", "neigh", "show", "192.0.2.2", "dev", "under0"]).split()
    mac = entry[entry.index("lladdr") + 1]
    ns.run("sysctl", "-qw", "net.ipv4.neigh.under0.delay_first_probe_time=1")
    ns.run(*f"ip neigh replace 192.0.2.2 lladdr {mac} dev under0 nud stale".split())
    assert way(netlink, "192.0.2.2") is not None
    wait_for(lambda: "REACHABLE" in ns.run("ip", "neigh", "show", "192.0.2.2"))


def test_monitor_tells_what_changed(ns: Namespace) -> None:
    monitor = ns.call(Monitor)
    try:
        seen: set[str] = set()

        def told(kind: str) -> bool:
            seen.update(monitor.read())
            return kind in seen

        for kind, command in {
            "address": "ip address add 192.0.2.55/24 dev under0",
            "route": "ip route add 198.51.100.0/24 via 192.0.2.2",
            "rule": "ip rule add fwmark 9 table 9",
            "neighbour": "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev under0",
            "link": "ip link set under0 mtu 1400",
        }.items():
            seen.clear()
            ns.run(*command.split())
            wait_for(functools.partial(told, kind))
    finally:
        monitor.close()
