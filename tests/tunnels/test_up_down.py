"""What `up` makes, `down` removes; so do an `up` that fails and whatever follows a kill."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from both_paths import in_userspace
from echo import ping
from netns import namespace
from tunnels.nodes import (
    INNER,
    OUTER,
    PORT,
    RUN,
    Node,
    endpoint,
    introduce,
    node,
    underlay,
    wait_for,
)
from tunnels.traces import refuse, traces


@contextlib.contextmanager
def one_node(**interface: object) -> Iterator[tuple[Node, Node]]:
    """Two configured nodes of which none is up."""
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER, **interface)
        yield one, other


def default_route(one: Node, other: Node) -> None:
    """Of `one` through `other`: routes, rules and a table go with it."""
    one.configure(
        {"ListenPort": PORT, "Address": f"{INNER[0]}/24, fd66::1/64"},
        [other.peer("0.0.0.0/0", "::/0", endpoint=endpoint(OUTER[1]))],
    )


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_down_removes_everything(mode: str) -> None:
    with one_node(AttachMode=mode) as (one, other):
        before = traces(one)
        other.up()
        for _ in range(2):
            one.up()
            assert ping(one.ns, INNER[1]) == 3
            during = traces(one)
            unchanged = {"rules", "pins"} if in_userspace() else {"rules"}
            assert {kind for kind in before if during[kind] == before[kind]} == unchanged
            pid = one.show()["pid"]
            one.down()
            assert traces(one) == before
            assert not Path(f"/proc/{pid}/exe").exists()


@pytest.mark.parametrize("kills", [0, 2])
def test_down_removes_the_rules_of_a_default_route(kills: int) -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        default_route(one, other)
        before = traces(one)
        one.up()
        during = traces(one)
        assert during["rules"] != before["rules"]
        for _ in range(kills):
            one.kill()
            one.up()
            assert traces(one)["rules"] == during["rules"]
        if kills:
            one.kill()
        one.down()
        after = traces(one)
        # The log of a daemon that was killed may be read.
        after["run"] = [path for path in after["run"] if not path.endswith(".log")]
        assert after == before


def test_down_without_up() -> None:
    with one_node() as (one, _):
        done = one.command("down", one.name)
        assert (done.returncode, done.stderr) == (1, f"ebpfvpn: {one.name} is not up\n")


def test_up_twice_is_an_error_and_changes_nothing() -> None:
    with one_node() as (one, other):
        one.up()
        other.up()
        assert ping(one.ns, INNER[1]) == 3
        done = one.command("up", str(one.path))
        assert (done.returncode, done.stderr) == (1, f"ebpfvpn: {one.name} is up already\n")
        assert ping(one.ns, INNER[1]) == 3


def test_a_name_that_is_in_use_in_another_namespace() -> None:
    with one_node() as (one, other), namespace() as elsewhere:
        one.up()
        other.up()
        twin = Node(elsewhere, one.path, one.private_key, one.public_key)
        before = traces(twin)
        done = twin.command("up", str(one.path))
        assert done.returncode == 1
        assert done.stderr.startswith(f"ebpfvpn: {one.name} is ")
        assert done.stderr.count("\n") == 1
        after = traces(twin)
        assert after == before
        assert ping(one.ns, INNER[1]) == 3


def test_a_port_in_use() -> None:
    with one_node() as (one, _):
        with one.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("", PORT))
            refuse(one, f"UDP port {PORT} is in use", "ListenPort")
        with one.ns.call(socket.socket, socket.AF_INET6, socket.SOCK_DGRAM) as taken:
            taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken.bind(("::", PORT))
            refuse(one, f"UDP port {PORT} is in use", "ListenPort")
        one.up()


def test_an_address_that_the_kernel_refuses() -> None:
    with one_node() as (one, other):
        one.configure(
            {"ListenPort": PORT, "Address": f"{INNER[0]}/24, ff02::1/64"},
            [other.peer(INNER[1], endpoint=endpoint(OUTER[1]))],
        )
        refuse(one, "Address", "ff02::1")


def test_a_device_of_that_name() -> None:
    with one_node() as (one, _):
        one.ns.run("ip", "link", "add", one.name, "type", "veth", "peer", "name", "other0")
        refuse(one, one.name, "exists already")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Address = 10.0.0.300/24", ("Address",)),
        ("AllowedIps = 10.0.0.0/8", ("AllowedIps", "Peer")),
        ("Adress = 10.0.0.1/24", ("Adress", "did you mean Address?")),
        ("#! AttachModus = tc", ("AttachModus",)),
        ("#! AttachMode = fast", ("AttachMode",)),
        ("PrivateKey = c2hvcnQ=", ("PrivateKey",)),
        ("MTU = 70000", ("MTU",)),
    ],
)
def test_a_file_with_an_error(line: str, words: tuple[str, ...]) -> None:
    with namespace() as ns, node(ns) as one:
        one.configure({"ListenPort": PORT}, [])
        one.path.write_text(one.path.read_text() + line + "\n")
        number = len(one.path.read_text().splitlines())
        refuse(one, f"{one.path}:{number}", *words)


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_down_after_a_kill(mode: str) -> None:
    with one_node(AttachMode=mode) as (one, other):
        before = traces(one)
        one.up()
        other.up()
        assert ping(one.ns, INNER[1]) == 3
        one.kill()
        assert one.pins.exists() != in_userspace()
        one.down()
        after = traces(one)
        # The log of a daemon that was killed may be read.
        after["run"] = [path for path in after["run"] if not path.endswith(".log")]
        assert after == before
        one.up()
        assert ping(one.ns, INNER[1]) == 3


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_up_after_a_kill(mode: str) -> None:
    with one_node(AttachMode=mode) as (one, other):
        before = traces(one)
        other.up()
        for _ in range(2):
            one.up()
            assert ping(one.ns, INNER[1]) == 3
            one.kill()
        one.up()
        assert ping(one.ns, INNER[1]) == 3
        one.down()
        assert traces(one) == before


def test_down_from_another_namespace_after_a_kill() -> None:
    with one_node() as (one, other), namespace() as elsewhere:
        before = traces(one)
        one.up()
        other.up()
        assert ping(one.ns, INNER[1]) == 3
        one.kill()
        Node(elsewhere, one.path, one.private_key, one.public_key).down()
        after = traces(one)
        after["run"] = [path for path in after["run"] if not path.endswith(".log")]
        assert after == before


def test_foreground_runs_until_it_is_told_to_stop() -> None:
    with one_node() as (one, other):
        before = traces(one)
        other.up()
        command = one.ns.command(
            sys.executable, "-m", "ebpfvpn", "up", "--foreground", str(one.path)
        )
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: (RUN / f"{one.name}.sock").exists())
            wait_for(lambda: ping(one.ns, INNER[1]) == 3)
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=15)
        assert process.returncode == 0
        assert f"{one.name} is up" in said
        assert one.private_key not in said
        assert traces(one) == before


def test_a_device_that_somebody_deletes_takes_everything_with_it() -> None:
    with one_node() as (one, other):
        default_route(one, other)
        before = traces(one)
        one.up()
        pid = os.pidfd_open(one.show()["pid"])
        one.ns.run("ip", "link", "del", one.name)
        assert select.select([pid], [], [], 10)[0]  # it has ended
        os.close(pid)
        (error,) = one.log().splitlines()[-1:]
        assert "ERROR" in error
        assert f"somebody deleted the device {one.name}" in error
        assert one.log().count("deleted") == 1
        assert "Traceback" not in one.log()
        after = traces(one)
        # The log of a daemon that failed may be read.
        after["run"] = [path for path in after["run"] if not path.endswith(".log")]
        assert after == before
        one.up()


def test_a_device_that_somebody_deletes_in_the_foreground() -> None:
    with one_node() as (one, _):
        before = traces(one)
        command = one.ns.command(
            sys.executable, "-m", "ebpfvpn", "up", "--foreground", str(one.path)
        )
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(lambda: (RUN / f"{one.name}.sock").exists())
            wait_for(lambda: one.command("show", one.name).returncode == 0)
            one.ns.run("ip", "link", "del", one.name)
            _, said = process.communicate(timeout=15)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 1
        assert f"ebpfvpn: {one.name}: somebody deleted the device" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert traces(one) == before
