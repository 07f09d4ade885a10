"""The parts of tools/soak without a tunnel: patterns, bookkeeping, verdicts, sockets."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmsg
from ebpfvpn import wire
from lab import ROOT, wait_for
from patterns import (
    DATA,
    HANDSHAKE,
    INITIATION,
    Chain,
    Copies,
    Delay,
    Jump,
    Lose,
    Pattern,
    Playback,
)
from seen import Arrivals, Seen
from soak_damage import TUNNELS, Damage, Site
from soak_lab import Outcome
from soak_run import Options, Result, increases
from watcher import Watcher, watchers

TOOLS = Path(mmsg.__file__).parent


def data(counter: int, index: int = 1) -> bytes:
    return wire.Data(index, counter, bytes(wire.TAG_LENGTH)).encode()


def counter_of(message: bytes) -> int:
    counter: int = struct.unpack_from("<Q", message, 8)[0]
    return counter


def handshake(kind: int) -> bytes:
    return bytes([kind]) + bytes(91)


def counters(pattern: Pattern, numbers: Sequence[int]) -> list[int]:
    """What comes out, in order, the held back at the end."""
    out = [m for number in numbers for m in pattern.take(data(number), 0.0)]
    return [counter_of(message) for message in [*out, *pattern.release()]]


# Patterns.


@pytest.mark.parametrize(
    ("every", "passing", "left"),
    [(2, 0, [1, 3, 5]), (2, 1, [0, 2, 4]), (1, 0, []), (3, 0, [1, 2, 4, 5])],
)
def test_every_nth_is_lost(every: int, passing: int, left: list[int]) -> None:
    pattern = Lose([DATA], every, passing)
    assert counters(pattern, range(6)) == left
    assert pattern.lost == 6 - len(left)


def test_only_the_named_types_are_lost() -> None:
    pattern = Lose([INITIATION])
    kept = [kind for kind in (*HANDSHAKE, DATA) if pattern.take(handshake(kind), 0.0)]
    assert kept == [2, 3, 4]


def test_copies_are_of_data_alone() -> None:
    assert counters(Copies(3), [7, 8]) == [7, 7, 7, 8, 8, 8]
    assert len(Copies(3).take(handshake(1), 0.0)) == 1


@given(st.integers(1, 50), st.integers(1, 80), st.integers(0, 300))
def test_a_jump_overtakes_exactly_as_many(ahead: int, every: int, count: int) -> None:
    pattern = Jump(ahead, every)
    out = counters(pattern, range(count))
    assert sorted(out) == list(range(count))
    overtaken = [sum(later < number for later in out[i:]) for i, number in enumerate(out)]
    assert [n for n in overtaken if n] == [ahead] * pattern.jumped


def test_jumps_happen() -> None:
    pattern = Jump(130, 200)
    assert counters(pattern, range(1000))
    assert pattern.jumped == 5


def test_handshakes_are_not_held_back_by_a_jump() -> None:
    pattern = Jump(10, 20)
    assert pattern.take(data(0), 0.0) == ()
    assert pattern.take(handshake(1), 0.0) == (handshake(1),)


def test_delay() -> None:
    pattern = Delay(0.5)
    assert pattern.deadline() is None
    for number in range(3):
        assert pattern.take(data(number), float(number)) == ()
    assert pattern.deadline() == 0.5
    assert list(pattern.due(0.4)) == []
    assert [counter_of(m) for m in pattern.due(1.5)] == [0, 1]
    assert [counter_of(m) for m in pattern.release()] == [2]
    assert pattern.deadline() is None


def test_playback_is_of_an_old_stretch() -> None:
    pattern = Playback(length=3, after=4)
    out = counters(pattern, range(20))
    assert out[:13] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 1, 9, 2]
    assert [out.count(number) for number in (0, 1, 2, 10, 11, 12)] == [2] * 6
    assert pattern.played == 6


def test_chain_gives_each_what_the_one_before_sends() -> None:
    chain = Chain([Delay(1.0), Lose([DATA], 2), Copies(2)])
    for number in range(4):
        assert chain.take(data(number), 0.0) == []
    assert chain.deadline() == 1.0
    assert [counter_of(m) for m in chain.due(1.0)] == [1, 1, 3, 3]
    chain.take(data(4), 2.0)
    chain.take(data(5), 2.0)
    assert [counter_of(m) for m in chain.release()] == [5, 5]


# What a receiver counts.


@given(st.lists(st.integers(0, 200_000)))
def test_seen_is_a_set(numbers: list[int]) -> None:
    seen, model = Seen(), set[int]()
    for number in numbers:
        assert seen.add(number) == (number not in model)
        model.add(number)


def test_counters_far_apart_take_little() -> None:
    seen = Seen()
    assert seen.add(2**64 - 2)
    assert seen.add(0)
    assert not seen.add(2**64 - 2)


def test_arrivals() -> None:
    arrivals = Arrivals()
    arrivals.take([0, 1, 4, 2], [10, 20, 30, 1_000])
    arrivals.take([4, 9], [1_010, 5_000])
    assert (arrivals.unique, arrivals.twice, arrivals.late, arrivals.most_late) == (5, 1, 1, 2)
    assert arrivals.longest_gap == 3_990
    assert arrivals.lost(12) == [(3, 3), (5, 8), (10, 11)]
    assert arrivals.lost(12, most=1) == [(3, 3)]


def test_what_is_missing_so_far_and_the_gap_since_it_was_asked_for() -> None:
    arrivals = Arrivals()
    arrivals.take([0, 1, 4], [10, 20, 120])
    assert (arrivals.missing, arrivals.recent_gap) == (2, 100)
    arrivals.recent_gap = 0
    arrivals.take([2, 4, 5], [130, 140, 190])
    assert (arrivals.missing, arrivals.recent_gap, arrivals.longest_gap) == (1, 50, 100)


def test_lost_over_whole_pages() -> None:
    arrivals = Arrivals()
    numbers = [n for n in range(300_000) if not 100_000 <= n < 250_000]
    arrivals.take(numbers, [0] * len(numbers))
    assert arrivals.lost(300_000) == [(100_000, 249_999)]
    full = Arrivals()
    full.take(list(range(70_000)), [0])
    assert full.lost(70_000) == []


# What the relay sees.


def shake_hands(initiator: Watcher, responder: Watcher, ours: int, theirs: int) -> None:
    """Messages as they pass; `ours` is the initiator's index."""
    initiator.see(struct.pack("<II", 1, ours) + bytes(140))
    responder.see(struct.pack("<III", 2, theirs, ours) + bytes(80))


