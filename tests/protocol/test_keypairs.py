from __future__ import annotations

import pytest

from ebpfvpn import wire
from ebpfvpn.keypair import Session
from ebpfvpn.peer import Keypairs, expiry


def session(number: int, created: float = 0.0) -> Session:
    return Session(number, number, True, created)


def show(keypairs: Keypairs) -> tuple[int, int, int]:
    previous, current, following = (
        pair.local_index if pair else 0
        for pair in (keypairs.previous, keypairs.current, keypairs.next)
    )
    return previous, current, following


NEW = 9

# (previous, current, next) before, what happens, after, what fades, what is over; 0: none.
TRANSITIONS = [
    ((0, 0, 0), "initiated", (0, NEW, 0), [], set()),
    ((0, 2, 0), "initiated", (2, NEW, 0), [], set()),
    ((1, 2, 0), "initiated", (2, NEW, 0), [1], set()),
    ((0, 2, 3), "initiated", (3, NEW, 0), [2], set()),
    ((1, 2, 3), "initiated", (3, NEW, 0), [2, 1], set()),
    ((0, 0, 0), "responded", (0, 0, NEW), [], set()),
    ((1, 2, 0), "responded", (0, 2, NEW), [1], set()),
    ((1, 2, 3), "responded", (0, 2, NEW), [1], {3}),
    ((0, 0, 3), "confirmed", (0, 3, 0), [], set()),
    ((1, 2, 3), "confirmed", (2, 3, 0), [1], set()),
]


@pytest.mark.parametrize(("before", "event", "after", "fading", "over"), TRANSITIONS)
def test_transitions(
    before: tuple[int, int, int], event: str, after: tuple[int, int, int], fading: list[int],
    over: set[int],
) -> None:  # fmt: skip
    previous, current, following = (session(number) if number else None for number in before)
    keypairs = Keypairs(previous, current, following)
    arguments = [session(NEW)] if event in {"initiated", "responded"} else []
    told = getattr(keypairs, event)(*arguments)
    assert show(keypairs) == after
    assert [pair.local_index for pair in keypairs.fading] == fading
    assert {pair.local_index for pair in told} == over


def test_only_the_latest_fade() -> None:
    keypairs = Keypairs(session(1), session(2))
    over = [keypairs.initiated(session(number)) for number in (3, 4, 5, 6)]
    assert over == [[], [], [], [session(1)]]
    assert keypairs.fading == [session(4), session(3), session(2)]


def test_all_fade() -> None:
    """The latest first; the others go when there is a new one."""
    fading = [session(4, 20.0), session(5, 15.0), session(6, 5.0)]
    keypairs = Keypairs(session(1, 10.0), session(2, 130.0), session(3, 150.0), fading)
    keypairs.fade_all()
    assert show(keypairs) == (0, 0, 0)
    assert [pair.local_index for pair in keypairs.fading] == [3, 2, 4, 5, 1, 6]
    assert not keypairs.usable(0.0)
    assert keypairs.first_expiry() == 5.0 + wire.REJECT_AFTER_TIME
    keypairs.fade_all()
    assert len(keypairs.fading) == 6
    assert keypairs.initiated(session(NEW)) == [session(5, 15.0), session(1, 10.0), session(6, 5.0)]
    assert [pair.local_index for pair in keypairs.fading] == [3, 2, 4]


def test_keypairs_expire_one_by_one() -> None:
    fading = [session(4, 20.0)]
    keypairs = Keypairs(session(1, 10.0), session(2, 130.0), session(3, 250.0), fading)
    assert keypairs.first_expiry() == 10.0 + wire.REJECT_AFTER_TIME
    assert keypairs.expire(189.9) == []
    assert [pair.local_index for pair in keypairs.expire(190.0)] == [1]
    assert [pair.local_index for pair in keypairs.expire(200.0)] == [4]
    assert keypairs.fading == []
    assert keypairs.usable(309.9)
    assert not keypairs.usable(310.0)
    assert [pair.local_index for pair in keypairs.expire(500.0)] == [2, 3]
    assert keypairs.first_expiry() is None
    assert expiry(session(1, 5.0)) == 185.0
