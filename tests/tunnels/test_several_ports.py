"""One tunnel over several source ports."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from both_paths import in_userspace
from echo import family, ping
from tunnels.nodes import (
    INNER,
    INNER6,
    MODES,
    OUTER,
    OUTER6,
    PORT,
    Node,
    endpoint,
    node,
    underlay,
)
from tunnels.sniff import Sniffer
from tunnels.traffic import udp_socket

PORTS = 4
FLOWS = 64
"""That they leave by fewer ports has a chance of 1 in 10^7."""


def introduce(one: Node, other: Node, outer: tuple[str, str] = OUTER, **interface: object) -> None:
    for i, (here, there) in enumerate(((one, other), (other, one))):
        here.configure(
            {"ListenPort": PORT, "Address": f"{INNER[i]}/24, {INNER6[i]}/64"} | interface,
            [
                there.peer(
                    INNER[1 - i],
                    INNER6[1 - i],
                    endpoint=endpoint(outer[1 - i]) if i == 0 else "",
                    FlowPorts=PORTS,
                )
            ],
        )


def send_flows(here: Node, there: Node, to: str) -> None:
    """Each of 5 packets, which arrive in order."""
    with contextlib.ExitStack() as closing:
        sink = closing.enter_context(udp_socket(there.ns, to))
        sink.settimeout(5)
        flows = []
        for _ in range(FLOWS):
            sock = here.ns.call(socket.socket, family(to), socket.SOCK_DGRAM)
            flows.append(closing.enter_context(sock))
            sock.connect(sink.getsockname()[:2])
        for number in range(5):
            for sock in flows:
                sock.send(bytes([number]))
        arrived: dict[int, list[int]] = {}
        for _ in range(5 * FLOWS):
            data, source = sink.recvfrom(10)
            arrived.setdefault(source[1], []).append(data[0])
    assert list(arrived.values()) == [[0, 1, 2, 3, 4]] * FLOWS


def source_ports(sniffer: Sniffer) -> set[int]:
    """Of data messages."""
    found = set()
    for frame in sniffer.frames:
        start = 14 + (20 if frame[12:14] == b"\x08\x00" else 40)
        udp = frame[start:]
        if udp[2:4] == PORT.to_bytes(2, "big") and udp[8:12] == b"\x04\0\0\0":
            found.add(int.from_bytes(udp[:2], "big"))
    return found


@pytest.mark.parametrize("outer", [OUTER, OUTER6])
def test_flows_leave_by_several_ports(outer: tuple[str, str]) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, outer, AttachMode="tc")
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        with (
            Sniffer(a, "under0", outgoing=True) as out,
            Sniffer(a, "under0", outgoing=False) as back,
        ):
            send_flows(one, other, INNER[1])
            send_flows(other, one, INNER6[0])
        ports = {PORT} if in_userspace() else set(range(PORT, PORT + PORTS))
        assert (source_ports(out), source_ports(back)) == (ports, ports)
        for each, there in ((one, outer[1]), (other, outer[0])):
            (peer,) = each.show()["peers"]
            assert (peer["endpoint"], peer["flow_ports"]) == (endpoint(there), PORTS)
            assert peer["max_lateness"] < 5 * FLOWS


@pytest.mark.parametrize("mode", MODES)
def test_the_endpoint_stays_where_it_is(mode: str) -> None:
    """Whatever the number of ports; and they go over a restart."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, AttachMode=mode)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        for _ in range(2):
            for here, there, to in ((one, other, INNER[1]), (other, one, INNER[0])):
                send_flows(here, there, to)
            for each, remote in ((one, OUTER[1]), (other, OUTER[0])):
                (peer,) = each.show()["peers"]
                assert peer["endpoint"] == endpoint(remote)
            other.restart()
        assert "  flow ports: 4\n" in one.command("show", one.name).stdout


def rps_cpus(one: Node) -> int:
    """Of under0."""
    script = "mount -t sysfs sysfs /sys && cat /sys/class/net/under0/queues/rx-0/rps_cpus"
    return int(one.ns.run("unshare", "--mount", "sh", "-c", script).replace(",", ""), 16)


def test_one_receive_queue_is_shared() -> None:
    """From FlowPorts in the file to the device; and none, none again."""
    several = len(os.sched_getaffinity(0)) > 1
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, AttachMode="tc")
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        assert ("RPS shares its one receive queue" in one.device()["reason"]) == several
        assert (rps_cpus(one) != 0) == several
        send_flows(other, one, INNER[0])
        text = one.path.read_text().replace(f"FlowPorts = {PORTS}", "FlowPorts = 1")
        one.path.write_text(text)
        one.restart()
        assert rps_cpus(one) == 0
        one.path.write_text(text.replace("FlowPorts = 1", f"FlowPorts = {PORTS}"))
        one.kill()
        one.up()
        assert rps_cpus(one) == rps_cpus(other)
        send_flows(one, other, INNER[1])
        for each in (one, other):
            each.down()
            assert rps_cpus(each) == 0


def test_from_programs_to_the_userspace_path() -> None:
    """There it is one port that leaves, and several that arrive."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other)
        one.up()
        done = other.command("up", "--datapath", "userspace", str(other.path))
        assert done.returncode == 0, done.stderr
        assert ping(a, INNER[1]) == 3
        send_flows(one, other, INNER[1])
        send_flows(other, one, INNER[0])
        (peer,) = other.show()["peers"]
        assert peer["endpoint"] == endpoint(OUTER[0])