def test_sessions_are_counted_by_initiator_when_used() -> None:
    both = watchers()
    a, b = both["a"], both["b"]
    shake_hands(a, b, 100, 200)
    a.see(data(0, index=200))
    b.see(data(0, index=100))
    shake_hands(b, a, 201, 101)
    assert dict(a.sessions) == {"a": 1, "b": 0}
    a.see(data(0, index=201))
    b.see(data(0, index=101))
    a.see(data(1, index=200))  # was under way
    assert dict(a.sessions) == dict(b.sessions) == {"a": 1, "b": 1}
    assert (a.handshakes[1], a.handshakes[2], a.data) == (1, 1, 3)
    assert a.reused == 0


def test_a_counter_used_twice_is_seen() -> None:
    watcher = Watcher("a")
    for counter in (2**32 - 1, 2**32, 2**32 - 1):
        watcher.see(data(counter, index=5))
    watcher.see(data(2**32, index=6))
    assert watcher.reused == 1
    assert watcher.highest_counter == 2**32


def test_what_the_relay_remembers_is_bounded() -> None:
    both = watchers()
    for number in range(1, 1000):
        shake_hands(both["a"], both["b"], number, number)
        both["a"].see(data(0, index=number))
    assert len(both["a"]._counters) < 100
    assert len(both["a"]._announced) < 100
    assert both["a"].sessions["a"] == 999


# Verdicts.


def result(lost: int = 0, twice: int = 0, reused: int = 0) -> Result:
    found = Result("case", Options("ebpfvpn", 1000, 2, 1))
    found.flows["a"] = Outcome(100, lost, twice, 0, 0, 0.0, 1.0, [(5, 6)], {})
    found.relay["a"] = {"reused_counters": reused}
    return found


def test_a_loss_breaks_the_promise_of_a_valid_run_alone() -> None:
    good, bad, noisy = result(), result(lost=2), result(lost=2)
    noisy.invalid.append("relay, overflow: 2")
    for one in (good, bad, noisy):
        one.expect_nothing_lost()
        one.expect_nothing_twice()
    assert (good.verdict, bad.verdict, noisy.verdict) == ("kept", "broken", "invalid")
    assert bad.broken == ["2 packets from a lost: 5 to 6"]


@pytest.mark.parametrize("counts", [{"twice": 1}, {"reused": 1}])
def test_noise_excuses_nothing_twice(counts: dict[str, int]) -> None:
    found = result(**counts)
    found.invalid.append("relay, overflow: 2")
    found.expect_nothing_twice()
    assert found.verdict == "broken"


def test_only_counters_that_changed_are_told() -> None:
    before = {"a": {"replayed": 3, "no_route": 1}, "b": {}}
    now = {"a": {"replayed": 5, "no_route": 1, "ecn": 2}, "b": {"ecn": 0}}
    assert increases(before, now) == {"a": {"replayed": 2, "ecn": 2}, "b": {}}


# What is damaged.


def test_damages_say_what_they_cost() -> None:
    for tunnel in TUNNELS:
        names = [damage.name for damage in tunnel.damages]
        assert len(names) == len(set(names))
        for damage in tunnel.damages:
            assert set(damage.lost) <= {"a", "b"}
            assert all(0 < milliseconds < 1000 for milliseconds in damage.lost.values())


class Commands(Site):
    def __init__(self) -> None:
        self.interface = "soak1a"
        self.done: list[str] = []

    def run(self, command: str) -> str:
        self.done.append(command)
        return ""

    def end(self, which: str) -> str:
        return f"veth-{which}"


