"""Steps down to another way of opening packets, and up again; and damage that no repair helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from echo import ping
from kernel.compiler import compile_bpf
from netns import address, namespace
from tunnels.nodes import (
    INNER,
    OUTER,
    PORT,
    Node,
    connect,
    endpoint,
    introduce,
    node,
    pair,
    underlay,
    wait_for,
)
from tunnels.test_damage import damaged, directory, gro, remove_pins, repairs, run, said
from tunnels.test_foreign import FOREIGN, xdp_id
from tunnels.traffic import Numbered, tcp

pytestmark = pytest.mark.alone


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """Arguments of `ip link set` that attach it."""
    return f"object {compile_bpf(FOREIGN, tmp_path)} section xdp"


def test_another_takes_the_place_of_ours_and_leaves_it(foreign: str) -> None:
    with pair() as (one, other):
        gro(one, other)
        assert ping(one.ns, INNER[1]) == 3
        with damaged(one, other, 100):
            run(other, f"ip -force link set dev under0 xdpdrv {foreign}")
        theirs = xdp_id(other.ns)
        assert said(other, "under0: XDP program missing; open by tc now, not native (native") == 1
        assert other.device()["open"] == "tc"
        assert "native XDP refused" in other.device()["reason"]
        tcp(one.ns, other.ns, INNER[1])
        assert xdp_id(other.ns) == theirs
        with damaged(one, other, 0):
            run(other, "ip link set dev under0 xdp off")
        assert said(other, "under0: open by native now, not tc (first choice)") == 1
        assert other.device() == one.device()
        filters = other.ns.run("tc", "filter", "show", "dev", "under0", "ingress")
        assert "deliver" in filters
        assert "open_tc" not in filters


def test_an_exact_mode_repairs_itself_alone(foreign: str) -> None:
    """Another mode is no choice, so that packets need another path while it is taken."""
    with pair(AttachMode="native") as (one, other):
        gro(one, other)
        assert ping(one.ns, INNER[1]) == 3
        run(other, f"ip -force link set dev under0 xdpdrv {foreign}")
        wait_for(lambda: other.show()["datapath"]["path"] == "userspace")
        assert said(other, "no device takes a program: under0: native XDP refused")
        assert ping(one.ns, INNER[1]) == 3
        run(other, "ip link set dev under0 xdp off")
        wait_for(lambda: other.show()["datapath"]["path"] == "kernel", 30)
        assert ping(one.ns, INNER[1]) == 3
        assert other.device()["open"] == "native"


def test_native_is_tried_again_when_the_device_has_changed() -> None:
    """veth refuses it while its peer's packets may be too large."""
    with underlay(9001) as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, MTU=1420)
        one.up()
        other.up()
        gro(one, other)
        assert ping(a, INNER[1]) == 3
        assert other.device()["open"] == "tc"
        one.ns.run("ip", "link", "set", "under0", "mtu", "1500")
        with damaged(one, other, 0):
            run(other, "ip link set dev under0 mtu 1500")
        assert other.device()["open"] == "native"
        assert said(other, "under0: open by native now, not tc") == 1
        filters = b.run("tc", "filter", "show", "dev", "under0", "ingress")
        assert "open_tc" not in filters


def second_pair(one: Node, other: Node, mode: str) -> None:
    """Another tunnel between the same two, at the next port."""
    for here, there, i in ((one, other, 0), (other, one, 1)):
        here.configure(
            {"ListenPort": PORT + 1, "Address": f"10.67.0.{i + 1}/24", "AttachMode": mode},
            [there.peer(f"10.67.0.{2 - i}", endpoint=endpoint(OUTER[1 - i], PORT + 1))],
        )


