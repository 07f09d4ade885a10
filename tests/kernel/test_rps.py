"""A device's one receive queue, shared among CPUs for tunnels with several flow ports."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import bpffs, cpumap, leftovers, rps, sysfs
from ebpfvpn.kernel.attach import AttachMode
from kernel.nodes import OUTER, PEER, Node, node
from netns import Namespace, address, namespace, veth

DEVICE = "under0"
HERE, THERE = (each.partition("/")[0] for each in OUTER)
ALL = rps.online(Path("/sys/devices/system/cpu/online").read_text())
FLOWS = 32

CPU_MAP_CPUS = cpumap.usable_cpus()
several_cpus = pytest.mark.skipif(ALL.bit_count() < 2, reason="RPS shares among several CPUs")


@pytest.fixture
def both() -> Iterator[tuple[Namespace, Namespace]]:
    """Joined by DEVICE, which has one receive queue."""
    with namespace() as one, namespace() as other:
        veth(one, other, DEVICE)
        address(one, DEVICE, OUTER[0])
        address(other, DEVICE, OUTER[1])
        yield one, other


@pytest.fixture
def ns(both: tuple[Namespace, Namespace]) -> Namespace:
    return both[0]


def mask(ns: Namespace) -> int:
    def read(devices: Path) -> str:
        return (devices / DEVICE / "queues/rx-0/rps_cpus").read_text()

    return rps.parse(ns.call(sysfs.within, read))


def set_mask(ns: Namespace, mask: int) -> None:
    ns.call(sysfs.set_attribute, DEVICE, "queues/rx-0/rps_cpus", rps.text(mask))


def marks(ns: Namespace) -> list[str]:
    directory = bpffs.device_directory(ns.call(bpffs.netns_inode), ns.ifindex(DEVICE))
    return sorted(path.name for path in directory.glob("rps*"))


def use(one: Node) -> dict[str, str]:
    """Makes it attach to the device; returns what it says of that."""
    one.datapath.add_peer(PEER, bytes(32))
    one.ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address(THERE), 51820))
    devices = one.datapath.describe()["devices"]
    assert isinstance(devices, list)
    return devices[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("cpus", "mask"), [("0\n", 1), ("0-1\n", 3), ("0,2-4\n", 0x1D), ("0-63\n", 2**64 - 1)]
)
def test_online(cpus: str, mask: int) -> None:
    assert rps.online(cpus) == mask


@pytest.fixture(autouse=True)
def no_cpu_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before Linux 6.15."""
    monkeypatch.setattr(cpumap, "usable_cpus", list)


@pytest.mark.skipif(not CPU_MAP_CPUS, reason="its CPU maps do not join packets")
def test_where_a_cpu_map_shares(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpumap, "usable_cpus", lambda: CPU_MAP_CPUS)
    with node(ns, flow_ports=2) as one:
        assert use(one)["open"] == "native"
        assert (mask(ns), marks(ns)) == (0, [])


