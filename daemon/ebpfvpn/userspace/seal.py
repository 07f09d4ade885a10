"""Sealing: from inner packets to messages on their way to the peer, many by one system call."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence

from ebpfvpn import wire
from ebpfvpn.datapath import Event, MessagesUsed
from ebpfvpn.userspace.gso import Packet
from ebpfvpn.userspace.peer import Peer
from ebpfvpn.userspace.session import NONCE

_DATA, _HEADER, _OVERHEAD = wire.Data.TYPE, wire.Data.LAYOUT, wire.Data.OVERHEAD
_MOST_MESSAGES = 64  # UDP_MAX_SEGMENTS, until Linux 6.9
_MOST_BYTES = 65000
_PATIENCE = 0.01
"""Seconds that a full send buffer may hold everything up. The TUN's queue fills meanwhile, which
its senders feel."""
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EACCES)
KEEPALIVE: Sequence[Packet] = ((b"", 0),)


def padded_length(length: int, mtu: int) -> int:
    """Padding to 16 bytes, but not past the MTU (whitepaper section 5.4.6)."""
    padded = (length + wire.PADDING - 1) & -wire.PADDING
    return mtu if padded > mtu >= length else padded


class Sealing:
    """Collects messages of one length for one peer; the rest sends them on their way."""

    def __init__(self, mtu: int, drops: Counter[str], events: list[Event]) -> None:
        """`mtu`: the TUN's."""
        self._mtu = mtu
        self._drops = drops
        self._events = events
        self.segments = True
        """Whether many messages may go by one system call."""
        self._stuck = False
        """The send buffer was waited for in vain: not again until something goes."""
        self.waited = False
        """It was waited for: other work should get its turn. To be reset by who reads this."""
        self._peer: Peer | None = None
        self._tos = self._size = self._count = self._most = 0
        self._parts: list[bytes] = []

    def seal(self, peer: Peer, packets: Sequence[Packet], now: float) -> None:
        """Under the peer's current session. They go at the latest with `flush`."""
        session = peer.current
        if session is None or session.seal is None:
            self._drops["no_session"] += len(packets)
            return
        if now >= session.expires:
            self._drops["expired_send"] += len(packets)
            return
        if peer.destination is None:
            self._drops["no_endpoint"] += len(packets)
            return
        # Every packet goes through this loop: hence the local names, and no calls of our own.
        encrypt, nonce, header = session.seal.encrypt, NONCE.pack, _HEADER.pack
        remote_index, limit, rekey_at = (
            session.known.remote_index,
            session.send_limit,
            session.rekey_at,
        )
        counter = session.send_counter
        total = done = 0
        data = False
        before = size = padded = -1
        for plain, length in packets:
            if counter >= limit:
                self._drops["expired_send"] += len(packets) - done
                break
            if length != before:
                before, padded = length, padded_length(length, self._mtu)
                size = padded + _OVERHEAD
                data = data or length > 0
            tos = 0 if not length else plain[1] & 3 if plain[0] < 0x60 else plain[1] >> 4 & 3
            if (
                size > self._size
                or self._count >= self._most
                or tos != self._tos
                or peer is not self._peer
            ):
                self.flush()
                self._peer, self._tos, self._size = peer, tos, size
                self._most = min(_MOST_MESSAGES, _MOST_BYTES // size)
            # First, so that no counter is used again, whatever fails from here on.
            session.send_counter = counter + 1
            self._parts.append(header(_DATA, remote_index, counter))
            self._parts.append(encrypt(nonce(counter), plain[:padded], None))
            self._count += 1
            if size < self._size:
                self.flush()  # a shorter one can only be the last
            if counter == rekey_at:
                self._events.append(MessagesUsed(peer.number, session.known.local_index))
            counter += 1
            done += 1
            total += size
        if done:
            peer.sent(done, total, now, data=data)

    def flush(self) -> None:
        count, parts = self._count, self._parts
        if not count:
            return
        self._count, self._size, self._parts = 0, 0, []
        assert self._peer is not None
        if count == 1:
            self._send(self._peer, parts, self._tos, 0)
        elif self.segments:
            size = len(parts[0]) + len(parts[1])
            if not self._send(self._peer, parts, self._tos, size, count):
                # No segmentation on this way, say, or each is longer than it: one by one.
                self._send_singly(self._peer, parts, self._tos)
        else:
            self._send_singly(self._peer, parts, self._tos)

    def _send_singly(self, peer: Peer, parts: list[bytes], tos: int) -> None:
        for i in range(0, len(parts), 2):
            self._send(peer, parts[i : i + 2], tos, 0)

    def _send(self, peer: Peer, parts: list[bytes], tos: int, segment: int, count: int = 1) -> bool:
        """Whether it is done, or counted; else it should be tried otherwise."""
        destination = peer.destination
        if destination is None:
            self._drops["no_endpoint"] += count
            return True
        try:
            try:
                destination.send(parts, tos, segment)
            except BlockingIOError:
                if self._stuck:
                    raise
                self.waited = True
                destination.wait(_PATIENCE)
                destination.send(parts, tos, segment)
            self._stuck = False
        except OSError as error:
            self._stuck = isinstance(error, BlockingIOError)
            if segment and error.errno not in (errno.EAGAIN, *_NO_ROUTE):
                return False
            if isinstance(error, BlockingIOError):
                reason = "send_buffer_full"
            else:
                reason = "no_route" if error.errno in _NO_ROUTE else "send_failed"
            self._drops[reason] += count
        return True
