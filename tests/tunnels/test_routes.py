"""Table, FwMark, and the default route through the tunnel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from echo import ping
from netns import Namespace, address, namespace
from tunnels.nodes import (
    INNER,
    INNER6,
    OUTER,
    PORT,
    Node,
    connect,
    endpoint,
    node,
    underlay,
    wait_for,
)
from tunnels.traffic import tcp

FAR = "203.0.113.9"
FAR6 = "2001:db8:9::9"
NEAR_OUTER, FAR_OUTER = "192.0.2.1", "198.51.100.1"


@contextlib.contextmanager
def behind_a_router() -> Iterator[tuple[Namespace, Namespace, Node, Node]]:
    """The near node reaches the far one only by its default route."""
    with namespace() as a, namespace() as router, namespace() as b, node(a) as one, \
            node(b) as other:  # fmt: skip
        connect(a, router, "under0")
        connect(router, b, "under1")
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        address(a, "under0", f"{NEAR_OUTER}/24")
        address(router, "under0", "192.0.2.254/24")
        address(router, "under1", "198.51.100.254/24")
        address(b, "under1", f"{FAR_OUTER}/24")
        address(b, "lo", f"{FAR}/32", f"{FAR6}/128")
        a.run("ip", "route", "add", "default", "via", "192.0.2.254")
        b.run("ip", "route", "add", "default", "via", "198.51.100.254")
        other.configure(
            {"ListenPort": PORT, "Address": f"{INNER[1]}/24, {INNER6[1]}/64"},
            [one.peer(INNER[0], INNER6[0])],
        )
        other.up()
        yield a, b, one, other


@pytest.mark.parametrize("rp_filter", [2, 1], ids=["loose", "strict"])
@pytest.mark.parametrize("mode", ["native", "tc"])
def test_the_default_route_through_the_tunnel_does_not_catch_the_tunnel(
    mode: str, rp_filter: int
) -> None:
    with behind_a_router() as (a, b, one, other):
        a.run("sysctl", "-qw", f"net.ipv4.conf.all.rp_filter={rp_filter}")
        one.configure(
            {"Address": f"{INNER[0]}/24, {INNER6[0]}/64", "AttachMode": mode},
            [other.peer("0.0.0.0/0", "::/0", endpoint=endpoint(FAR_OUTER))],
        )
        one.up()
        assert f"dev {one.name}" in a.run("ip", "route", "get", FAR)
        assert f"dev {one.name}" in a.run("ip", "route", "get", "8.8.8.8")
        assert f"dev {one.name}" in a.run("ip", "-6", "route", "get", FAR6)
        assert ping(a, FAR, 5, source=INNER[0]) == 5
        assert ping(a, FAR6, 5) == 5
        tcp(a, b, FAR)
        # What the main table says more exactly still holds.
        assert ping(a, "192.0.2.254") == 3
        status = one.show()
        assert status["fwmark"] != 0
        assert status["peers"][0]["endpoint"] == endpoint(FAR_OUTER)
        assert status["peers"][0]["tx_packets"] < 20_000
        one.down()
        assert "under0" in a.run("ip", "route", "get", FAR)


@pytest.mark.parametrize("strict", ["all", "under0", ""])
def test_a_filter_that_lets_no_answer_through_is_told(strict: str) -> None:
    with behind_a_router() as (a, _, one, other):
        for device in ("all", "under0"):
            mode = 1 if device == strict else 0
            a.run("sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter={mode}")
        one.configure(
            {"Address": f"{INNER[0]}/24", "Datapath": "userspace"},
            [other.peer("0.0.0.0/0", endpoint=endpoint(FAR_OUTER))],
        )
        one.up()
        assert one.log().count("rp_filter=2") == bool(strict)
        assert ping(a, INNER[1], 1) == (0 if strict else 1)
        a.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2")  # what it says
        wait_for(lambda: ping(a, INNER[1]) == 3)


@pytest.mark.parametrize("mode", ["native", "tc"])
def test_the_mark_chooses_the_way_of_the_tunnels_packets(mode: str) -> None:
    with behind_a_router() as (a, b, one, other):
        a.run("ip", "route", "del", "default")
        a.run("ip", "route", "add", "default", "via", "192.0.2.254", "table", "77")
        a.run("ip", "rule", "add", "fwmark", "0x1234", "table", "77")
        interface = {"Address": f"{INNER[0]}/24", "AttachMode": mode}
        peers = [other.peer(INNER[1], FAR, endpoint=endpoint(FAR_OUTER))]
        one.configure(interface, peers)
        one.up()
        assert ping(a, INNER[1], 1) == 0
        one.down()
        one.configure(interface | {"FwMark": "0x1234"}, peers)
        one.up()
        assert ping(a, INNER[1]) == 3
        tcp(a, b, FAR, 4 << 20)
        assert one.show()["fwmark"] == 0x1234


@pytest.mark.parametrize("table", ["auto", "off", "4242"])
def test_the_table_of_the_routes(table: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        one.configure(
            {"ListenPort": PORT, "Address": f"{INNER[0]}/32", "Table": table},
            [other.peer(INNER[1], FAR6, endpoint=endpoint(OUTER[1]))],
        )
        one.up()
        main = a.run("ip", "route", "show", "dev", one.name)
        own = a.run("ip", "route", "show", "table", "4242", check=False)
        both6 = a.run("ip", "-6", "route", "show", "table", "all", "dev", one.name)
        assert (INNER[1] in main) == (table == "auto")
        assert (INNER[1] in own) == (table == "4242")
        assert (FAR6 in both6) == (table != "off")


def test_a_restart_with_other_default_routes() -> None:
    with behind_a_router() as (a, _, one, other):
        rules = a.run("ip", "rule")
        interface = {"Address": f"{INNER[0]}/24"}
        far = endpoint(FAR_OUTER)
        one.configure(interface, [other.peer(INNER[1], endpoint=far)])
        one.up()
        for more in ({}, {"FwMark": "100"}, {"FwMark": "200"}):
            one.configure(interface | more, [other.peer("0.0.0.0/0", endpoint=far)])
            one.restart()
            assert f"dev {one.name}" in a.run("ip", "route", "get", FAR)
            assert ping(a, FAR, 3, source=INNER[0]) == 3
            assert a.run("ip", "rule").count("\n") == rules.count("\n") + 2
        one.configure(interface, [])
        one.restart()
        assert a.run("ip", "rule") == rules
        assert "under0" in a.run("ip", "route", "get", FAR)