@pytest.mark.parametrize("what", ["xdp", "pins", "clsact"])
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_two_tunnels_on_a_device_that_is_damaged(mode: str, what: str) -> None:
    """Each repairs its own, and neither undoes what the other did. One whose daemon is dead
    goes on, too."""
    with underlay() as (a, b), node(a) as one, node(b) as other, node(a) as third, \
            node(b) as fourth:  # fmt: skip
        introduce(one, other, AttachMode=mode)
        second_pair(third, fourth, mode)
        for each in (one, other, third, fourth):
            each.up()
        gro(one, other)
        kind = "xdpdrv" if mode == "native" else "xdpgeneric"
        damage: Callable[[], None] = {
            "xdp": lambda: run(other, f"ip link set dev under0 {kind} off"),
            "pins": lambda: remove_pins(directory(other)),
            "clsact": lambda: run(other, "tc qdisc del dev under0 clsact"),
        }[what]
        for to in (INNER[1], "10.67.0.2"):
            assert ping(a, to) == 3
        with Numbered(a, b, "10.67.0.2") as flow:
            flow.wait_for_more(100)
            # Whoever comes first attaches the program for both.
            with damaged(one, other, 50, fourth, lines=(1 if what == "xdp" else 2, 2)):
                damage()
            flow.wait_for_more(300)
        assert len(flow.lost) <= 50
        if what == "xdp":
            fourth.kill()
            with Numbered(a, b, "10.67.0.2") as flow:
                flow.wait_for_more(100)
                damage()
                flow.wait_for_more(300)
            assert len(flow.lost) < 100
            fourth.up()
        other.down()
        assert ping(a, "10.67.0.2") == 3
        fourth.down()
        assert "xdp" not in b.run("ip", "link", "show", "under0")
        assert "clsact" not in b.run("tc", "qdisc", "show", "dev", "under0")


def test_two_tunnels_step_down_and_up(foreign: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other, node(a) as third, \
            node(b) as fourth:  # fmt: skip
        introduce(one, other)
        second_pair(third, fourth, "auto")
        for each in (one, other, third, fourth):
            each.up()
        both = (other, fourth)
        for to in (INNER[1], "10.67.0.2"):
            assert ping(a, to) == 3
        run(other, f"ip -force link set dev under0 xdpdrv {foreign}")
        for each in both:
            wait_for(lambda each=each: each.device()["open"] == "tc")  # type: ignore[misc]
        assert ping(a, INNER[1]) == ping(a, "10.67.0.2") == 3
        run(other, "ip link set dev under0 xdp off")
        for each in both:
            wait_for(lambda each=each: each.device()["open"] == "native")  # type: ignore[misc]
        assert ping(a, INNER[1]) == ping(a, "10.67.0.2") == 3
        assert [repairs(each) for each in both] == [2, 2]


def test_a_device_that_is_replaced() -> None:
    with pair() as (one, other):
        a, b = one.ns, other.ns
        assert ping(a, INNER[1]) == 3
        b.run("ip", "link", "del", "under0")
        connect(a, b, "under0")
        for i, ns in enumerate((a, b)):
            address(ns, "under0", f"{OUTER[i]}/24")
        wait_for(lambda: ping(a, INNER[1], 1) == 1, 15)
        for each in (one, other):
            wait_for(lambda each=each: repairs(each) == 1)  # type: ignore[misc]
            assert said(each, "under0: it was gone, and is attached again: native") == 1


def test_the_tun_device_loses_its_alias_or_its_name() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        name = other.name
        run(other, f"ip link set {name} alias x")
        wait_for(lambda: said(other, f"{name}: alias of the TUN device missing; put back") == 1)
        run(other, f"ip link set {name} down")
        run(other, f"ip link set {name} name {name}x")
        wait_for(lambda: said(other, f"{name}: the TUN device is called {name}x now"))
        wait_for(lambda: other.show()["datapath"]["path"] == "userspace")
        run(other, f"ip link set {name}x name {name}")


def test_nothing_to_attach_to() -> None:
    """A device that is no Ethernet device takes no program."""
    with namespace() as ns, node(ns) as one, node(ns) as other:
        outer = ("127.0.0.1", "127.0.0.1")
        introduce(one, other, outer)
        one.up()
        wait_for(lambda: said(one, "no device takes a program: lo: no Ethernet device"))
        assert one.show()["datapath"]["path"] == "userspace"
