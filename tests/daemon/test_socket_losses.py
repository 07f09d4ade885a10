"""What is handed over of the sockets' counts, with sockets that lose on and on."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ebpfvpn.losses import Losses, SocketLosses
from ebpfvpn.netlink import Queue

QUEUE = Queue(0, 0, 0)


class Sockets:
    """And the datapath. One more packet is lost each time somebody looks."""

    def __init__(self, *dropped: int) -> None:
        self.now = list(dropped)

    def dropped(self) -> list[int]:
        self.now[0] += 1
        return list(self.now)

    def drops(self) -> dict[str, int]:
        return {"socket_refused": 0}


def losses(sockets: Sockets, before: SocketLosses | None = None) -> Losses:
    return Losses(cast(Any, sockets), cast(Any, sockets), before)


def lost(one: Losses) -> int:
    return one.drops(QUEUE)["lost_in_socket"]


def test_what_is_lost_meanwhile_is_counted_once() -> None:
    sockets = Sockets(10, 20)
    first = losses(sockets)
    before = sum(sockets.now)
    second = losses(sockets, first.of_sockets())
    assert lost(second) == sum(sockets.now) - before


@pytest.mark.parametrize("before", [[], [7]])
def test_of_other_sockets_the_total_is_handed_over_alone(before: list[int]) -> None:
    assert lost(losses(Sockets(0, 0), SocketLosses(before, 40))) == 41
