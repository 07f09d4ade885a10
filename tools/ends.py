"""The two ends of a tunnel that soaks: ebpfvpn, or wireguard-go as the other one."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ebpfvpn_pair
import mmsg
from lab import EBPFVPN, ROOT, LabError, Node, wait_for
from soak_lab import PORT, RelayLab

sys.path.append(str(ROOT / "tests"))

from ebpfvpn import control
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel.layout import Session
from ebpfvpn.kernel.map import Map
from interop.wireguard_go import WireGuardGo, genkey
from watcher import SIDES

_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)

ADDRESSES = ("198.51.100.1", "198.51.100.2")
"""Inside the tunnel: a, b."""


def _empty_window(highest: int, size: int) -> bytes:
    """As ebpf/replay.h has it, of `size` bytes: no word holds bits of the round of `highest`."""
    words = size // 8
    epoch = highest // 32 // words
    return ((epoch - 1) % 2**32 << 32).to_bytes(8, sys.byteorder) * words


def _interface(side: int) -> str:
    """Unique on the machine, as control sockets and pins require."""
    return f"soak{os.getpid()}{SIDES[side]}"


class Ours:
    """An interface of ours."""

    def __init__(self, here: RelayLab, node: Node, side: int, text: str) -> None:
        self.node = node
        self.interface = _interface(side)
        self.path = here.directory / f"{self.interface}.conf"
        self.path.touch(mode=0o600)
        self.path.write_text(text)
        here.defer(partial(ebpfvpn_pair.down, node, self.interface))

    def up(self) -> None:
        self.command("up", str(self.path))

    def command(self, *arguments: str) -> str:
        return self.node.run(str(EBPFVPN), *arguments)

    def status(self) -> dict[str, Any]:
        try:
            return control.request(self.interface, "status")
        except OperatorError as error:
            raise LabError(str(error)) from None

    def changes(self) -> int:
        """Repairs, and changes of the path, that the daemon has told of."""
        counters = self.status()["daemon"]
        return sum(counters.get(name, 0) for name in ("repairs", "path_down", "path_up"))

    def path_now(self) -> str:
        """How messages are opened on the underlay; or userspace."""
        datapath = self.status()["datapath"]
        if datapath["path"] == "userspace":
            return "userspace"
        return ", ".join(device["open"] for device in datapath["devices"]) or "nothing"

    def drops(self) -> dict[str, int]:
        drops: dict[str, int] = self.status()["drops"]
        return drops

    def has_session(self) -> bool:
        sessions = self.status()["peers"][0]["sessions"]
        return any(session["state"] == "current" for session in sessions)

    def kill(self) -> None:
        """The daemon, as a crash would end it."""
        pid = self.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not _runs(pid), 5, "the killed daemon to end")

    @contextlib.contextmanager
    def current_session(self) -> Iterator[Session]:
        """The only one there is; what is changed in it is written back. No packet may be under
        way meanwhile. Where its receive_highest is set, its window follows."""
        pins = Path(self.status()["datapath"]["pins"])
        with (
            contextlib.closing(Map.pinned(pins / "sessions")) as sessions,
            contextlib.closing(Map.pinned(pins / "windows")) as windows,
        ):
            ((key, value),) = sessions.items()
            session = Session.from_buffer_copy(value)
            before = session.receive_highest
            yield session
            if session.receive_highest != before:
                windows.update(key, _empty_window(session.receive_highest, windows.value_size))
            sessions.update(key, bytes(session))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Theirs:
    """An interface of wireguard-go."""

    def __init__(self, here: RelayLab, node: Node, side: int, text: str) -> None:
        self.node = node
        self.interface = _interface(side)
        self._end = WireGuardGo(node.namespace, self.interface, text, [f"{ADDRESSES[side]}/24"])
        here.defer(self._end.stop)

    def up(self) -> None:
        self._end.start()
        # Debian's version leaves its socket the default, some 300 packets; newer ones ask for 7 MB.
        wait_for(lambda: _give_buffers(self._end.pid, 7 << 20) > 0, 5, "wireguard-go's socket")

    def overflow(self) -> int:
        """Packets that found the buffer of a UDP socket full, its own or the receiver's, or the
        queue of its TUN device."""
        lines = self.node.run("cat", "/proc/net/snmp").splitlines()
        names, values = (line.split() for line in lines if line.startswith("Udp:"))
        (link,) = json.loads(self.node.run("ip", "-j", "-s", "link", "show", "dev", self.interface))
        dropped: int = link["stats64"]["tx"]["dropped"]
        return int(values[names.index("RcvbufErrors")]) + dropped


def _give_buffers(pid: int, size: int) -> int:
    """To the IPv4 UDP sockets of a process, for receiving; returns how many it has."""
    lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    names = {f"socket:[{line.split()[9]}]" for line in lines}
    found = 0
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if os.readlink(entry) in names:
                descriptor = _libc.syscall(_PIDFD_GETFD, process, int(entry.name), 0)
                with socket.socket(fileno=descriptor) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RCVBUFFORCE, size)
                found += 1
    finally:
        os.close(process)
    return found


Keys = Mapping[str, object]
"""Our own keys of [Interface], by name."""


class Tunnel:
    """a and b, through the relay. a is always ours."""

    def __init__(self, here: RelayLab, peer: str, a: Keys, b: Keys) -> None:
        """`peer` is ebpfvpn or wireguard-go (which has no own keys): what b is."""
        self.here = here
        pairs = [genkey(), genkey()]
        texts = [
            _configuration(here, side, pairs[side][0], pairs[1 - side][1], own, peer)
            for side, own in enumerate((a, b))
        ]
        self.a = Ours(here, here.left, 0, texts[0])
        self.b: Ours | Theirs
        if peer == "ebpfvpn":
            self.b = Ours(here, here.right, 1, texts[1])
        else:
            self.b = Theirs(here, here.right, 1, texts[1])

    @property
    def ours(self) -> dict[str, Ours]:
        """By side."""
        return {side: end for side, end in (("a", self.a), ("b", self.b)) if isinstance(end, Ours)}

    def overflow_at_peer(self) -> int:
        """Packets that wireguard-go was too slow for."""
        return self.b.overflow() if isinstance(self.b, Theirs) else 0

    def up(self, timeout: int = 20) -> None:
        """Both ends, and a session, initiated by a."""
        self.b.up()
        self.a.up()
        self.here.left.run(
            "ping", "-c", "1", "-W", str(timeout), ADDRESSES[1], timeout=timeout + 5, can_wait=False
        )
        for end in self.ours.values():
            wait_for(end.has_session, 5, f"{end.interface} to have a session")


def _configuration(
    here: RelayLab, side: int, private_key: str, public_key: str, own: Keys, peer: str
) -> str:
    lines = ["[Interface]", f"PrivateKey = {private_key}", f"ListenPort = {PORT}"]
    if side == 0 or peer == "ebpfvpn":
        lines.append(f"Address = {ADDRESSES[side]}/24")
        lines += [f"#! {key} = {value}" for key, value in own.items()]
    lines += [
        "[Peer]",
        f"PublicKey = {public_key}",
        f"AllowedIPs = {ADDRESSES[1 - side]}/32",
        f"Endpoint = {here.relay_addresses[side]}:{PORT}",
    ]
    return "\n".join(lines) + "\n"
