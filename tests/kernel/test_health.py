"""The parts of KernelDatapath.check, without a daemon."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import bpffs, dispatcher, hooks, layout
from ebpfvpn.kernel.backoff import Backoff
from ebpfvpn.kernel.links import Links
from ebpfvpn.kernel.map import Map
from ebpfvpn.netlink import Monitor
from ebpfvpn.tun import alias
from echo import ping
from kernel.compiler import compile_bpf
from kernel.nodes import PEER, PORT, Node, read, two_nodes
from kernel.test_attach import FOREIGN
from netns import Namespace, namespace, veth


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    with two_nodes() as nodes:
        for each in nodes:
            each.netlink.set_alias(each.tun.ifindex, alias(each.name))
            assert check(each) == []
        yield nodes


def check(of: Node) -> list[str]:
    return of.ns.call(of.datapath.check)


def test_backoff_doubles_up_to_a_minute() -> None:
    backoff = Backoff(100.0)
    now, pauses = 100.0, []
    for _ in range(9):
        start = now
        while not backoff.due(now):
            now += 0.5
        pauses.append(now - start)
        backoff.failed(now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    backoff.restart(now)
    assert not backoff.due(now + 0.9)
    assert backoff.due(now + 1)


def test_the_state_of_a_link(tmp_path: Path) -> None:
    with namespace() as ns, namespace() as other:
        veth(ns, other)
        ns.run("ip", "link", "set", "under0", "mtu", "1400", "alias", "some thing")
        links = ns.call(Links)
        state = links.state(ns.ifindex("under0"))
        assert state is not None
        assert (state.name, state.mtu, state.alias, state.up, state.xdp) == (
            "under0", 1400, "some thing", True, False,
        )  # fmt: skip
        compiled = str(compile_bpf(FOREIGN, tmp_path))
        for kind in ("xdpdrv", "xdpgeneric"):
            ns.run("ip", "link", "set", "under0", kind, "object", compiled, "section", "xdp")
            state = links.state(ns.ifindex("under0"))
            assert state is not None
            there = ns.call(hooks.xdp_program_id, ns.ifindex("under0"))
            native = kind == "xdpdrv"
            assert there
            assert (state.native, state.generic) == ((there, 0) if native else (0, there))
            ns.run("ip", "link", "set", "under0", kind, "off")
        ns.run("ip", "link", "set", "under0", "down")
        state = links.state(ns.ifindex("under0"))
        assert state is not None
        assert not state.up
        assert links.state(12345) is None
        links.close()


def test_the_monitor_hears_of_filters_and_qdiscs(tmp_path: Path) -> None:
    compiled = str(compile_bpf(FOREIGN, tmp_path))
    with namespace() as ns:
        monitor = ns.call(Monitor)
        for command in (
            "qdisc add dev lo clsact",
            f"filter add dev lo ingress bpf da obj {compiled} sec tc",
            "filter del dev lo ingress",
            "qdisc del dev lo clsact",
        ):
            ns.run("tc", *command.split())
            assert "tc" in monitor.read(), command
            assert monitor.read() == set()
        monitor.close()


def test_an_idle_check_is_cheap_and_writes_nothing(pair: tuple[Node, Node]) -> None:
    one, _ = pair
    monitor = one.ns.call(Monitor)
    before = [(path, path.stat().st_mtime_ns) for path in bpffs.PINS.glob(f"{one.name}/*")]

    def fastest() -> float:
        found = []
        for _ in range(20):
            start = time.perf_counter()
            assert one.datapath.check() == []
            found.append(time.perf_counter() - start)
        return min(found)

    assert one.ns.call(fastest) < 0.002
    assert monitor.read() & {"link", "tc"} == set()
    monitor.close()
    assert before == [(path, path.stat().st_mtime_ns) for path in bpffs.PINS.glob(f"{one.name}/*")]


def test_somebody_who_takes_it_away_again_and_again_makes_no_endless_loop(
    pair: tuple[Node, Node],
) -> None:
    one, _ = pair
    end = time.monotonic() + 2
    lines = 0
    while time.monotonic() < end:
        one.ns.run("ip", "link", "set", "under0", "xdp", "off")
        lines += len(check(one))
    assert 4 <= lines <= 12


def device(of: Node) -> Path:
    return bpffs.device_directory(of.ns.call(bpffs.netns_inode), of.ns.ifindex("under0"))


def test_pins_come_back_with_what_they_were(pair: tuple[Node, Node]) -> None:
    one, _ = pair
    pins = bpffs.pin_directory(one.name)
    names = sorted(os.listdir(pins))
    config = Map.pinned(pins / "config").id
    ports = Map.pinned(device(one) / "ports").id
    shutil.rmtree(pins)
    shutil.rmtree(device(one))
    assert len(check(one)) == 2
    assert sorted(os.listdir(pins)) == names
    assert Map.pinned(pins / "config").id == config
    assert Map.pinned(device(one) / "ports").id == ports
    assert check(one) == []


def test_one_that_is_not_complete_is_not_called_so(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    pins = bpffs.pin_directory(one.name)
    (pins / "keys").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Map, "pin", lambda *_: (_ for _ in ()).throw(DatapathError("no")))
        with pytest.raises(DatapathError, match="no"):
            check(one)
    assert not (pins / "complete").exists()
    assert len(check(one)) == 1
    assert (pins / "complete").exists()


def test_the_dispatcher_of_another_machine_is_not_ours(pair: tuple[Node, Node]) -> None:
    """One with another mark, that is: its pins are not to be had by looking at it."""
    one, _ = pair
    directory = device(one)
    for name in dispatcher.PINS:
        (directory / name).unlink()
    ifindex = one.ns.ifindex("under0")
    one.ns.call(dispatcher.pin_again, directory, ifindex, b"abcdef")
    assert not (directory / "ports").exists()
    one.ns.call(dispatcher.pin_again, directory, ifindex, bpffs.mark())
    assert Map.pinned(directory / "ports").lookup(PORT.to_bytes(4, "little"))


def refuse(*_: object) -> None:
    raise DatapathError("the kernel will not")


def test_a_refusal_is_told(pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch) -> None:
    one, _ = pair
    with monkeypatch.context() as patch:
        patch.setattr("ebpfvpn.kernel.steer.attach", refuse)
        one.ns.run("tc", "qdisc", "del", "dev", one.name, "clsact")
        with pytest.raises(DatapathError, match="steer cannot be attached: the kernel will not"):
            check(one)
    assert check(one) == [f"{one.name}: filter steer missing; put back"]
    with monkeypatch.context() as patch:
        patch.setattr("ebpfvpn.kernel.segmenter.create", refuse)
        inner = segmenter_ends(one.ns)
        one.ns.run("ip", "link", "del", inner[0])
        with pytest.raises(DatapathError, match="the segmenter cannot be made anew: the kernel"):
            check(one)
    assert check(one) == [f"{one.name}: segmenter: device missing; put back"]
    one.datapath.set_usable(PEER, True)  # as a daemon does when it has sent what waited
    assert ping(one.ns, "10.66.0.2") == 3


def test_left_out_packets_queue_up_while_there_is_no_segmenter(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait in the TUN, and others behind them until the daemon has sent them."""
    one, _ = pair
    config = Map.pinned(bpffs.pin_directory(one.name) / "config")
    peers = Map.pinned(bpffs.pin_directory(one.name) / "peers")

    def segmenter() -> tuple[int, int]:
        found = layout.Config.from_buffer_copy(config.lookup(bytes(4)) or b"")
        return found.outer_ifindex, found.inner_ifindex

    before = segmenter()
    with monkeypatch.context() as patch:
        patch.setattr("ebpfvpn.kernel.segmenter.create", refuse)
        one.ns.run("ip", "link", "del", segmenter_ends(one.ns)[0])
        with pytest.raises(DatapathError):
            check(one)
    assert segmenter() == (0, 0)
    while read(one.tun):
        pass
    one.ns.run("ping", "-c", "1", "-W", "0.1", "10.66.0.2", check=False)
    assert read(one.tun)
    check(one)
    assert 0 not in segmenter()
    assert segmenter() != before
    ((_, peer),) = peers.items()
    assert layout.Peer.from_buffer_copy(peer).usable == 0


def segmenter_ends(ns: Namespace) -> list[str]:
    shown = ns.run("ip", "-br", "link").splitlines()
    return [line.split("@")[0] for line in shown if line.startswith("sg")]


def test_down_finds_what_is_attached_without_pins(pair: tuple[Node, Node]) -> None:
    one, _ = pair
    shutil.rmtree(bpffs.pin_directory(one.name))
    shutil.rmtree(device(one))
    one.ns.call(one.datapath.remove)
    assert segmenter_ends(one.ns) == []
    assert "xdp" not in one.ns.run("ip", "link", "show", "under0")
    assert "clsact" not in one.ns.run("tc", "qdisc", "show", "dev", "under0")


def test_the_tun_device_is_elsewhere(pair: tuple[Node, Node]) -> None:
    one, _ = pair
    with namespace() as elsewhere:
        one.ns.run("ip", "link", "set", one.name, "netns", elsewhere.name)
        with pytest.raises(DatapathError, match="has left this network namespace"):
            check(one)
        elsewhere.run("ip", "link", "set", one.name, "netns", one.ns.name)
