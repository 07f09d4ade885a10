"""Nodes with the whole daemon, in network namespaces: real files, real commands."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from both_paths import in_userspace
from ebpfvpn import keys
from netns import Namespace, address, namespace, veth

PORT = 51820
PINS = Path("/sys/fs/bpf/ebpfvpn")
RUN = Path("/run/ebpfvpn")
OUTER = ("192.0.2.1", "192.0.2.2")
OUTER6 = ("2001:db8::1", "2001:db8::2")
INNER = ("10.66.0.1", "10.66.0.2")
INNER6 = ("fd66::1", "fd66::2")
MODES = ("native", "generic", "tc")
_OWN_KEYS = (
    "AttachMode",
    "Datapath",
    "FlowPorts",
    "RecvBuffer",
    "RekeyAfterMessages",
    "RekeyAfterTime",
    "ReplayWindow",
    "SendBuffer",
    "TxQueueLen",
)


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Returns when it holds; fails the test when it does not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Node:
    """One interface, up or not."""

    ns: Namespace
    path: Path
    """Of its configuration."""
    private_key: str
    public_key: str
    python_path: Path | None = None
    """Of another version than this one."""

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def pins(self) -> Path:
        return PINS / self.name

    def configure(
        self, interface: Mapping[str, object], peers: Sequence[Mapping[str, object]]
    ) -> None:
        """Writes the file; `interface` needs no PrivateKey. Our own keys become `#!` lines."""
        path = {"Datapath": "userspace"} if in_userspace() else {}
        lines = _section("Interface", {"PrivateKey": self.private_key} | path | dict(interface))
        for peer in peers:
            lines += _section("Peer", peer)
        with open(self.path, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write("\n".join(lines) + "\n")

    def peer(self, *allowed_ips: str, endpoint: str = "", **more: object) -> dict[str, object]:
        """This node as a peer of another one."""
        found: dict[str, object] = {
            "PublicKey": self.public_key,
            "AllowedIPs": ", ".join(allowed_ips),
        }
        if endpoint:
            found["Endpoint"] = endpoint
        return found | more

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`ebpfvpn ARGUMENTS` in its namespace."""
        return subprocess.run(
            self.ns.command(sys.executable, "-m", "ebpfvpn", *arguments),
            env=os.environ | ({"PYTHONPATH": str(self.python_path)} if self.python_path else {}),
            capture_output=True,
            text=True,
            timeout=30,
        )

    def up(self) -> None:
        done = self.command("up", str(self.path))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""

    def down(self) -> None:
        done = self.command("down", self.name)
        assert (done.returncode, done.stderr) == (0, "")

    def restart(self) -> None:
        done = self.command("restart", self.name)
        assert (done.returncode, done.stderr) == (0, ""), self.log()

    def kill(self) -> None:
        """The daemon, by SIGKILL."""
        pid = self.show()["pid"]
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([process], [], [], 10)[0]
        os.close(process)

    def show(self) -> dict[str, Any]:
        done = self.command("show", "--json", self.name)
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def failures(self) -> int:
        """Packets that a path lost by what should never happen to it."""
        status = self.show()
        userspace = status["datapath"]["path"] == "userspace"
        reasons = ("send_failed", "stack_refused") if userspace else ("helper_failed",)
        return sum(status["drops"][reason] for reason in reasons)

    def devices(self) -> dict[str, str]:
        """By which underlay devices packets are opened, and how; in userspace there are none."""
        return {each["name"]: each["open"] for each in self.show()["datapath"]["devices"]}

    def device(self, name: str = "under0") -> dict[str, str]:
        """What `show` says of an underlay device."""
        devices: list[dict[str, str]] = self.show()["datapath"]["devices"]
        return next(device for device in devices if device["name"] == name)

    def processes(self) -> list[int]:
        """The daemon and its descendants."""
        found = [int(self.show()["pid"])]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        return found

    def log(self) -> str:
        return (RUN / f"{self.name}.log").read_text()


def _state(pid: int) -> str:
    """As in /proc/PID/stat: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def frozen(*nodes: Node) -> Iterator[None]:
    """Every process of the daemons stopped."""
    pids = [pid for node in nodes for pid in node.processes()]
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: {_state(pid) for pid in pids} == {"T"})
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _section(title: str, values: Mapping[str, object]) -> list[str]:
    lines = ["", f"[{title}]"]
    for key, value in values.items():
        lines.append(f"{'#! ' if key in _OWN_KEYS else ''}{key} = {value}")
    return lines


@contextlib.contextmanager
def node(ns: Namespace) -> Iterator[Node]:
    """A name and keys of its own. Taken down at the end, if it is up."""
    private_key = keys.generate_private_key()
    public_key = keys.encode_key(keys.public_key(private_key))
    with tempfile.TemporaryDirectory(prefix="ebpfvpn-test-") as directory:
        path = Path(directory, f"ev{secrets.token_hex(4)}.conf")
        found = Node(ns, path, keys.encode_key(private_key), public_key)
        try:
            yield found
        finally:
            if found.pins.exists() or (RUN / f"{found.name}.sock").exists():
                found.down()
            # That of a daemon that failed or was killed stays.
            (RUN / f"{found.name}.log").unlink(missing_ok=True)


@contextlib.contextmanager
def underlay(mtu: int = 1500, *extra: str) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with a veth `under0` between them, OUTER and OUTER6 on it."""
    with namespace() as a, namespace() as b:
        connect(a, b, "under0", mtu, *extra)
        for i, ns in enumerate((a, b)):
            address(ns, "under0", f"{OUTER[i]}/24", f"{OUTER6[i]}/64")
        yield a, b


def connect(one: Namespace, other: Namespace, device: str, mtu: int = 1500, *extra: str) -> None:
    veth(one, other, device, *extra)
    for ns in (one, other):
        ns.run("ip", "link", "set", device, "mtu", str(mtu))


def endpoint(host: str, port: int = PORT) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def introduce(one: Node, other: Node, outer: tuple[str, str] = OUTER, **interface: object) -> None:
    """Writes the files of two nodes that know each other's endpoint; `interface` goes to both."""
    for i, (here, there) in enumerate(((one, other), (other, one))):
        here.configure(
            {"ListenPort": PORT, "Address": f"{INNER[i]}/24, {INNER6[i]}/64"} | interface,
            [there.peer(INNER[1 - i], INNER6[1 - i], endpoint=endpoint(outer[1 - i]))],
        )


@contextlib.contextmanager
def pair(
    mtu: int = 1500, outer: tuple[str, str] = OUTER, **interface: object
) -> Iterator[tuple[Node, Node]]:
    """Two nodes that are up, over one underlay; `interface` goes to both files."""
    with underlay(mtu) as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, outer, **interface)
        one.up()
        other.up()
        yield one, other
