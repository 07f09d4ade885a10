"""Timestamps of our initiations: each greater than all that this machine has sent before, whatever
its clock does, and across restarts. A peer takes an initiation that is not for a replay.

The greatest is in /var/lib/ebpfvpn/timestamp, which all daemons of the machine share.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from ebpfvpn import tai64n

PATH = Path("/var/lib/ebpfvpn/timestamp")

_LENGTH = 24
_UNWRITTEN = 60
"""Seconds: longer than the kernel waits before it writes to the disk, which a crash can lose."""

log = logging.getLogger(__name__)


class Timestamps:
    """Works without the file too, should that be impossible, but then remembers nothing."""

    def __init__(self, path: Path = PATH, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock` gives nanoseconds since 1970."""
        self._clock = clock
        self._last = tai64n.NEVER
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            log.warning("%s: %s; timestamps will not outlive a restart", path, error.strerror)
            self._fd = -1
        else:
            self._check(path)

    def next(self) -> bytes:
        """As tai64n.encode."""
        if self._fd < 0:
            return self._following(self._last)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                timestamp = self._following(max(self._read(), self._last))
                os.pwrite(self._fd, timestamp.hex().encode(), 0)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except (OSError, ValueError):  # the disk is full, say
            timestamp = self._following(self._last)
        return timestamp

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check(self, path: Path) -> None:
        try:
            found = self._read()
        except (OSError, ValueError):
            log.warning("%s does not hold a timestamp; it is written anew", path)
            os.ftruncate(self._fd, 0)
            return
        if found > tai64n.encode(self._clock()):
            log.warning("the clock is behind the last handshake that was sent: was it set back?")
            self._last = tai64n.later(found, _UNWRITTEN)

    def _read(self) -> bytes:
        text = os.pread(self._fd, _LENGTH, 0)
        timestamp = bytes.fromhex(text.decode("ascii"))
        if text and (len(timestamp) != len(tai64n.NEVER) or timestamp >= tai64n.END):
            raise ValueError("no timestamp")
        return timestamp or tai64n.NEVER

    def _following(self, last: bytes) -> bytes:
        self._last = max(tai64n.encode(self._clock()), tai64n.successor(last))
        return self._last
