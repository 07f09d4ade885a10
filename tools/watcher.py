"""What a relay can tell of the messages that pass in both directions, without any key."""

from __future__ import annotations

import struct
from collections import Counter

from ebpfvpn import wire
from seen import Seen

_HEADER = struct.Struct("<IIQ")
"""Of a data message; the first two are the type and the first index of any message."""
_REMEMBERED = 64
"""Indices announced and not used yet; sessions with their counters."""

SIDES = ("a", "b")


class Watcher:
    """One direction: what node `side` sends. `see` each message before a pattern changes it."""

    def __init__(self, side: str) -> None:
        self.side = side
        self.peer: Watcher = self
        """The other direction's."""
        self.handshakes: Counter[int] = Counter()
        """Messages by type, 1 to 3."""
        self.sessions: Counter[str] = Counter(dict.fromkeys(SIDES, 0))
        """Sessions that carried data, by who initiated them."""
        self.reused = 0
        """Counters that a session used twice."""
        self.highest_counter = 0
        """Of any data message."""
        self.data = 0
        self._announced: dict[int, str] = {}
        """By index of this side: who initiated the session."""
        self._counters: dict[int, Seen] = {}
        """By index of the other side."""
        self._index = 0
        self._current = Seen()

    def see(self, message: bytes) -> None:
        kind, index = struct.unpack_from("<II", message)
        if kind == wire.Data.TYPE:
            self._see_data(index, _HEADER.unpack_from(message)[2])
            return
        self.handshakes[kind] += 1
        if kind == wire.Initiation.TYPE:
            self._announce(index, self.side)
        elif kind == wire.Response.TYPE:
            self._announce(index, self.peer.side)

    def _announce(self, index: int, initiator: str) -> None:
        self._announced[index] = initiator
        if len(self._announced) > _REMEMBERED:
            del self._announced[next(iter(self._announced))]

    def _see_data(self, index: int, counter: int) -> None:
        self.data += 1
        if index != self._index:
            self._index, self._current = index, self._of_session(index)
        if counter > self.highest_counter:
            self.highest_counter = counter
        if not self._current.add(counter):
            self.reused += 1

    def _of_session(self, index: int) -> Seen:
        if index not in self._counters:
            self._counters[index] = Seen()
            # The index is one that the other side gave itself, in its handshake message.
            self.sessions[self.peer._announced.pop(index, "?")] += 1
            if len(self._counters) > _REMEMBERED:
                del self._counters[next(iter(self._counters))]
        return self._counters[index]


def watchers() -> dict[str, Watcher]:
    """Of both directions, by the side that sends."""
    both = {side: Watcher(side) for side in SIDES}
    both["a"].peer, both["b"].peer = both["b"], both["a"]
    return both
