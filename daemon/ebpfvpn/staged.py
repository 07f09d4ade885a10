"""Staged packets: what waits for a peer's handshake (the term is that of Linux' driver)."""

from __future__ import annotations

from collections import deque

PER_PEER = 1024
"""Packets: when there are more, the oldest goes. Linux keeps 128 (MAX_STAGED_PACKETS), which a fast
sender fills in a few milliseconds, less than a handshake takes."""
IN_ALL = 16_384


class Staged:
    """Of all peers, in order for each."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[bytes]] = {}
        self._count = 0
        self.dropped = 0
        """Packets that had to go for others, or because the peer did not answer."""

    def add(self, peer: int, packet: bytes) -> None:
        queue = self._queues.setdefault(peer, deque())
        if len(queue) == PER_PEER:
            queue.popleft()
            self._count -= 1
            self.dropped += 1
        if self._count == IN_ALL:
            self.dropped += 1
            return
        queue.append(packet)
        self._count += 1

    def waiting(self, peer: int) -> bool:
        return peer in self._queues

    def full(self, peer: int) -> bool:
        """One more, and its oldest goes."""
        return len(self._queues.get(peer, ())) >= PER_PEER

    def take(self, peer: int) -> list[bytes]:
        packets = list(self._queues.pop(peer, ()))
        self._count -= len(packets)
        return packets

    def drop(self, peer: int) -> None:
        self.dropped += len(self.take(peer))
