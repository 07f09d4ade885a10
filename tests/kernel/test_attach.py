"""What attaching does to devices, and leaves alone, in namespaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ebpfvpn.datapath import DatapathError
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import bpffs, generation, leftovers, objects
from ebpfvpn.kernel.attach import ATTACH_MODES, AttachMode
from kernel.compiler import compile_bpf
from kernel.nodes import OUTER, PEER, Node, node, wait_for
from netns import Namespace, address, namespace, veth

DEVICE = "under0"


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with namespace() as ns, namespace() as other:
        veth(ns, other, DEVICE)
        address(ns, DEVICE, OUTER[0])
        address(other, DEVICE, OUTER[1])
        yield ns


def use(one: Node) -> None:
    """Makes it attach to the device."""
    one.datapath.add_peer(PEER, bytes(32))
    one.ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address("192.0.2.2"), 51820))


def xdp(ns: Namespace) -> tuple[str, str]:
    """Mode ("xdp", "xdpgeneric") and name of the device's program; empty: none."""
    link = json.loads(ns.run("ip", "-j", "-d", "link", "show", DEVICE))[0].get("xdp")
    if not link:
        return "", ""
    mode = {1: "xdp", 2: "xdpgeneric"}[link["mode"]]
    return mode, link["prog"].get("name", "")


def filters(ns: Namespace) -> list[str]:
    """Names of the programs at the device's tc ingress, in their order."""
    shown: list[dict[str, Any]] = json.loads(
        ns.run("tc", "-j", "filter", "show", "dev", DEVICE, "ingress") or "[]"
    )
    return [f["options"]["prog"]["name"] for f in shown if "prog" in f.get("options", {})]


def qdiscs(ns: Namespace) -> set[str]:
    return {q["kind"] for q in json.loads(ns.run("tc", "-j", "qdisc", "show", "dev", DEVICE))}


def pinned(ns: Namespace) -> list[str]:
    directory = bpffs.device_directory(ns.call(bpffs.netns_inode), ns.ifindex(DEVICE))
    return sorted(entry.name for entry in directory.iterdir()) if directory.exists() else []


def assert_untouched(ns: Namespace) -> None:
    assert xdp(ns) == ("", "")
    assert qdiscs(ns) == {"noqueue"}
    assert pinned(ns) == []


def described(one: Node) -> dict[str, str]:
    devices = one.datapath.describe()["devices"]
    assert isinstance(devices, list)
    (device,) = devices
    return device  # type: ignore[no-any-return]


EXPECTED: dict[AttachMode, tuple[str, str, list[str]]] = {
    "auto": ("native", "xdp", ["deliver"]),
    "native": ("native", "xdp", ["deliver"]),
    "generic": ("generic", "xdpgeneric", ["deliver_generic", "open_tc"]),
    "tc": ("tc", "", ["open_tc"]),
}


@pytest.mark.parametrize("mode", ATTACH_MODES)
def test_modes(ns: Namespace, mode: AttachMode) -> None:
    opens, xdp_mode, programs = EXPECTED[mode]
    with node(ns, mode=mode) as one:
        assert_untouched(ns)  # until an endpoint needs the device
        use(one)
        assert described(one)["open"] == opens
        assert xdp(ns) == (xdp_mode, "dispatch" if xdp_mode else "")
        assert filters(ns) == programs
    assert_untouched(ns)


def test_tc_where_native_refuses_the_mtu(ns: Namespace) -> None:
    ns.run("ip", "link", "set", DEVICE, "mtu", "1400")
    # veth looks at its peer's MTU.
    with namespace() as third:
        veth(ns, third, "under1", "mtu", "9001")
        address(ns, "under1", "198.51.100.1/24")
        with node(ns) as one:
            one.datapath.add_peer(PEER, bytes(32))
            endpoint = Endpoint(ip_address("198.51.100.2"), 51820)
            ns.call(one.datapath.set_endpoint, PEER, endpoint)
            assert described(one)["open"] == "tc"
            assert described(one)["seal"] == "tc"
            assert "native XDP refused: " in described(one)["reason"]
            assert "MTU" in described(one)["reason"]


def test_loopback_is_not_attached(ns: Namespace) -> None:
    with node(ns) as one:
        one.datapath.add_peer(PEER, bytes(32))
        ns.call(one.datapath.set_endpoint, PEER, Endpoint(ip_address("127.0.0.1"), 51820))
        assert described(one) | {"reason": ""} == {
            "name": "lo", "open": "socket", "seal": "tc", "spread": 0, "reason": "",
        }  # fmt: skip


FOREIGN = """
#include <linux/bpf.h>
__attribute__((section("xdp"), used)) int foreign_xdp(struct xdp_md *p) { return XDP_PASS; }
__attribute__((section("tc"), used)) int foreign_tc(struct __sk_buff *p) { return 0; }
char LICENSE[] __attribute__((section("license"))) = "GPL";
"""


def load_foreign_xdp(ns: Namespace, path: Path) -> None:
    compiled = compile_bpf(FOREIGN, path)
    ns.run("ip", "link", "set", DEVICE, "xdp", "object", str(compiled), "section", "xdp")


def test_foreign_xdp_program_stays(ns: Namespace, tmp_path: Path) -> None:
    load_foreign_xdp(ns, tmp_path)
    foreign = xdp(ns)
    with node(ns) as one:
        use(one)
        assert described(one)["open"] == "tc"
        assert "native XDP refused: " in described(one)["reason"]
        assert xdp(ns) == foreign
        assert filters(ns) == ["open_tc"]
    assert xdp(ns) == foreign
    assert qdiscs(ns) == {"noqueue"}