@several_cpus
def test_where_a_cpu_map_could_share_but_for_the_mtu(
    both: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the veth's peer."""
    monkeypatch.setattr(cpumap, "usable_cpus", lambda: CPU_MAP_CPUS)
    ns, other = both
    other.run("ip", "link", "set", DEVICE, "mtu", "9000")
    with node(ns, flow_ports=2) as one:
        assert use(one)["open"] == "tc"
        assert mask(ns) == ALL
    assert (mask(ns), marks(ns)) == (0, [])


@given(st.integers(0, 2**300))
def test_mask_as_the_kernel_reads_it(mask: int) -> None:
    assert rps.parse(rps.text(mask) + "\n") == mask
    assert all(len(group) == 8 for group in rps.text(mask).split(","))


@several_cpus
@pytest.mark.parametrize("mode", ["auto", "tc"])
def test_set_and_put_back(ns: Namespace, mode: AttachMode) -> None:
    with node(ns, mode=mode, flow_ports=2) as one:
        assert mask(ns) == 0
        device = use(one)
        assert (device["open"], mask(ns)) == ("tc", ALL)
        assert "RPS shares its one receive queue" in device["reason"]
        ns.call(one.datapath.check)
        assert ns.call(one.datapath.check) == []
    assert (mask(ns), marks(ns)) == (0, [])


@pytest.mark.parametrize(
    ("mode", "flow_ports"), [("auto", 1), ("tc", 1), ("native", 2), ("generic", 2)]
)
def test_where_it_would_be_of_no_use(ns: Namespace, mode: AttachMode, flow_ports: int) -> None:
    with node(ns, mode=mode, flow_ports=flow_ports) as one:
        assert use(one)["open"] == ("native" if mode == "auto" else mode)
        assert (mask(ns), marks(ns)) == (0, [])


def test_several_receive_queues_share_by_themselves() -> None:
    with namespace() as ns, namespace() as other:
        veth(ns, other, DEVICE, "numrxqueues", "2", "numtxqueues", "2")
        address(ns, DEVICE, OUTER[0])
        with node(ns, flow_ports=2) as one:
            assert use(one)["open"] == "native"
            assert (mask(ns), marks(ns)) == (0, [])


@several_cpus
def test_packets_are_shared(both: tuple[Namespace, Namespace]) -> None:
    """Those of each flow stay on one CPU."""
    ns, _ = both
    with node(ns, flow_ports=2) as one:
        use(one)
        with ExitStack() as closing:
            cpus = []
            for _ in range(FLOWS):
                sink, source = (
                    closing.enter_context(
                        each.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
                    )
                    for each in both
                )
                source.bind((THERE, 0))
                sink.bind((HERE, 0))
                source.connect(sink.getsockname())
                sink.connect(source.getsockname())  # the kernel notes the CPU of such alone
                sink.settimeout(5)
                flow = set()
                for _ in range(3):
                    source.send(b"flow")
                    assert sink.recv(10) == b"flow"
                    flow.add(sink.getsockopt(socket.SOL_SOCKET, socket.SO_INCOMING_CPU))
                assert len(flow) == 1
                cpus.append(flow.pop())
        assert len(set(cpus)) > 1  # or else 1 in 2^31 where there are two


@several_cpus
@pytest.mark.parametrize("before", [True, False])
def test_what_others_set_stays(ns: Namespace, before: bool) -> None:
    if before:
        set_mask(ns, 1)
    with node(ns, flow_ports=2) as one:
        assert use(one)["open"] == "tc"
        set_mask(ns, 1)
    assert (mask(ns), marks(ns)) == (1, [])


@several_cpus
@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_two_tunnels_on_one_device(ns: Namespace, first_leaves_first: bool) -> None:
    with (
        node(ns, flow_ports=2) as one,
        node(ns, port=51830, flow_ports=8) as other,
        node(ns, port=51840) as without,
    ):
        for each in (one, other, without):
            use(each)
        leaver, stayer = (one, other) if first_leaves_first else (other, one)
        ns.call(leaver.datapath.remove)
        assert mask(ns) == ALL
        ns.call(stayer.datapath.remove)
        assert (mask(ns), marks(ns)) == (0, [])


@several_cpus
def test_cannot_be_written(ns: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("mounting sysfs: no")

    monkeypatch.setattr(sysfs, "within", refuse)
    with node(ns, flow_ports=2) as one:
        device = use(one)
        assert device["open"] == "native"
        assert device["reason"].startswith(
            "open: RPS refused: mounting sysfs: no, so one CPU receives for all flow ports"
        )


@several_cpus
def test_what_is_known_of_it_is_put_back(ns: Namespace) -> None:
    with node(ns, flow_ports=2) as one:
        use(one)
        ns.call(one.datapath.check)
        before = marks(ns)
        directory = bpffs.device_directory(ns.call(bpffs.netns_inode), ns.ifindex(DEVICE))
        for name in before:
            (directory / name).rmdir()
        assert ns.call(one.datapath.check) == [f"{DEVICE}: pins missing; put back (tc)"]
        assert (marks(ns), mask(ns)) == (before, ALL)
    assert (mask(ns), marks(ns)) == (0, [])


@several_cpus
def test_device_that_vanishes(ns: Namespace) -> None:
    with node(ns, flow_ports=2) as one:
        use(one)
        directory = bpffs.device_directory(ns.call(bpffs.netns_inode), ns.ifindex(DEVICE))
        ns.run("ip", "link", "del", DEVICE)
        ns.call(one.datapath.network_changed)
        assert not directory.exists()


DIES = """
import sys
sys.path[:0] = sys.argv[3:]
from kernel.test_rps import *
with node(Namespace(sys.argv[1]), name=sys.argv[2], mode="tc", flow_ports=2) as one:
    use(one)
    print(flush=True)
    sys.stdin.read()
"""


@several_cpus
@pytest.mark.parametrize("follower", ["none", "with", "without"])
def test_what_a_dead_daemon_left(ns: Namespace, follower: str) -> None:
    name = f"kt{os.getpid():x}p"
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, ns.name, name, str(tests), str(tests.parent / "daemon")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert mask(ns) == ALL
    if follower == "none":
        leftovers.clean(name)  # from elsewhere
    else:
        with node(ns, name=name, flow_ports=2 if follower == "with" else 1) as one:
            use(one)
            assert mask(ns) == (ALL if follower == "with" else 0)
    assert (mask(ns), marks(ns)) == (0, [])
