"""The cases of tools/soak. Each takes a lab of its own, and says which promise it looks at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from ebpfvpn.wire import REJECT_AFTER_MESSAGES
from ends import Ours
from patterns import HANDSHAKE, INITIATION, Copies, Delay, Jump, Lose, Playback
from soak_damage import TUNNELS, damage
from soak_lab import RelayLab
from soak_run import Options, Result, Run
from watcher import SIDES

REKEY_SECONDS = 5
"""The shortest that may be set."""
WAY = 0.01
"""Seconds, each way: so that packets are under way when keys change."""
CROSSING = 0.2
"""Seconds, each way: more than the ends differ in when they begin."""
JUMPS = (130, 1000, 8000)
"""Packets that are overtaken; the last fits wireguard-go's window (8,128) too."""
SMALL_WINDOW = 128
LEAST_JUMPS = 5
COPIES = 3
RESTART_EVERY = 4.0
LONGEST_RESTART = 2.0
"""Seconds in which nobody reads the TUN device and the sockets, at most."""
DEAD = 1.0
"""Seconds without any daemon after kill -9."""


def rekey(here: RelayLab, options: Options) -> Result:
    """New keys: 0 lost, 0 delivered twice. The first half of them is initiated by a, the second by
    b, both by age. The change: all initiations of a are lost until b, whose session has carried
    more than it should, makes one; the age of a session is its initiator's business alone."""
    keys = {
        "RekeyAfterTime": REKEY_SECONDS,
        "RekeyAfterMessages": max(1000, int(options.rate * REKEY_SECONDS * 1.6)),
    }
    run = Run(here, "rekey", options, keys, keys)
    run.tunnel.up()
    run.both(Delay(WAY))
    run.start()
    half = options.rekeys // 2 if options.peer == "ebpfvpn" else 0
    # The first session of a is no rekey, the first of b is one.
    run.wait_for_sessions("a", 1 + options.rekeys - half)
    if half:
        run.relay.set([Lose([INITIATION]), Delay(WAY)])
        run.wait_for_sessions("b", 1)
        run.relay.set([Delay(WAY)])
        run.wait_for_sessions("b", half)
    # The last session is used in both directions.
    time.sleep(1)
    result = run.finish()
    result.notes.append(f"{sum(result.sessions.values()) - 1} rekeys")
    result.expect_nothing_lost()
    result.expect_nothing_twice()
    return result


