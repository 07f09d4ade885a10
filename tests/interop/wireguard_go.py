"""wireguard-go as the other end: started in a network namespace, configured by wg(8)."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SOCKETS = Path("/var/run/wireguard")
"""One directory for all namespaces: interface names must be unique on the machine."""


class WireGuardGoError(Exception):
    """wireguard-go or wg failed; the text is what they said."""


@dataclass(frozen=True, slots=True)
class PeerDump:
    """A peer's line of `wg show IFACE dump`. Keys are base64."""

    public_key: str
    preshared_key: str | None
    endpoint: str | None
    allowed_ips: tuple[str, ...]
    latest_handshake: int
    """Seconds since 1970; 0: never."""
    rx_bytes: int
    tx_bytes: int
    persistent_keepalive: int
    """Seconds; 0: off."""


def genkey() -> tuple[str, str]:
    """A private key and its public key, base64."""
    private = _run(["wg", "genkey"]).strip()
    return private, _run(["wg", "pubkey"], stdin=private).strip()


class WireGuardGo:
    """One interface. `configuration` is in the format of `wg setconf`, `addresses` as ip(8) takes
    them ("10.0.0.1/24"), and each becomes an on-link prefix. A context manager: starts on the way
    in, and stops and removes the interface on the way out."""

    def __init__(
        self,
        namespace: str,
        interface: str,
        configuration: str,
        addresses: Sequence[str],
        mtu: int = 1420,
        *,
        binary: str = "wireguard-go",
    ) -> None:
        """`binary`: wireguard-go, or another program with its command line."""
        self.binary = binary
        self.namespace = namespace
        """Its name, as `ip netns` has it."""
        self.interface = interface
        self.configuration = configuration
        self.addresses = addresses
        self.mtu = mtu
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> WireGuardGo:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, timeout: float = 5) -> None:
        self._process = subprocess.Popen(
            self._enter(self.binary, "--foreground", self.interface),
            env={**os.environ, "LOG_LEVEL": "error"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._wait_for_socket(time.monotonic() + timeout)
        self.configure(self.configuration)
        for address in self.addresses:
            self.run("ip", "address", "add", address, "dev", self.interface)
        self.run("ip", "link", "set", self.interface, "mtu", str(self.mtu), "up")

    def configure(self, configuration: str) -> None:
        """Replaces the whole configuration."""
        # By standard input, for it holds the key.
        self.run("wg", "setconf", self.interface, "/dev/stdin", stdin=configuration)

    def set(self, *arguments: str) -> None:
        """`wg set IFACE arguments`."""
        self.run("wg", "set", self.interface, *arguments)

    def peers(self) -> dict[str, PeerDump]:
        """By public key."""
        lines = self.run("wg", "show", self.interface, "dump").splitlines()[1:]
        return {peer.public_key: peer for peer in map(_parse_peer, lines)}

    def stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._process = None
        self._socket.unlink(missing_ok=True)

    def run(self, *argv: str, stdin: str = "") -> str:
        """A command in the namespace; returns its standard output."""
        return _run(self._enter(*argv), stdin=stdin)

    @property
    def _socket(self) -> Path:
        return SOCKETS / f"{self.interface}.sock"

    def _listens(self) -> bool:
        """wg(8) removes a socket that refuses: it must not ask between bind and listen."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True

    def _enter(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *argv]

    def _wait_for_socket(self, deadline: float) -> None:
        assert self._process is not None
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.terminate()
                _, errors = self._process.communicate()
                raise WireGuardGoError(f"{self.binary} {self.interface}: {errors.strip()}")
            time.sleep(0.01)


def _parse_peer(line: str) -> PeerDump:
    key, preshared, endpoint, allowed, handshake, received, sent, keepalive = line.split("\t")
    return PeerDump(
        key,
        None if preshared == "(none)" else preshared,
        None if endpoint == "(none)" else endpoint,
        () if allowed == "(none)" else tuple(allowed.split(",")),
        int(handshake),
        int(received),
        int(sent),
        0 if keepalive == "off" else int(keepalive),
    )


def _run(argv: Sequence[str], stdin: str = "") -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=10)
    if done.returncode:
        raise WireGuardGoError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
