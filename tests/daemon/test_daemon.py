"""The daemon's event loop side, with what it drives replaced: what a failure costs."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from ebpfvpn import config, keys
from ebpfvpn.actions import Action, Install, Send
from ebpfvpn.daemon import Daemon
from ebpfvpn.datapath import Confirmed, DatapathError, Event, SessionState, TooLong, Traffic
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.keypair import Keypair, Session

SEND = Send(None, b"message", Endpoint(ip_address("192.0.2.1"), 51820))
INSTALL = Install(0, Keypair(Session(1, 2, True, 0.0), bytes(32), bytes(32)), confirmed=True)


class Fakes:
    """Datapath, socket, protocol and loop in one."""

    def __init__(self, error: Exception, actions: list[Action]) -> None:
        self.datapath = self.udp = self
        self.error = error
        self.waiting = [actions]
        self.sent: list[bytes] = []
        self.sends = True
        self.told: list[Event] = []
        self.later: list[Callable[[], None]] = []

    def install(self, *_: object, **__: object) -> None:
        raise self.error

    def sessions(self) -> list[Any]:
        raise self.error

    def check(self) -> list[str]:
        return []

    def events(self) -> list[Event]:
        return self.told

    def describe(self) -> dict[str, object]:
        return {"devices": []}

    def send(self, data: bytes, *_: object) -> bool:
        self.sent.append(data)
        return self.sends

    def actions(self) -> list[Action]:
        return self.waiting.pop() if self.waiting else []

    def next_deadline(self) -> None:
        return None

    def call_later(self, _: float, function: Callable[[], None]) -> None:
        self.later.append(function)


def daemon(fakes: Fakes) -> Daemon:
    interface = config.InterfaceConfig(keys.generate_private_key())
    made = Daemon(config.Config(Path("wg0.conf"), "wg0", interface, ()), cast(Any, fakes))
    made.device = cast(Any, fakes)
    made._loop = cast(Any, fakes)
    return made


@pytest.mark.parametrize("error", [DatapathError("full"), OSError(errno.ENOBUFS, "full")])
def test_an_action_that_fails_leaves_the_others(error: Exception) -> None:
    fakes = Fakes(error, [INSTALL, SEND])
    made = daemon(fakes)
    made._act()
    assert fakes.sent == [b"message"]
    assert made.counters == {"failed_actions": 1, "handshake_sent": 1}


def test_the_timers_outlive_a_failure() -> None:
    fakes = Fakes(DatapathError("no"), [])
    made = daemon(fakes)
    with pytest.raises(DatapathError):
        made._poll()
    assert fakes.later == [made._poll]


class Confirming(Fakes):
    """The first packet of a session comes after events were read, and before `sessions` is."""

    def __init__(self) -> None:
        super().__init__(DatapathError("no"), [])
        self.confirmations: list[Event] = []
        self.unread: list[Event] = []

    def sessions(self) -> list[SessionState]:
        self.unread = [Confirmed(0, 1)]
        return [SessionState(0, Session(1, 2, False, 0.0), 0, 1)]

    def events(self) -> list[Event]:
        found, self.unread = self.unread, []
        return found

    def traffic(self) -> dict[int, Traffic]:
        return {}

    def describe(self) -> dict[str, object]:
        return {"devices": []}

    def confirmed(self, number: int, local_index: int, _: float) -> None:
        assert not self.unread, "acted on before the datapath told of it"
        self.confirmations.append(Confirmed(number, local_index))


def test_a_confirmation_is_heard_of_by_its_event_first() -> None:
    """By it Paths learns that the peer's packets are the kernel path's now."""
    fakes = Confirming()
    daemon(fakes)._poll()
    assert set(fakes.confirmations) == {Confirmed(0, 1)}


@pytest.mark.parametrize(("sends", "counted"), [
    (True, "sent_fragmented"), (False, "fragmented_send_failed"),
])  # fmt: skip
def test_a_message_that_is_too_long_counts_as_what_became_of_it(sends: bool, counted: str) -> None:
    fakes = Fakes(DatapathError("no"), [])
    fakes.sends = sends
    fakes.told = [TooLong(b"message", SEND.endpoint, 0)]
    made = daemon(fakes)
    made._take_events()
    assert fakes.sent == [b"message"]
    assert made.counters == {counted: 1}
