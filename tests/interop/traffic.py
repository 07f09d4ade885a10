"""Traffic between two namespaces whose loss and content are checked: ICMP, UDP, TCP."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from types import TracebackType

import echo
from netns import Namespace

_NUMBER_LENGTH = 8
_BUFFER = 4 << 20


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Returns the seconds it took until the condition held; fails the test if it took longer."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - start


def ping(
    ns: Namespace, address: str, *, count: int = 3, size: int = 56, whole: bool = False
) -> None:
    """Fails the test if a single one is not answered. See echo.ping."""
    answered = echo.ping(ns, address, count, interval=0.05, size=size, whole=whole)
    assert answered == count, f"{address}: {answered} of {count} answered"


def send_tcp(sender: Namespace, receiver: Namespace, address: str, size: int = 20_000_000) -> None:
    """Sends random bytes over one connection; fails the test unless they arrive unchanged."""
    content = os.urandom(size)
    listener = receiver.call(_bound, socket.SOCK_STREAM, address)
    digests: list[str] = []

    def receive() -> None:
        with listener, contextlib.suppress(TimeoutError):
            connection = listener.accept()[0]
            with connection:
                connection.settimeout(20)
                digest = hashlib.sha256()
                while chunk := connection.recv(1 << 20):
                    digest.update(chunk)
                digests.append(digest.hexdigest())
                connection.sendall(b"!")

    receiving = threading.Thread(target=receive)
    receiving.start()
    try:
        connection = sender.call(socket.create_connection, (address, _port(listener)), 20)
        with connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b"!"
    finally:
        receiving.join()
    assert digests == [hashlib.sha256(content).hexdigest()]


class NumberedPackets:
    """Numbered UDP packets at a steady rate, from a thread, for as long as the context lasts; at
    its end the last ones are waited for. The receiving socket has no address of its own, so that
    the one of the tunnel may go and come back."""

    def __init__(self, sender: Namespace, receiver: Namespace, to: str, rate: int) -> None:
        """`rate` is packets a second."""
        wildcard = "0.0.0.0" if ip_address(to).version == 4 else "::"
        self._receiver = receiver.call(_bound, socket.SOCK_DGRAM, wildcard)
        self._sender = sender.call(socket.socket, self._receiver.family, socket.SOCK_DGRAM)
        self._to = (to, _port(self._receiver))
        self._interval = 1 / rate
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=t) for t in (self._send, self._receive)]
        self.sent = 0
        self.refused = 0
        """By the kernel, and so never sent; they have no number."""
        self.received: list[int] = []
        """In the order of arrival."""

    @property
    def lost(self) -> list[int]:
        """So far; what is on its way counts as lost."""
        return sorted(set(range(self.sent)) - set(self.received))

    def arrive(self, seconds: float, what: str) -> float:
        """Waits until a packet that is sent from now on arrives; returns how long that took."""
        next_number = self.sent
        return wait_for(
            lambda: bool(self.received) and max(self.received[-100:]) >= next_number, seconds, what
        )

    def __enter__(self) -> NumberedPackets:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._receiver.close()

    def _send(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            try:
                self._sender.sendto(self.sent.to_bytes(_NUMBER_LENGTH, "big") * 25, self._to)
            except OSError:  # no route or no address for the moment
                self.refused += 1
            else:
                self.sent += 1
            due += self._interval
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            else:
                due -= pause  # held up: no burst to catch up

    def _receive(self) -> None:
        self._receiver.settimeout(0.5)
        while True:
            try:
                packet = self._receiver.recv(2048)
            except TimeoutError:
                if self._stop.is_set():
                    return
            else:
                self.received.append(int.from_bytes(packet[:_NUMBER_LENGTH], "big"))


def _bound(kind: socket.SocketKind, address: str) -> socket.socket:
    family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.settimeout(20)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
