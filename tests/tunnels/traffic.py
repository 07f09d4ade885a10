"""Traffic through tunnels: ping, TCP whose content is compared, numbered UDP packets."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import TracebackType

from echo import family
from netns import Namespace

SO_RCVBUFFORCE = 33
_BUFFER = 16 << 20
_NUMBER = struct.Struct("!Q")
_TICK = 0.005


def udp_socket(ns: Namespace, address: str, port: int = 0) -> socket.socket:
    """Bound in the namespace, with a large buffer."""
    sock = ns.call(socket.socket, family(address), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
    sock.bind((address, port))
    return sock


def tcp(sender: Namespace, receiver: Namespace, to: str, size: int = 10 << 20) -> None:
    """Sends `size` random bytes by TCP and fails unless they arrive as they were."""
    block = os.urandom(1 << 20)
    with tcp_connection(sender, receiver, to) as (near, far):
        sent, received = hashlib.sha256(), hashlib.sha256()

        def send() -> None:
            left = size
            while left > 0:
                part = block[:left]
                near.sendall(part)
                sent.update(part)
                left -= len(part)
            near.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        try:
            while data := far.recv(1 << 20):
                received.update(data)
        finally:
            far.close()
            thread.join()
        assert received.digest() == sent.digest()


@contextlib.contextmanager
def tcp_connection(
    sender: Namespace, receiver: Namespace, to: str, seconds: float = 30
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends; nothing on them takes longer than `seconds`."""
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(
            receiver.call(socket.create_server, (to, 0), family=family(to))
        )
        near = undo.enter_context(sender.call(socket.socket, family(to), socket.SOCK_STREAM))
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        for sock in (listener, near):
            sock.settimeout(seconds)
        near.connect((to, listener.getsockname()[1]))
        far, _ = listener.accept()
        undo.enter_context(far)
        far.settimeout(seconds)
        yield near, far


class Numbered:
    """Numbered UDP packets from one namespace to another, while the `with` body runs."""

    def __init__(
        self, sender: Namespace, receiver: Namespace, to: str, rate: int = 1000, size: int = 200
    ) -> None:
        """`rate` in packets a second, `size` in bytes of payload."""
        self._receiving = udp_socket(receiver, "::" if ":" in to else "0.0.0.0")
        self._receiving.settimeout(0.1)
        self._sending = sender.call(socket.socket, family(to), socket.SOCK_DGRAM)
        self._to = (to, self._receiving.getsockname()[1])
        self._rate = rate
        self._padding = bytes(size - _NUMBER.size)
        self._stop = threading.Event()
        self._done = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._send, self._receive)]
        self.sent = 0
        self.refused = 0
        """Not taken by the sender's own kernel."""
        self.received: list[int] = []

    def _send(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(_TICK):
            due = int((time.monotonic() - start) * self._rate)
            while self.sent + self.refused < due:
                self._send_one(self.sent)

    def _send_one(self, number: int) -> None:
        try:
            self._sending.sendto(_NUMBER.pack(number) + self._padding, self._to)
            self.sent += 1
        except OSError:
            self.refused += 1

    def _receive(self) -> None:
        while not self._done.is_set():
            with contextlib.suppress(TimeoutError):
                self.received.append(_NUMBER.unpack_from(self._receiving.recv(65535))[0])

    def __enter__(self) -> Numbered:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for what is on its way."""
        self._stop.set()
        self._threads[0].join()
        end = time.monotonic() + 2
        while len(self.received) < self.sent and time.monotonic() < end:
            time.sleep(0.02)
        self._done.set()
        self._threads[1].join()
        self._sending.close()
        self._receiving.close()

    def wait_for_more(self, count: int, seconds: float = 30) -> None:
        """Until `count` packets more than now have been received."""
        wanted = len(self.received) + count
        end = time.monotonic() + seconds
        while len(self.received) < wanted:
            assert time.monotonic() < end, f"{wanted - len(self.received)} of {count} did not come"
            time.sleep(0.01)

    @property
    def lost(self) -> list[int]:
        return sorted(set(range(self.sent)) - set(self.received))

    @property
    def duplicates(self) -> list[int]:
        return [number for number, count in Counter(self.received).items() if count > 1]
