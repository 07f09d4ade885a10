"""Which handshake messages are worth the curve: those with a right mac1, and under load those
whose sender has shown by a cookie that it is where it says (whitepaper section 5.3)."""

from __future__ import annotations

import os
from collections.abc import Callable

from ebpfvpn.cookie import CookieChecker
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.ratelimiter import LoadMeter, SourceLimiter
from ebpfvpn.wire import CookieReply, ProtocolError


class Admission:
    """Of one interface."""

    def __init__(self, public_key: bytes, random: Callable[[int], bytes] = os.urandom) -> None:
        self._checker = CookieChecker(public_key, random)
        self._load = LoadMeter()
        self._sources = SourceLimiter()

    def under_load(self, now: float) -> bool:
        """Whether handshake messages must prove their source address first."""
        return self._load.under_load(now)

    def admit(
        self, data: bytes, sender_index: int, source: Endpoint, now: float
    ) -> CookieReply | None:
        """An initiation or response: None, or what to send instead of looking at it. Raises
        ProtocolError where nothing is to be sent either."""
        if not self._checker.mac1_is_valid(data):
            raise ProtocolError("mac1 is wrong")
        self._load.count(now)
        if not self.under_load(now):
            return None
        if not self._checker.mac2_is_valid(data, source, now):
            return self._checker.reply(data, sender_index, source, now)
        if not self._sources.allow(source.address, now):
            raise ProtocolError("too many from one address under load")
        return None
