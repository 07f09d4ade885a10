"""Endpoints given by name: resolved in threads, again and again until they are known."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address

from ebpfvpn.config_values import HostPort
from ebpfvpn.endpoint import Endpoint

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
"""Seconds between tries; each pause is twice the one before."""

log = logging.getLogger(__name__)


class Resolver:
    """Of one event loop; `resolved` is called in it with a peer's number and endpoint."""

    def __init__(self, resolved: Callable[[int, Endpoint], None]) -> None:
        self._resolved = resolved
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def want(self, peer: int, where: HostPort) -> None:
        """An address is told at once, a name when it is known, an address in the zone of a device
        when that is there."""
        endpoint = literal(where)
        if endpoint is None:
            self._ask(peer, where, _FIRST_PAUSE)
        else:
            self._resolved(peer, endpoint)

    def close(self) -> None:
        self._closed = True

    def _ask(self, peer: int, where: HostPort, pause: float) -> None:
        if self._closed:
            return
        # Not the loop's executor: the end of the loop would wait for a name server.
        arguments = (peer, where, pause)
        threading.Thread(target=self._look_up, args=arguments, daemon=True).start()

    def _look_up(self, peer: int, where: HostPort, pause: float) -> None:
        try:
            answer: Endpoint | str = _resolve(where)
        except (OSError, ValueError) as error:
            answer = str(error)
        if not self._closed:
            self._loop.call_soon_threadsafe(self._answered, peer, where, pause, answer)

    def _answered(self, peer: int, where: HostPort, pause: float, answer: Endpoint | str) -> None:
        if self._closed:
            return
        if isinstance(answer, Endpoint):
            self._resolved(peer, answer)
            return
        if pause == _FIRST_PAUSE:
            log.warning("endpoint %s: %s; trying again", where.host, answer)
        self._loop.call_later(pause, self._ask, peer, where, min(2 * pause, _LONGEST_PAUSE))


def literal(where: HostPort) -> Endpoint | None:
    """None: it is a name, or an address in the zone of a device that is not there."""
    host, _, zone = where.host.partition("%")
    try:
        ifindex = 0 if not zone else int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        return Endpoint(ip_address(host), where.port, ifindex=ifindex)
    except (ValueError, OSError):
        return None


def _resolve(where: HostPort) -> Endpoint:
    """The address that the system prefers. OSError."""
    found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_DGRAM)
    host, _, *flow_and_zone = found[0][4]
    zone = flow_and_zone[1] if flow_and_zone else 0
    return Endpoint(ip_address(str(host).partition("%")[0]), where.port, ifindex=int(zone))
