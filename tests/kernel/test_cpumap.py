"""On which devices messages are spread over CPUs, and what that leaves in the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from ebpfvpn import genetlink
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.genetlink import has_one_receive_queue
from ebpfvpn.kernel import cpumap, layout, leftovers
from ebpfvpn.kernel.attach import AttachMode
from ebpfvpn.kernel.cpumap import CpuMap
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.objects import load_tunnel
from kernel.nodes import OUTER, PEER, Node, node, two_nodes, wait_for
from netns import Namespace, address, namespace, veth
from rows.tunnel import pins

CPUS = sorted(os.sched_getaffinity(0))
DEVICE = "under0"

pytestmark = pytest.mark.skipif(
    not cpumap.usable_cpus(), reason="one CPU, or CPU maps do not join packets here"
)


@pytest.fixture
def ns() -> Iterator[Namespace]:
    """With a device that has one receive queue, and room for another."""
    with namespace() as ns, namespace() as other:
        veth(ns, other, DEVICE, "numrxqueues", "2", "numtxqueues", "1")
        set_queues(ns, 1)
        address(ns, DEVICE, OUTER[0])
        address(other, DEVICE, OUTER[1])
        yield ns


def set_queues(ns: Namespace, count: int) -> None:
    ns.run("ethtool", "-L", DEVICE, "rx", str(count))


def use(one: Node) -> None:
    """Makes it attach to the device."""
    one.datapath.add_peer(PEER, bytes(32))
    one.ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address("192.0.2.2"), 51820))


def entries(one: Node) -> dict[int, int]:
    """Id of the program, by CPU."""
    map_ = one.datapath._loaded.maps["cpus"]
    found = {}
    for key in map_.keys():  # noqa: SIM118
        raw = map_.lookup(key)
        if raw is not None:
            found[layout.from_number(key)] = layout.CpuEntry.from_buffer_copy(raw).program
    return found


def devices(one: Node) -> set[int]:
    map_ = one.datapath._loaded.maps.get("spread")
    return {layout.from_number(key) for key in map_.keys()} if map_ else set()  # noqa: SIM118


def told(one: Node) -> int:
    found = one.datapath.describe()["devices"]
    assert isinstance(found, list)
    return next(int(device["spread"]) for device in found if device["name"] == DEVICE)


def test_cpus_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpumap.usable_cpus() == CPUS[: layout.MOST_CPUS]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(3, 30)})
    assert cpumap.usable_cpus() == [*range(3, 3 + layout.MOST_CPUS)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    assert cpumap.usable_cpus() == []


@pytest.mark.parametrize("lacks", ["joining", "the structure"])
def test_a_kernel_that_does_not_join_packets(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fields(structure: str) -> list[str]:
        if lacks == "the structure":
            raise BpfError(f"finding {structure}", errno.ENOENT)
        return ["cpu", "map_id", "prog"]

    cpumap._joins_packets.cache_clear()
    monkeypatch.setattr(cpumap, "kernel_fields", fields)
    assert cpumap.usable_cpus() == []
    cpumap._joins_packets.cache_clear()


def test_receive_queues(ns: Namespace) -> None:
    ifindex = ns.ifindex(DEVICE)
    assert ns.call(has_one_receive_queue, ifindex)
    set_queues(ns, 2)
    assert not ns.call(has_one_receive_queue, ifindex)
    assert not ns.call(cpumap.may_spread, ifindex)
    set_queues(ns, 1)
    assert ns.call(cpumap.may_spread, ifindex)
    ns.run("ip", "link", "set", DEVICE, "down")
    assert not ns.call(cpumap.may_spread, ifindex)
    assert not ns.call(cpumap.may_spread, 9999)


@pytest.mark.parametrize("mode", ["auto", "native", "generic", "tc"])
def test_native_mode_alone(ns: Namespace, mode: AttachMode) -> None:
    native = mode in ("auto", "native")
    with node(ns, mode=mode) as one:
        if mode != "tc":
            assert entries(one) == {}
        use(one)
        assert told(one) == (len(CPUS) if native else 0)
        assert devices(one) == ({ns.ifindex(DEVICE)} if native else set())
        if native:
            program = one.datapath._loaded.programs["open_cpu"].id
            assert entries(one) == dict.fromkeys(CPUS[: layout.MOST_CPUS], program)


def test_as_long_as_the_device_has_one_queue(ns: Namespace) -> None:
    with node(ns) as one:
        use(one)
        for count in (2, 1, 2):
            set_queues(ns, count)
            ns.call(one.datapath.network_changed)
            assert told(one) == (len(CPUS) if count == 1 else 0)
            assert devices(one) == ({ns.ifindex(DEVICE)} if count == 1 else set())


def test_a_device_that_is_gone_is_forgotten(ns: Namespace) -> None:
    with node(ns) as one:
        use(one)
        assert devices(one)
        ns.run("ip", "link", "delete", DEVICE)
        ns.call(one.datapath.network_changed)
        assert devices(one) == set()


def test_the_next_start_puts_its_program_in_the_place_of_the_old_one() -> None:
    """And forgets what is there no more: CPUs, devices."""
    with pins() as directory:
        for cpus in (CPUS, CPUS[:1], CPUS):
            loaded = load_tunnel(directory, peers=1, xdp=True, cpus=[*cpus, 1000])
            before = {layout.from_number(key) for key in loaded.maps["spread"].keys()}  # noqa: SIM118
            map_ = CpuMap(loaded.maps, loaded.programs)
            assert map_.spread(8, True) == len(cpus) + 1
            map_.keep([8])
            assert map_.spread(9, True)
            programs = {}
            for cpu in range(loaded.maps["cpus"].max_entries):
                raw = loaded.maps["cpus"].lookup(layout.number(cpu))
                if raw is not None:
                    programs[cpu] = layout.CpuEntry.from_buffer_copy(raw).program
            assert programs == dict.fromkeys(cpus, loaded.programs["open_cpu"].id)
            assert before <= {8, 9}
            loaded.close()


def test_nothing_is_left(ns: Namespace) -> None:
    """No thread of the kernel either: they go with the map."""
    with node(ns) as one:
        use(one)
        number = one.datapath._loaded.maps["cpus"].id
        program = one.datapath._loaded.programs["open_cpu"].id
        assert program in entries(one).values()
        Map.by_id(number).close()
        one.datapath.close()
        ns.call(leftovers.remove, one.netlink, one.name)

    def is_gone() -> bool:
        try:
            Map.by_id(number).close()
        except BpfError as error:
            return error.errno == errno.ENOENT
        return False

    wait_for(is_gone)


def test_who_gives_its_sessions_away_opens_nothing_on_another_cpu() -> None:
    """What is on its way there goes up to the daemon (the program asks for the device)."""
    with two_nodes() as (one, _):
        assert devices(one) == {one.ns.ifindex(DEVICE)}
        one.ns.call(one.datapath.release)
        assert devices(one) == set()


def test_a_device_that_is_down_may_have_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Linux 6.8 to 6.12 the kernel sends an empty datagram."""
    monkeypatch.setattr(genetlink, "messages", lambda _: [])
    with pytest.raises(OSError, match="No such file or directory"):
        has_one_receive_queue(1)
    assert not cpumap.may_spread(1)
