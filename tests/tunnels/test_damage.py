"""What others take away from a running tunnel, under traffic: the daemon puts it back."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ebpfvpn.kernel import bpffs
from ebpfvpn.kernel.map import Map
from echo import ping
from tunnels.nodes import (
    INNER,
    PORT,
    Node,
    pair,
    wait_for,
)
from tunnels.traffic import Numbered, tcp

pytestmark = pytest.mark.alone

SECOND = 1.0
RATE = 1000


def repairs(of: Node) -> int:
    return int(of.show()["daemon"].get("repairs", 0))


def said(of: Node, text: str) -> int:
    """Lines of its log with that text."""
    return sum(text in line for line in of.log().splitlines())


@contextlib.contextmanager
def damaged(
    one: Node, other: Node, at_most: int, *also: Node, lines: tuple[int, int] = (1, 1)
) -> Iterator[None]:
    """Both ways under traffic, of which at most so many packets are lost while the body damages
    `other`; what it and `also` repair is so many lines more in their logs: at
    least, at most."""

    def repaired() -> int:
        return sum(map(repairs, (other, *also)))

    before = repaired()
    with (
        Numbered(one.ns, other.ns, INNER[1], rate=RATE) as there,
        Numbered(other.ns, one.ns, INNER[0], rate=RATE) as back,
    ):
        there.wait_for_more(200)
        back.wait_for_more(200)
        yield
        wait_for(lambda: repaired() >= before + lines[0], SECOND + 1)
        there.wait_for_more(500)
        back.wait_for_more(500)
    print(f"lost: {len(there.lost)}, {len(back.lost)}; late: {late(there)}, {late(back)}")
    assert there.duplicates == back.duplicates == []
    assert len(there.lost) <= at_most
    assert len(back.lost) <= at_most
    assert lines[0] <= repaired() - before <= lines[1], other.log()


def late(flow: Numbered) -> int:
    """How many packets came after one that was sent later."""
    newest, found = -1, 0
    for number in flow.received:
        found += number < newest
        newest = max(newest, number)
    return found


def run(of: Node, command: str) -> None:
    of.ns.run(*command.split())


def directory(of: Node, device: str = "under0") -> Path:
    """Of an underlay device."""
    return bpffs.device_directory(of.ns.call(bpffs.netns_inode), of.ns.ifindex(device))


def gro(*nodes: Node) -> None:
    """Without, veth takes redirected frames only while its peer has an XDP program."""
    for each in nodes:
        run(each, "ethtool -K under0 gro on")


def segmenter(of: Node, end: str) -> str:
    """The name of one end."""
    links = json.loads(of.ns.run("ip", "-j", "-d", "link"))
    alias = f"ebpfvpn {of.name} 0 {end}"
    (found,) = [link["ifname"] for link in links if link.get("ifalias") == alias]
    return str(found)


def test_nothing_is_done_while_all_is_well() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with Numbered(one.ns, other.ns, INNER[1]) as flow:
            flow.wait_for_more(1500)
        assert (flow.lost, repairs(one), repairs(other)) == ([], 0, 0)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_the_xdp_program_is_detached(mode: str) -> None:
    with pair(AttachMode=mode) as (one, other):
        gro(one, other)
        assert ping(one.ns, INNER[1]) == 3
        with damaged(one, other, 0):
            kind = "xdpdrv" if mode == "native" else "xdpgeneric"
            run(other, f"ip link set dev under0 {kind} off")
        assert other.device()["open"] == mode
        assert said(other, f"under0: XDP program missing; put back ({mode})") == 1


FILTERS = [
    ("native", "tc filter del dev under0 ingress"),
    ("native", "tc qdisc del dev under0 clsact"),
    ("generic", "tc qdisc del dev under0 clsact"),
    ("tc", "tc filter del dev under0 ingress"),
    ("tc", "tc qdisc del dev under0 clsact"),
]


@pytest.mark.parametrize(("mode", "command"), FILTERS)
def test_filters_of_the_underlay_are_deleted(mode: str, command: str) -> None:
    with pair(AttachMode=mode) as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with damaged(one, other, 50):
            run(other, command)
        assert other.device()["open"] == mode
        other.down()
        assert "clsact" not in other.ns.run("tc", "qdisc", "show", "dev", "under0")


@pytest.mark.parametrize("command", ["filter del dev {} egress", "qdisc del dev {} clsact"])
def test_steer_is_deleted(command: str) -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with damaged(one, other, 0):
            run(other, f"tc {command.format(other.name)}")
        assert said(other, "filter steer missing") == 1


def test_the_dispatchers_entry_is_deleted() -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with damaged(one, other, 0):
            ports = Map.pinned(directory(other) / "ports")
            assert ports.delete(PORT.to_bytes(4, "little"))
        assert said(other, f"entry of port {PORT} missing") == 1


def test_pins_are_removed() -> None:
    """And put back so that a daemon that follows goes on with them."""
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        found = {path.name for path in other.pins.iterdir()}
        with damaged(one, other, 0):
            remove_pins(other.pins)
        assert {path.name for path in other.pins.iterdir()} == found
        with Numbered(one.ns, other.ns, INNER[1]) as flow:
            flow.wait_for_more(200)
            other.kill()
            other.up()
            flow.wait_for_more(500)
        assert (flow.lost, flow.duplicates) == ([], [])


def remove_pins(directory: Path) -> None:
    """As rm -r."""
    shutil.rmtree(directory)


@pytest.mark.parametrize("what", ["all", "dispatcher", "program"])
def test_pins_of_the_device_are_removed(what: str) -> None:
    with pair() as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        pins = directory(other)
        found = {path.name for path in pins.iterdir()}
        with damaged(one, other, 0):
            if what == "all":
                remove_pins(pins)
            elif what == "dispatcher":
                for name in ("dispatch", "dispatch_config", "ports"):
                    (pins / name).unlink()
            else:
                (pins / "dispatch").unlink()
        assert {path.name for path in pins.iterdir()} == found
        assert other.show()["daemon"].get("reinjected", 0) == 0  # its entries stayed
        assert "xdp" in other.ns.run("ip", "link", "show", "under0")
        other.down()
        shown = other.ns.run("ip", "link", "show", "under0")
        assert "xdp" not in shown
        assert "clsact" not in other.ns.run("tc", "qdisc", "show", "dev", "under0")
        assert not pins.exists()


SEGMENTER: list[tuple[str, Callable[[Node], str], int]] = [
    ("outer", lambda of: f"ip link del {segmenter(of, 'outer')}", 200),
    ("inner", lambda of: f"ip link del {segmenter(of, 'inner')}", 200),
    ("outer down", lambda of: f"ip link set {segmenter(of, 'outer')} down", 200),
    ("inner down", lambda of: f"ip link set {segmenter(of, 'inner')} down", 200),
    ("xdp", lambda of: f"ip link set {segmenter(of, 'inner')} xdp off", 50),
    ("seal", lambda of: f"tc qdisc del dev {segmenter(of, 'inner')} clsact", 50),
    ("open", lambda of: f"tc qdisc del dev {segmenter(of, 'outer')} clsact", 50),
]


@pytest.mark.parametrize(
    ("mode", "command", "at_most"),
    [
        pytest.param(mode, *row[1:], id=f"{mode}-{row[0]}")
        for mode in ("native", "tc")
        for row in SEGMENTER
        if (mode, row[0]) != ("tc", "xdp")  # it has none
    ],
)
def test_the_segmenter_is_damaged(mode: str, command: Callable[[Node], str], at_most: int) -> None:
    with pair(AttachMode=mode) as (one, other):
        assert ping(one.ns, INNER[1]) == 3
        with damaged(one, other, at_most):
            run(other, command(other))
        assert said(other, "segmenter: ") == 1
        tcp(one.ns, other.ns, INNER[1])
        tcp(other.ns, one.ns, INNER[0])
        assert other.device()["seal"] == ("xdp" if mode == "native" else "tc")
