"""The userspace path where there is no other: few privileges, kernels without this or that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from echo import ping
from netns import namespace
from tunnels.nodes import (
    INNER,
    INNER6,
    OUTER,
    PORT,
    Node,
    endpoint,
    introduce,
    node,
    pair,
    underlay,
    wait_for,
)
from tunnels.traces import refuse, traces
from tunnels.traffic import Numbered, tcp

pytestmark = pytest.mark.alone

NET_ADMIN = ("setpriv", "--bounding-set", "-all,+net_admin")
NET_ADMIN_AND_BPF = ("setpriv", "--bounding-set", "-all,+net_admin,+bpf,+perfmon")
NO_BPFFS = ("unshare", "--mount", "sh", "-c", 'umount /sys/fs/bpf && exec "$@"', "sh")
READ_ONLY_BPFFS = (
    "unshare", "--mount", "sh", "-c", 'mount -o remount,bind,ro /sys/fs/bpf && exec "$@"', "sh"
)  # fmt: skip

NO_LIBBPF = """
import ctypes
real = ctypes.CDLL
def missing(name, *more, **options):
    if "libbpf" in (name or ""):
        raise OSError(name)
    return real(name, *more, **options)
ctypes.CDLL = missing
"""
NO_VETH = """
from ebpfvpn.kernel import segmenter
def unknown(*_):
    raise OSError(95, "Operation not supported")
segmenter._add_pair = unknown
"""
NO_CLSACT = """
from ebpfvpn.kernel import hooks
from ebpfvpn.kernel.libbpf import BpfError
def unknown(ifindex):
    raise BpfError(f"clsact on device {ifindex}", 2)
hooks.add_clsact = unknown
"""
REFUSED = """
from ebpfvpn.kernel import objects
from ebpfvpn.kernel.libbpf import VerifierError
def refused(*_, **__):
    raise VerifierError("program seal_tc", 13, "R1 is odd\\nprocessed 3 insns")
objects.load_tunnel = refused
"""
SLOW = """
import pathlib, threading, time
from ebpfvpn.kernel import objects
def refused(*_, **__):
    if threading.current_thread() is not threading.main_thread():
        pathlib.Path(BEGUN).touch()
        time.sleep(5)
    raise OSError("refused")
objects.load_tunnel = refused
"""
NO_SEGMENTATION = """
import errno, socket
SEGMENT, GRO = (17, 103), (17, 104)
class Socket(socket.socket):
    def setsockopt(self, *option):
        if option[:2] in (SEGMENT, GRO):
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        super().setsockopt(*option)
    def getsockopt(self, *option):
        if option[:2] in (SEGMENT, GRO):
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        return super().getsockopt(*option)
    def sendmsg(self, parts, control=(), *more):
        known = [one for one in control if one[:2] != SEGMENT]  # others it does not look at
        return super().sendmsg(parts, known, *more)
socket.socket = Socket
"""
SEGMENTATION_REFUSED = """
import errno, socket
class Socket(socket.socket):
    def sendmsg(self, parts, control=(), *more):
        if any(one[:2] == (17, 103) for one in control):
            raise OSError(errno.EIO, "Input/output error")
        return super().sendmsg(parts, control, *more)
socket.socket = Socket
"""
NO_OFFLOAD = """
import errno, fcntl
real = fcntl.ioctl
def ioctl(fd, request, argument=0, *more):
    if request == 0x400454D0 and argument & REFUSED:
        raise OSError(errno.EINVAL, "Invalid argument")
    return real(fd, request, argument, *more)
fcntl.ioctl = ioctl
"""
NO_TSO = NO_OFFLOAD.replace("REFUSED", "-1")
NO_USO = NO_OFFLOAD.replace("REFUSED", "0x60")


def up(one: Node, *options: str, limits: Sequence[str] = (), changed: str = "") -> None:
    """By a process with `limits`, in which `changed` was run before."""
    done = subprocess.run(
        command(one, *options, limits=limits, changed=changed),
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


def command(one: Node, *options: str, limits: Sequence[str] = (), changed: str = "") -> list[str]:
    script = f"{changed}\nfrom ebpfvpn.cli import main\nmain()"
    return one.ns.command(*limits, sys.executable, "-c", script, "up", *options, str(one.path))


def is_in_userspace(one: Node, word: str, starts: int = 1) -> None:
    """`show`, JSON and the log say so, the log in one line for each start, and why."""
    status = one.show()
    reason = status["datapath"].pop("reason")
    assert status["datapath"] == {"path": "userspace", "devices": []}
    text = one.command("show", one.name).stdout
    assert "userspace" in text
    lines = [line for line in one.log().splitlines() if "userspace" in line]
    assert len(lines) == starts
    assert all("path userspace (" in line for line in lines)
    assert all(word in told for told in (reason, text, *lines))


def carries_everything(one: Node, other: Node) -> None:
    a, b = one.ns, other.ns
    for inner in (INNER, INNER6):
        assert ping(a, inner[1]) == ping(b, inner[0]) == 3
        tcp(a, b, inner[1], 4 << 20)
        tcp(b, a, inner[0], 4 << 20)
    with Numbered(a, b, INNER[1]) as there, Numbered(b, a, INNER6[0]) as back:
        there.wait_for_more(300)
        back.wait_for_more(300)
    for flow in (there, back):
        assert (flow.lost, flow.duplicates) == ([], [])
    assert one.failures() == other.failures() == 0


def capabilities(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("CapPrm:")[2].split()[0], 16)


def test_with_net_admin_alone() -> None:
    """Opposite a node on the kernel path."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        before = traces(one)
        up(one, limits=NET_ADMIN)
        other.up()
        assert {capabilities(pid) for pid in one.processes()} == {1 << 12}
        is_in_userspace(one, "CAP_BPF")
        assert other.show()["datapath"]["path"] == "kernel"
        carries_everything(one, other)
        one.down()
        assert traces(one) == before