def together(here: RelayLab, options: Options) -> Result:
    """New keys, begun by both ends at once, again and again: 0 lost, 0 delivered twice. Both send
    as much, and rekey after as many messages; the way is so long that handshakes cross."""
    keys = {"RekeyAfterMessages": max(1000, int(options.rate * REKEY_SECONDS * 0.9))}
    run = Run(here, "together", options, keys, keys)
    run.tunnel.up()
    run.both(Delay(CROSSING))
    run.start()
    for side in SIDES:
        run.wait_for_sessions(side, options.rekeys // 2)
    # The last sessions are used in both directions.
    time.sleep(1)
    result = run.finish()
    result.notes.append(f"{sum(result.sessions.values()) - 1} rekeys")
    result.expect_nothing_lost()
    result.expect_nothing_twice()
    return result


def jump(here: RelayLab, options: Options, ahead: int, window: int | None = None) -> Result:
    """One packet is let ahead of the `ahead` before it, again and again. Nothing is lost with the
    default window; a window of SMALL_WINDOW, for comparison, loses nearly all of those."""
    keys = {} if window is None else {"ReplayWindow": window}
    name = f"jump {ahead:,}" + (f", window {window}" if window else "")
    run = Run(here, name, options, keys, keys)
    run.tunnel.up()
    run.both(Jump(ahead, every=ahead + 500))
    run.start()
    run.wait(partial(_each, run, "jumped", LEAST_JUMPS), 60, f"{LEAST_JUMPS} packets to jump ahead")
    result = run.finish()
    # wireguard-go's window is its own.
    sides = SIDES if window is None or options.peer == "ebpfvpn" else ("b",)
    jumps = sum(result.relay[side]["jumped"] for side in sides)
    lost = sum(result.flows[side].lost for side in sides)
    result.notes.append(
        f"{jumps} packets jumped {ahead:,} ahead; {lost / jumps:,.0f} lost for each"
    )
    result.expect_nothing_twice()
    if window is None:
        result.expect_nothing_lost()
        for side, flow in result.flows.items():
            result.expect(flow.most_late >= ahead, f"no packet from {side} was {ahead} late")
    else:
        result.expect(lost > 0, f"a window of {window} lost nothing: nothing jumped far enough")
    return result


def thrice(here: RelayLab, options: Options) -> Result:
    """Each data message arrives three times, and recordings are played back, from within the window
    and from far behind it: 0 lost, 0 delivered twice."""
    run = Run(here, "thrice", options)
    run.tunnel.up()
    # 10,000 old and 1,000 old: behind the window and within it.
    old = Playback(1000, after=9000)
    run.both(old, Playback(500, after=500), Copies(COPIES))
    # As many messages as in the other cases reach the ends.
    run.start(max(1, options.rate // COPIES))
    time.sleep(options.seconds)
    once = 2 * old.length + old.after
    run.wait(partial(_each, run, "data", once), 60, "recordings to be played back")
    result = run.finish()
    played_back = sum(side["played"] for side in result.relay.values())
    result.notes.append(f"{COPIES} copies of each, {played_back:,} played back")
    result.expect_nothing_lost()
    result.expect_nothing_twice()
    for side, drops in result.drops.items():
        for reason in ("replayed", "too_old"):
            result.expect(drops.get(reason, 0) > 0, f"{side} counted nothing as {reason}")
    return result


def _each(run: Run, count: str, least: int) -> bool:
    """Whether the relay counted as many in both directions."""
    return all(side[count] >= least for side in run.relay.report().values())


def half_handshakes(here: RelayLab, options: Options) -> Result:
    """Every second handshake message is lost, the first one to begin with: the tunnel comes up, and
    stays up over rekeys."""
    run = Run(here, "half-handshakes", options, {"RekeyAfterTime": REKEY_SECONDS})
    run.relay.set([Lose(HANDSHAKE, every=2)], [Lose(HANDSHAKE, every=2, passing=1)])
    run.tunnel.up(timeout=60)
    run.start()
    # A handshake takes up to five attempts, 5 s apart.
    run.wait_for_sessions("a", 1 + max(1, options.rekeys // 4), patience=60)
    time.sleep(1)
    result = run.finish()
    lost = sum(side["lost"] for side in result.relay.values())
    result.notes.append(f"{lost} handshake messages lost")
    result.expect(lost >= 3, "hardly any handshake message was lost")
    result.expect_nothing_lost()
    result.expect_nothing_twice()
    return result


def restart(here: RelayLab, options: Options) -> Result:
    """`ebpfvpn restart`, and kill -9 with `ebpfvpn up` a second later, by turns and at every end of
    ours: nothing lost, and rekeys go on. In userspace only the restarts, where packets wait on the
    TUN device and in the sockets meanwhile."""
    in_userspace = options.datapath == "userspace"
    keys = {"RekeyAfterTime": 2 * REKEY_SECONDS}
    if in_userspace:
        waiting = int(options.rate * LONGEST_RESTART)
        keys |= {"TxQueueLen": max(1000, waiting), "RecvBuffer": max(4 << 20, waiting << 10)}
    run = Run(here, "restart", options, keys, keys)
    run.tunnel.up()
    run.start()
    ends = list(run.tunnel.ours.values())
    begin = time.monotonic()
    restarts = kills = 0
    turns = len(ends) if in_userspace else 2 * len(ends)
    count = max(turns, int(options.seconds / RESTART_EVERY))
    for end, crash in islice(_turns(ends, crashes=not in_userspace), count):
        pause = RESTART_EVERY * (restarts + kills + 1) - (time.monotonic() - begin)
        time.sleep(max(0.0, pause))
        before = end.status()["started"]
        if crash:
            end.kill()
            time.sleep(DEAD)
            end.up()
            kills += 1
        else:
            end.command("restart", end.interface)
            restarts += 1
        run.result.expect(end.status()["started"] > before, "the daemon is the old one")
    run.wait_for_sessions("a", run.sessions()["a"] + 1)
    time.sleep(1)
    result = run.finish()
    result.notes.append(f"{restarts} restarts, {kills} kills")
    if in_userspace:
        result.notes.append(
            "no kill: sessions in userspace do not outlive the daemon; "
            f"TxQueueLen {keys['TxQueueLen']:,}, RecvBuffer {keys['RecvBuffer']:,}"
        )
    result.expect_nothing_lost()
    result.expect_nothing_twice()
    return result


def _turns(ends: list[Ours], crashes: bool) -> Iterator[tuple[Ours, bool]]:
    while True:
        for crash in (False, True) if crashes else (False,):
            for end in ends:
                yield end, crash


def crossing(here: RelayLab, options: Options) -> Result:
    """The counter crosses 2^32 in the middle of the stream, and a little later asks for new keys:
    they come in time."""
    run = Run(here, "counters past 2^32", options)
    run.tunnel.up()
    boundary, margin = 2**32, 2 * options.rate
    for side, end in run.tunnel.ours.items():
        with end.current_session() as session:
            session.send_counter = boundary - margin
            if side == "a":
                session.rekey_at = boundary + margin
    run.start()
    run.wait_for_sessions("a", 2)
    time.sleep(1)
    result = run.finish()
    result.notes.append(f"{sum(result.sessions.values()) - 1} rekey after crossing")
    for side in run.tunnel.ours:
        highest = result.relay[side]["highest_counter"]
        result.expect(highest > boundary, f"{side} did not get past 2^32: {highest}")
    result.expect_nothing_lost()
    result.expect_nothing_twice()
    return result


def limit(here: RelayLab, options: Options) -> Result:
    """REJECT_AFTER_MESSAGES is reached, and no handshake gets through: a clean stop, no counter
    used twice, every packet after it counted. When handshakes get through, it goes on."""
    run = Run(here, "counters to the limit", options)
    run.tunnel.up()
    run.both(Lose(HANDSHAKE))
    left = 2 * options.rate
    ours = run.tunnel.ours
    for end in ours.values():
        with end.current_session() as session:
            session.send_counter = REJECT_AFTER_MESSAGES - left
            # wireguard-go counts from zero.
            if options.peer == "ebpfvpn":
                session.receive_highest = REJECT_AFTER_MESSAGES - left
    run.start()
    run.wait(
        lambda: all(end.drops()["expired_send"] > options.rate for end in ours.values()),
        60,
        "packets to be dropped at the limit",
    )
    stopped = run.relay.report()
    received = run.received()
    run.both()
    run.wait(
        lambda: all(run.received()[side] > received[side] + options.rate for side in ours),
        30,
        "new keys",
    )
    result = run.finish()
    for side in ours:
        highest, flow = stopped[side]["highest_counter"], result.flows[side]
        result.expect(highest < REJECT_AFTER_MESSAGES, f"{side} went past the limit: {highest}")
        counted = result.drops[side].get("expired_send", 0)
        result.notes.append(f"{side} stopped at its limit: {counted:,} dropped and counted")
        if not result.invalid:
            # Up to the last one, and what was sealed was opened.
            result.expect(highest == REJECT_AFTER_MESSAGES - 1, f"{side} stopped after {highest}")
            result.expect(received[side] == left, f"{received[side]} of {left} arrived from {side}")
            result.expect(flow.lost == counted, f"{flow.lost} lost from {side}, {counted} counted")
    result.expect_nothing_twice()
    return result


Case = Callable[[RelayLab, Options], Result]

CASES: dict[str, list[Case]] = {
    "rekey": [rekey],
    "together": [together],
    "jump": [
        partial(jump, ahead=ahead, window=window)
        for ahead in JUMPS
        for window in (None, SMALL_WINDOW)
    ],
    "thrice": [thrice],
    "half-handshakes": [half_handshakes],
    "restart": [restart],
    "counters": [crossing, limit],
    "damage": [partial(damage, tunnel=tunnel) for tunnel in TUNNELS],
}

KERNEL_PATH_ONLY = {
    "counters": "the sessions' counters are set in its maps",
    "damage": "it is what is damaged",
}
"""Cases, and why."""

PROMISES = {
    "rekey": "new keys, half of them initiated by either end: 0 lost, 0 delivered twice",
    "together": "new keys, begun by both ends at once: 0 lost, 0 delivered twice",
    "jump": f"one packet overtakes {', '.join(map(str, JUMPS))} others: 0 lost; beside it what a "
    f"window of {SMALL_WINDOW} loses",
    "thrice": "each packet three times, and recordings played back: 0 lost, 0 delivered twice",
    "half-handshakes": "every second handshake message lost: comes up, stays up, 0 lost",
    "restart": "graceful restarts and kill -9 under load: 0 lost",
    "counters": "crossing 2^32: a rekey in time, 0 lost; the limit of messages, and no handshake: "
    "a clean stop, no counter used twice",
    "damage": "what the kernel path of a needs is taken away, one thing after the other: what each "
    "costs is told, and bounded; never down for a second; 0 delivered twice",
}