def test_asked_for_but_refused_goes_by_the_socket(ns: Namespace, tmp_path: Path) -> None:
    load_foreign_xdp(ns, tmp_path)
    with node(ns, mode="native") as one:
        use(one)
        assert described(one)["open"] == "socket"
        assert "native XDP refused: " in described(one)["reason"]
        assert filters(ns) == []
        assert qdiscs(ns) == {"noqueue"}


@pytest.mark.parametrize("qdisc", ["clsact", "ingress"])
@pytest.mark.parametrize("mode", ["native", "tc"])
def test_foreign_qdisc_stays(ns: Namespace, qdisc: str, mode: AttachMode) -> None:
    ns.run("tc", "qdisc", "add", "dev", DEVICE, qdisc)
    with node(ns, mode=mode) as one:
        use(one)
        assert filters(ns) == EXPECTED[mode][2]
    assert filters(ns) == []
    assert qdiscs(ns) == {"noqueue", qdisc}


def test_foreign_filter_stays(ns: Namespace, tmp_path: Path) -> None:
    compiled = compile_bpf(FOREIGN, tmp_path)
    with node(ns) as one:
        use(one)
        foreign = f"prio 50 bpf da obj {compiled} sec tc"
        ns.run("tc", "filter", "add", "dev", DEVICE, "ingress", *foreign.split())
        assert filters(ns) == ["deliver", "foreign_tc"]
    assert filters(ns) == ["foreign_tc"]
    assert qdiscs(ns) == {"noqueue", "clsact"}
    assert xdp(ns) == ("", "")


@pytest.mark.parametrize("first_leaves_first", [True, False])
@pytest.mark.parametrize("modes", [("auto", "auto"), ("auto", "tc"), ("tc", "native")])
def test_two_tunnels_on_one_device(
    ns: Namespace, modes: tuple[AttachMode, AttachMode], first_leaves_first: bool
) -> None:
    with node(ns, mode=modes[0]) as one, node(ns, mode=modes[1], port=51821) as other:
        use(one)
        use(other)
        assert sorted(filters(ns)) == sorted(EXPECTED[modes[0]][2] + EXPECTED[modes[1]][2])
        leaver, stayer, mode = (
            (one, other, modes[1]) if first_leaves_first else (other, one, modes[0])
        )
        ns.call(leaver.datapath.remove)
        assert filters(ns) == EXPECTED[mode][2]
        assert xdp(ns)[0] == EXPECTED[mode][1]
        ns.call(stayer.datapath.remove)
        assert_untouched(ns)


def test_device_that_vanishes(ns: Namespace) -> None:
    with node(ns) as one:
        use(one)
        directory = bpffs.device_directory(ns.call(bpffs.netns_inode), ns.ifindex(DEVICE))
        ns.run("ip", "link", "del", DEVICE)
        ns.call(one.datapath.network_changed)
        assert one.datapath.describe()["devices"] == []
        assert not directory.exists()


def test_nothing_left_when_construction_fails(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(objects, "XDP_OBJECT", tmp_path / "none.bpf.o")
    with pytest.raises(DatapathError, match="missing"), node(ns, name="ktfails"):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(
        "ebpfvpn.kernel.datapath.RingBuffer", lambda _: (_ for _ in ()).throw(DatapathError("no"))
    )
    with pytest.raises(DatapathError, match="no"), node(ns, name="ktfails"):
        pass
    assert not bpffs.pin_directory("ktfails").exists()
    assert not (bpffs.RUN / "ktfails.lock").exists()
    assert ns.run("ip", "-br", "link").split("\n")[2:] == [""]


def test_name_in_use_in_another_namespace(ns: Namespace) -> None:
    with (
        namespace() as elsewhere,
        node(ns) as one,
        pytest.raises(DatapathError, match=f"{one.name} is in use"),
        node(elsewhere, name=one.name),
    ):
        pass


DIES = """
import sys, os
sys.path[:0] = sys.argv[3:]
from kernel.compiler import compile_bpf
from kernel.nodes import *
from kernel.test_attach import use
ns = Namespace(sys.argv[1])
with node(ns, name=sys.argv[2]) as one:
    use(one)
    keypair = Keypair(Session(77, 78, True, 1.0), bytes(range(32)), bytes(range(32)))
    one.datapath.install(PEER, keypair, confirmed=True)
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("cleaned_elsewhere", [True, False])
def test_what_a_dead_daemon_left(ns: Namespace, cleaned_elsewhere: bool) -> None:
    name = f"kt{os.getpid():x}d"
    tests = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", DIES, ns.name, name, str(tests), str(tests.parent / "daemon")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        with pytest.raises(DatapathError, match=f"in use already, by process {process.pid}"):
            leftovers.clean(name)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert xdp(ns)[1] == "dispatch"
    assert bpffs.pin_directory(name).exists()
    if cleaned_elsewhere:
        leftovers.clean(name)
    else:
        with node(ns, name=name):  # starts anew
            pass
    assert_untouched(ns)
    assert not bpffs.pin_directory(name).exists()
    wait_for(lambda: ns.run("ip", "-br", "link").count("\n") == 2)


def test_leftovers_of_a_namespace_that_is_gone() -> None:
    name = f"kt{os.getpid():x}g"
    bpffs.mount()
    pins = bpffs.pin_directory(name)
    pins.mkdir()
    (pins / "@netns=1,tun=2,number=0,port=3,fwmark=0,shape=any,identity=any").mkdir()
    assert len(generation.find(name)) == 1
    leftovers.clean(name)
    assert not pins.exists()
    leftovers.clean(name)
