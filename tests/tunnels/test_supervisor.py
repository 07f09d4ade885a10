"""Under a supervisor that keeps descriptors, as systemd does (sd_notify(3), FDSTORE)."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from echo import ping
from netns import Namespace
from tunnels.nodes import INNER, OUTER, Node, introduce, node, underlay, wait_for
from tunnels.traffic import Numbered


class Supervisor:
    """Starts `ebpfvpn up --foreground` again and again, and keeps what it is given."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._path)
        self._socket.settimeout(20)
        self.kept: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop(signal.SIGTERM)
        self._socket.close()
        for fd in self.kept.values():
            os.close(fd)

    def start(self, one: Node) -> None:
        """Returns when the daemon says that it is ready."""
        names, fds = list(self.kept), list(self.kept.values())
        # What systemd does between fork and exec: descriptors from 3 on, and its own process.
        script = "; ".join(
            ["import os, sys"]
            + [f"os.dup2({fd}, {100 + i})" for i, fd in enumerate(fds)]
            + [f"os.dup2({100 + i}, {3 + i})" for i in range(len(fds))]
            + ["os.environ['LISTEN_PID'] = str(os.getpid())"]
            + ["os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"]
        )
        arguments = ["-m", "ebpfvpn", "up", "--foreground", str(one.path)]
        environment = {"NOTIFY_SOCKET": self._path}
        if fds:
            environment |= {"LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)}
        self._process = subprocess.Popen(
            one.ns.command(sys.executable, "-c", script, *arguments),
            env=os.environ | environment,
            stderr=subprocess.DEVNULL,
            pass_fds=fds,
        )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        while not self._hear():
            pass

    def _hear(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
        said = dict(line.partition("=")[::2] for line in data.decode().splitlines())
        if said.get("FDSTOREREMOVE") == "1":
            with contextlib.suppress(KeyError):
                os.close(self.kept.pop(said["FDNAME"]))
        elif said.get("FDSTORE") == "1":
            (self.kept[said["FDNAME"]],) = fds
        return said.get("READY") == "1"

    def stop(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(20)
            self._process = None

    def forget(self) -> None:
        """Hears out a daemon that has ended."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._hear()
        self._socket.settimeout(20)


@contextlib.contextmanager
def supervised() -> Iterator[tuple[Node, Node, Supervisor]]:
    """One node under a supervisor, and another; both are up."""
    with (
        underlay() as (a, b),
        node(a) as one,
        node(b) as other,
        tempfile.TemporaryDirectory(prefix="ebpfvpn-test-") as directory,
        Supervisor(directory) as supervisor,
    ):
        introduce(one, other, OUTER)
        supervisor.start(one)
        other.up()
        assert ping(a, INNER[1]) == 3
        yield one, other, supervisor


class Carrier:
    """Watches whether a device ever loses it."""

    def __init__(self, ns: Namespace, device: str) -> None:
        self._ns = ns
        self._device = device

    def changes(self) -> int:
        script = f"mount -t sysfs sysfs /sys && cat /sys/class/net/{self._device}/carrier_changes"
        return int(self._ns.run("unshare", "--mount", "sh", "-c", script))


def test_the_device_keeps_its_carrier() -> None:
    with supervised() as (one, other, supervisor):
        carrier = Carrier(one.ns, one.name)
        before = carrier.changes()
        assert set(supervisor.kept) == {"tun", "udp0", "udp1"}
        with Numbered(other.ns, one.ns, INNER[0]) as back:
            back.wait_for_more(100)
            for _ in range(2):
                supervisor.stop(signal.SIGKILL)
                assert "NO-CARRIER" not in one.ns.run("ip", "link", "show", one.name)
                back.wait_for_more(100)
                supervisor.start(one)
            one.restart()
            supervisor.wait_until_ready()
            back.wait_for_more(100)
        assert (back.lost, back.duplicates) == ([], [])
        assert carrier.changes() == before
        assert ping(one.ns, INNER[1]) == 3


def test_what_waits_for_a_daemon_is_not_lost() -> None:
    """Packets for a peer without a session, and its handshake, while there is no daemon."""
    with supervised() as (one, other, supervisor):
        supervisor.stop(signal.SIGKILL)
        other.down()
        other.up()
        with one.ns.call(
            subprocess.Popen,
            other.ns.command("ping", "-n", "-q", "-c", "1", "-W", "15", INNER[0]),
            stdout=subprocess.PIPE,
            text=True,
        ) as pinging:
            wait_for(lambda: other.show()["daemon"].get("handshake_sent") == 1)
            supervisor.start(one)
            assert "1 received" in pinging.communicate(timeout=20)[0]
        assert other.show()["daemon"]["handshake_sent"] == 1


def test_down_gives_up_what_is_kept() -> None:
    with supervised() as (one, _, supervisor):
        one.down()
        supervisor.forget()
        assert supervisor.kept == {}
        assert not Path(f"/proc/net/dev_snmp6/{one.name}").exists()
        supervisor.start(one)
        assert ping(one.ns, INNER[1]) == 3


def test_without_one_the_device_loses_its_carrier_and_no_packet() -> None:
    with underlay() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, OUTER)
        one.up()
        other.up()
        assert ping(a, INNER[1]) == 3
        one.kill()
        wait_for(lambda: "NO-CARRIER" in a.run("ip", "link", "show", one.name))
        assert ping(a, INNER[1], 20) == ping(b, INNER[0], 20) == 20
        one.up()
        assert "NO-CARRIER" not in a.run("ip", "link", "show", one.name)
