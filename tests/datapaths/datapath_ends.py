"""Two nodes over one underlay with either datapath between them and keypairs made by hand: no
daemon, but something that moves the packets where the datapath does not do it by itself."""

from __future__ import annotations

import contextlib
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import Any, cast

from ebpfvpn.datapath import Datapath, Event
from ebpfvpn.kernel.attach import ATTACH_MODES, AttachMode
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.netlink import Netlink
from ebpfvpn.path_mtu import PathMtu
from ebpfvpn.tun import Tun
from ebpfvpn.udp import UdpSockets
from ebpfvpn.userspace.datapath import UserspaceDatapath
from ebpfvpn.userspace.open import Message
from echo import ping
from kernel import nodes
from kernel.nodes import INNER, INNER6, OUTER, OUTER6, PORT, Node, introduce, read, wait_for
from netns import Namespace, address, namespace, veth

USERSPACE = "userspace"
PATHS = ("auto", USERSPACE)
"""The kernel path as it chooses, and the other."""
ALL_PATHS = (*ATTACH_MODES, USERSPACE)


class Pump:
    """Moves a UserspaceDatapath's packets in a thread, as the daemon's loop does."""

    def __init__(self, tun: Tun, udp: UdpSockets, datapath: UserspaceDatapath) -> None:
        self.lock = threading.RLock()
        self.left: deque[bytes] = deque()
        """Inner packets that are the daemon's."""
        self.rest: list[Message] = []
        """Messages that are the daemon's."""
        self._tun, self._udp, self._datapath = tun, udp, datapath
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        sockets = {sock.fileno(): sock for sock in self._udp.sockets}
        for fd in (self._tun.fileno(), *sockets):
            poll.register(fd, select.POLLIN)
        try:
            while not self._stop.is_set():
                for fd, _ in poll.poll(50):
                    with self.lock:
                        if fd in sockets:
                            self.rest += self._datapath.messages(sockets[fd])
                        else:
                            self.left.extend(self._datapath.packets())
        except BaseException as error:
            self._error = error

    def end(self) -> None:
        """Raises what the datapath raised."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error


class Locked:
    """A datapath whose methods wait for the pump."""

    def __init__(self, datapath: UserspaceDatapath, lock: threading.RLock) -> None:
        self._datapath = datapath
        self._lock = lock

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._datapath, name)

        def locked(*args: Any, **options: Any) -> Any:
            with self._lock:
                return attribute(*args, **options)

        return locked if callable(attribute) else attribute


@dataclass(slots=True)
class End:
    ns: Namespace
    tun: Tun
    datapath: Datapath
    left: Callable[[], bytes | None]
    """The next packet that the datapath left to the daemon; None: there is none."""
    userspace: UserspaceDatapath | None
    """Itself, if it is that."""
    node: Node

    def ping(self, target: str, *, size: int = 56, whole: bool = False) -> None:
        """Fails the test if one of five is lost. See echo.ping."""
        assert ping(self.ns, target, 5, size=size, whole=whole) == 5

    def ping_in_vain(self, target: str) -> None:
        self.ns.run("ping", "-c", "1", "-W", "0.1", target, check=False)

    def event(self, wanted: Event, seconds: float = 5.0) -> list[Event]:
        """Waits for it; returns what was told up to there."""
        found: list[Event] = []

        def told() -> bool:
            if select.select([self.datapath.events_fd()], [], [], 0.1)[0]:
                found.extend(self.ns.call(self.datapath.events))
            return wanted in found

        wait_for(told, seconds)
        return found


@contextlib.contextmanager
def _userspace_end(ns: Namespace, mtu: int, addresses: tuple[str, ...]) -> Iterator[End]:
    with contextlib.ExitStack() as undo:
        tun = ns.call(Tun.create, f"us{secrets.token_hex(4)}")
        undo.callback(tun.close)
        netlink = ns.call(Netlink)
        undo.callback(netlink.close)
        netlink.set_mtu(tun.ifindex, mtu)
        ns.run("sysctl", "-qw", f"net.ipv6.conf.{tun.name}.addr_gen_mode=1")
        netlink.set_up(tun.ifindex)
        for each in addresses:
            netlink.add_address(tun.ifindex, ip_interface(each))
        udp = ns.call(UdpSockets, PORT, 0)
        undo.callback(udp.close)
        datapath = UserspaceDatapath(tun=tun, udp=udp, path_mtu=PathMtu(netlink, 0), mtu=mtu)
        undo.callback(datapath.remove)
        datapath.alone(True)
        pump = Pump(tun, udp, datapath)
        undo.callback(pump.end)
        locked = cast(KernelDatapath, Locked(datapath, pump.lock))
        left = pump.left
        yield End(
            ns, tun, locked, lambda: left.popleft() if left else None, datapath,
            Node(ns, tun.name, tun, netlink, locked),
        )  # fmt: skip


@contextlib.contextmanager
def _kernel_end(
    ns: Namespace, mtu: int, addresses: tuple[str, ...], mode: AttachMode
) -> Iterator[End]:
    with nodes.node(ns, mtu=mtu, mode=mode, addresses=addresses) as node:
        yield End(ns, node.tun, node.datapath, lambda: read(node.tun), None, node)


@contextlib.contextmanager
def two_ends(
    path: str, other_path: str | None = None, *, mtu: int = 1420, outer: tuple[str, str] = OUTER
) -> Iterator[tuple[End, End]]:
    """Each with a session with the other. `path`: of ALL_PATHS; `other_path` None: the same."""
    with namespace() as a, namespace() as b, contextlib.ExitStack() as undo:
        veth(a, b)
        ends = []
        for i, (ns, which) in enumerate(((a, path), (b, other_path or path))):
            address(ns, "under0", OUTER[i], OUTER6[i])
            addresses = (INNER[i], INNER6[i])
            if which == USERSPACE:
                end = undo.enter_context(_userspace_end(ns, mtu, addresses))
            else:
                mode = cast(AttachMode, which)
                end = undo.enter_context(_kernel_end(ns, mtu, addresses, mode))
            ends.append(end)
        one, other = ends
        introduce(one.node, other.node, outer)
        for end in ends:
            end.ns.call(end.datapath.network_changed)
        yield one, other


def boot_time() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