def test_a_damage_is_a_command_or_a_function() -> None:
    site = Commands()
    Damage("x", "ip link del {inner}").inflict(site)
    Damage("x", "tc qdisc del dev {tun} clsact").inflict(site)
    Damage("x", Site.vacate).inflict(site)
    assert site.done == [
        "ip link del veth-inner",
        "tc qdisc del dev soak1a clsact",
        "ip link set dev net0 xdpdrv off",
        "tc filter del dev net0 ingress prio 9",
    ]


# Sockets.


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        mmsg.udp_socket("127.0.0.1") as receiving,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending,
    ):
        sending.connect(receiving.getsockname())
        yield sending, receiving


def test_batches_keep_lengths_and_order(sockets: tuple[socket.socket, socket.socket]) -> None:
    messages = [bytes([i % 256]) * (i % 1500 + 1) for i in range(3 * mmsg.BATCH + 1)]
    sender = mmsg.Sender(sockets[0])
    sender.send(messages)
    receiver = mmsg.Receiver(sockets[1])
    found: list[bytes] = []
    while batch := receiver.messages():
        found += batch
    assert found == messages
    assert (sender.refused, mmsg.dropped(sockets[1])) == ({}, 0)


def test_times_of_arrival_are_the_kernels(sockets: tuple[socket.socket, socket.socket]) -> None:
    receiver = mmsg.Receiver(sockets[1], timestamps=True)

    def stamps_arrivals() -> bool:
        """The kernel begins to some time after it is asked; until then it stamps what is read."""
        mmsg.Sender(sockets[0]).send([b"x"])
        time.sleep(0.02)
        before = time.time_ns()
        assert receiver.read() == 1
        return receiver.times(1)[0] < before - 10_000_000

    wait_for(stamps_arrivals, 10, "the kernel to stamp arrivals")
    for _ in range(2):
        before = time.time_ns()
        mmsg.Sender(sockets[0]).send([b"x"] * 5)
        after = time.time_ns()
        time.sleep(0.05)
        assert receiver.read() == 5
        times = receiver.times(5)
        assert times == sorted(times)
        assert before - 10_000_000 <= times[0] <= times[-1] <= after + 10_000_000


def test_overflow_and_refusals_are_counted(sockets: tuple[socket.socket, socket.socket]) -> None:
    sockets[1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sender = mmsg.Sender(sockets[0])
    sender.send([bytes(1000)] * 100)
    arrived = len(mmsg.Receiver(sockets[1]).messages())
    assert 0 < arrived == 100 - mmsg.dropped(sockets[1])
    sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sender.set_length(100_000)
    sender.send_slots(2)
    assert sender.refused == {"EMSGSIZE": 2}


def test_relay_between_sockets() -> None:
    """On loopback: a is 127.0.0.11, b 127.0.0.14."""
    with (
        mmsg.udp_socket("127.0.0.11") as a,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as b,
    ):
        port = a.getsockname()[1]
        b.bind(("127.0.0.14", port))
        arguments = ["127.0.0.12", "127.0.0.11", "127.0.0.13", "127.0.0.14", str(port)]
        relay = subprocess.Popen(
            [sys.executable, str(TOOLS / "relay.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert relay.stdin is not None
        assert relay.stdout is not None

        def ask(command: object) -> dict[str, dict[str, object]]:
            assert relay.stdin is not None
            assert relay.stdout is not None
            relay.stdin.write(json.dumps(command) + "\n")
            relay.stdin.flush()
            found: dict[str, dict[str, object]] = json.loads(relay.stdout.readline())
            return found

        try:
            relay.stdout.readline()
            for sock in (a, b):
                sock.settimeout(5)
            ask({"set": {"a": [["Delay", {"seconds": 0.05}]], "b": [["Copies", {"number": 2}]]}})
            start = time.monotonic()
            a.sendto(data(1), ("127.0.0.12", port))
            assert b.recv(2048) == data(1)
            assert 0.05 <= time.monotonic() - start < 4
            b.sendto(data(2), ("127.0.0.13", port))
            assert [a.recv(2048) for _ in range(2)] == [data(2)] * 2
            a.sendto(b"short", ("127.0.0.12", port))
            a.sendto(data(3), ("127.0.0.12", port))
            ask({"set": {"a": []}})  # what was held back is sent
            assert b.recv(2048) == data(3)
            report = ask({"report": True})
            assert (report["a"]["data"], report["a"]["sent"]) == (2, 2)
            assert report["a"]["failures"] == {"overflow": 0, "strange": 1}
            assert (report["b"]["data"], report["b"]["sent"]) == (1, 2)
        finally:
            relay.communicate(timeout=5)
    assert relay.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("rest", "no case rest: choose from rekey, together"),
        ("together --peer wireguard-go", "the case together needs ebpfvpn at both ends"),
        ("counters --datapath userspace", "the case counters is of the kernel path: "),
        ("damage --datapath userspace", "the case damage is of the kernel path: "),
    ],
)
def test_what_cannot_be_run(arguments: str, reason: str) -> None:
    command = [str(ROOT / "tools/soak"), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert reason in done.stderr