@pytest.mark.parametrize("datapath", ["file", "option"])
def test_the_kernel_path_without_bpf_is_an_error(datapath: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        options = ("--datapath", "kernel") if datapath == "option" else ()
        introduce(one, other, Datapath="auto" if options else "kernel")
        asked = command(one, *options, limits=NET_ADMIN)
        refuse(one, "Datapath = kernel cannot be", "CAP_BPF", command=asked)


MISSING: dict[str, tuple[str, dict[str, Any]]] = {
    "bpffs": ("cannot mount bpffs", {"limits": (*NO_BPFFS, *NET_ADMIN_AND_BPF)}),
    "writable bpffs": ("Read-only file system", {"limits": READ_ONLY_BPFFS}),
    "libbpf": ("libbpf.so.1 is not installed", {"changed": NO_LIBBPF}),
    "veth": ("(veth): [Errno 95]", {"changed": NO_VETH}),
    "clsact": ("clsact on device", {"changed": NO_CLSACT}),
    "verifier": ("program seal_tc: R1 is odd", {"changed": REFUSED}),
}


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_told(what: str) -> None:
    reason, how = MISSING[what]
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        before = traces(one)
        up(one, **how)
        up(other, **how)
        is_in_userspace(one, reason)
        assert ping(a, INNER[1]) == ping(a, INNER6[1]) == 3
        tcp(a, b, INNER[1])
        wait_for(lambda: devices(one) == {"lo", "under0", one.name})
        wait_for(lambda: traces(one)["pins"] == before["pins"])
        one.down()
        assert traces(one) == before
        introduce(one, other, Datapath="kernel")
        refuse(one, "Datapath = kernel cannot be", reason, command=command(one, **how))


def test_the_same_reason_is_told_once() -> None:
    """It is tried again, with devices of other numbers, and in vain."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        up(one, changed=NO_CLSACT)
        first = one.show()["datapath"]["reason"]
        wait_for(lambda: one.show()["datapath"]["reason"] != first)
        is_in_userspace(one, "clsact on device")


def test_packets_go_on_while_a_restart_waits_for_what_is_being_built(tmp_path: Path) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        begun = tmp_path / "begun"
        up(one, changed=SLOW.replace("BEGUN", repr(str(begun))))
        other.up()
        assert ping(a, INNER[1]) == 3
        wait_for(begun.exists)
        began = one.show()["started"]
        command = one.ns.command(sys.executable, "-m", "ebpfvpn", "restart", one.name)
        with subprocess.Popen(command) as restart:
            assert ping(a, INNER[1], 10, interval=0.1) == 10
            assert restart.poll() is None
            assert one.show()["started"] == began
            assert restart.wait(30) == 0
        assert one.show()["started"] > began
        assert ping(a, INNER[1]) == 3


def devices(one: Node) -> set[str]:
    return {name for name, *_ in traces(one)["links"]}


def test_the_option_is_stronger_than_the_file_and_survives_restarts() -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, Datapath="kernel")
        up(one, "--datapath", "userspace")
        other.up()
        for starts in (1, 2):
            is_in_userspace(one, "asked for", starts)
            assert ping(a, INNER[1]) == 3
            before = one.show()["started"]
            one.restart()
            assert one.show()["started"] > before
        is_in_userspace(one, "asked for", 3)
        one.down()
        one.up()
        assert one.show()["datapath"]["path"] == "kernel"


def test_a_kill_takes_the_device_away() -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, Datapath="userspace")
        before = traces(one)
        other.up()
        for _ in range(2):
            one.up()
            assert ping(a, INNER[1]) == 3
            one.kill()
            after = traces(one)
            assert {kind for kind in before if after[kind] != before[kind]} == {"run"}
        one.down()


@pytest.mark.parametrize(
    "changed",
    [NO_SEGMENTATION, SEGMENTATION_REFUSED, NO_TSO, NO_USO, NO_SEGMENTATION + NO_TSO],
    ids=["UDP segmentation", "refused", "TSO", "USO", "all"],
)
def test_kernels_without_offloads(changed: str) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, Datapath="userspace")
        for each in (one, other):
            up(each, changed=changed)
        carries_everything(one, other)


@pytest.mark.parametrize("way", ["restart", "kill"])
def test_from_one_path_to_the_other_and_back(way: str) -> None:
    """Nothing of the kernel path goes on beside the other one."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, Datapath="userspace")
        before = traces(one)
        other.up()
        one.up()
        for path in ("kernel", "userspace", "kernel"):
            introduce(one, other, Datapath=path)
            if way == "restart":
                one.restart()
            else:
                one.kill()
                one.up()
            assert one.show()["datapath"]["path"] == path
            assert bool(traces(one)["pins"]) == (path == "kernel")
            assert (devices(one) == {"lo", "under0", one.name}) == (path == "userspace")
            assert ping(a, INNER[1]) == ping(b, INNER[0]) == 3
            tcp(a, b, INNER[1])
        one.down()
        assert traces(one) == before


def test_a_restart_without_a_session_keeps_device_and_port() -> None:
    with underlay() as (a, _), node(a) as one, node(a) as absent:
        one.configure(
            {"Address": f"{INNER[0]}/24", "Datapath": "userspace"}, [absent.peer(INNER[1])]
        )
        one.up()
        before, ifindex = one.show(), a.ifindex(one.name)
        one.restart()
        after = one.show()
        assert (a.ifindex(one.name), after["listen_port"]) == (ifindex, before["listen_port"])
        assert after["started"] > before["started"]


@pytest.mark.parametrize("networks", [INNER[1], "0.0.0.0/0"])
def test_the_device_in_another_namespace_goes_on(networks: str) -> None:
    """Redirection cannot follow it; the daemon can. A restart could not, and is refused."""
    with underlay() as (a, b), node(a) as one, node(b) as other, namespace() as elsewhere:
        introduce(one, other)
        one.configure(
            {"ListenPort": PORT, "Address": f"{INNER[0]}/24"},
            [other.peer(networks, endpoint=endpoint(OUTER[1]))],
        )
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        a.run("ip", "link", "set", one.name, "netns", elsewhere.name)
        elsewhere.run("ip", "link", "set", one.name, "up")
        elsewhere.run("ip", "address", "add", f"{INNER[0]}/24", "dev", one.name)
        wait_for(lambda: one.show()["datapath"]["path"] == "userspace")
        assert "has left this network namespace" in one.log()
        wait_for(lambda: ping(elsewhere, INNER[1], 1) == 1)
        refused = one.command("restart", one.name)
        assert refused.returncode == 1
        assert "is in another network namespace" in refused.stderr
        assert ping(elsewhere, INNER[1]) == 3
        assert "Traceback" not in one.log()
        elsewhere.run("ip", "link", "set", one.name, "netns", a.name)
        wait_for(lambda: one.show()["datapath"]["path"] == "kernel", 30)


def test_the_device_stays_when_the_kernel_path_is_made_anew_beside_userspace() -> None:
    """For the sessions there go on with it, whatever the programs may not move any more."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, Datapath="userspace")
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        introduce(one, other, Datapath="kernel")
        one.restart()
        ifindex = a.ifindex(one.name)
        a.run("ip", "route", "add", "198.18.0.0/24", "dev", one.name)
        # Of another shape, and the older one's programs would let IPv6 through.
        one.configure(
            {"ListenPort": PORT, "Address": f"{INNER[0]}/24", "MTU": 4000, "Datapath": "kernel"},
            [other.peer(INNER[1], endpoint=endpoint(OUTER[1]))],
        )
        one.restart()
        assert "took something away" in one.log()
        assert one.show()["datapath"]["path"] == "kernel"
        assert a.ifindex(one.name) == ifindex
        link = a.run("ip", "link", "show", one.name)
        assert f"alias ebpfvpn {one.name}" in link
        assert "198.18.0.0/24 " in a.run("ip", "route", "show", "dev", one.name)
        assert ping(a, INNER[1]) == ping(b, INNER[0]) == 3
        assert ping(a, INNER6[1], 1) == 0


def test_what_was_counted_before_a_fall_stays_counted() -> None:
    with pair() as (one, other), namespace() as elsewhere:
        assert ping(one.ns, INNER[1], 20) == 20
        one.ns.run("ip", "link", "set", one.name, "netns", elsewhere.name)
        wait_for(lambda: one.show()["datapath"]["path"] == "userspace")
        elsewhere.run("ip", "link", "set", one.name, "netns", one.ns.name)
        wait_for(lambda: one.show()["datapath"]["path"] == "kernel", 30)
        before = one.show()["peers"][0]
        assert before["tx_packets"] >= 20
        one.restart()
        after = one.show()["peers"][0]
        assert after["tx_packets"] >= before["tx_packets"]
        assert after["rx_packets"] >= before["rx_packets"]
        assert other.show()["drops"]["replayed"] == 0
