"""Short forms of tools/soak's cases, and that it tells a tunnel's losses from other ones."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lab
from lab import ROOT
from patterns import DATA, Lose
from soak_damage import TUNNELS
from soak_lab import RelayLab
from soak_run import Options, Result, Run

pytestmark = pytest.mark.alone

SOAK = [sys.executable, str(ROOT / "tools/soak")]
PLACES = ("/run/netns", "/run/ebpfvpn", "/sys/fs/bpf/ebpfvpn")


def soak(*arguments: str, invalid: int = 2) -> list[dict[str, Any]]:
    """The results; a run that the busy machine made `invalid` is tried again as often."""
    done = subprocess.run(
        [*SOAK, "--json", *arguments], capture_output=True, text=True, timeout=110
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    if invalid and any(result.get("verdict") == "invalid" for result in results):
        return soak(*arguments, invalid=invalid - 1)
    assert done.returncode == 0, [done.stderr, *(r.get("broken", r) for r in results)]
    assert {result["verdict"] for result in results} == {"kept"}
    return results


def counts(result: dict[str, Any], what: str) -> list[int]:
    """From a and from b."""
    return [result["flows"][side][what] for side in ("a", "b")]


@pytest.mark.parametrize("peer", ["ebpfvpn", "wireguard-go"])
def test_rekeys(peer: str) -> None:
    (result,) = soak("rekey", "--rekeys", "2", "--rate", "2000", "--peer", peer)
    assert (counts(result, "lost"), counts(result, "twice")) == ([0, 0], [0, 0])
    assert min(counts(result, "sent")) > 10_000
    assert result["sessions"] == ({"a": 2, "b": 1} if peer == "ebpfvpn" else {"a": 3, "b": 0})


def test_rekeys_that_cross() -> None:
    (result,) = soak("together", "--rekeys", "4", "--rate", "2000")
    assert (counts(result, "lost"), counts(result, "twice")) == ([0, 0], [0, 0])
    assert min(result["sessions"].values()) >= 2


def test_jumps() -> None:
    results = soak("jump", "--rate", "6000")
    assert len(results) == 6
    for wide, narrow in zip(results[::2], results[1::2], strict=True):
        (ahead,) = re.findall(r"^jump ([\d,]+)$", wide["case"])
        assert counts(wide, "lost") == [0, 0]
        assert counts(wide, "most_late") == [int(ahead.replace(",", ""))] * 2
        assert min(counts(narrow, "lost")) > 0


@pytest.mark.parametrize("peer", ["ebpfvpn", "wireguard-go"])
def test_each_packet_thrice(peer: str) -> None:
    rate = {"ebpfvpn": "9000", "wireguard-go": "4500"}[peer]
    (result,) = soak("thrice", "--rate", rate, "--seconds", "4", "--peer", peer)
    assert (counts(result, "lost"), counts(result, "twice")) == ([0, 0], [0, 0])
    for side, drops in result["drops"].items():
        other = {"a": "b", "b": "a"}[side]
        # Every message from the other side came three times, and some again.
        assert drops["replayed"] + drops["too_old"] >= 2 * result["flows"][other]["sent"]


def test_half_of_the_handshake_messages() -> None:
    (result,) = soak("half-handshakes", "--rate", "4000")
    assert counts(result, "lost") == [0, 0]
    assert result["sessions"] == {"a": 2, "b": 0}


@pytest.mark.parametrize("peer", ["ebpfvpn", "wireguard-go"])
def test_counters(peer: str) -> None:
    crossing, limit = soak("counters", "--rate", "2000", "--peer", peer)
    assert counts(crossing, "lost") == [0, 0]
    assert crossing["relay"]["a"]["highest_counter"] > 2**32
    assert limit["flows"]["a"]["lost"] == limit["drops"]["a"]["expired_send"] > 2000


def test_restarts() -> None:
    (result,) = soak("restart", "--rate", "2000", "--seconds", "16")
    assert (counts(result, "lost"), counts(result, "twice")) == ([0, 0], [0, 0])
    assert "2 restarts, 2 kills" in result["notes"][0]


def test_damages() -> None:
    """They keep to what they say at their most; how little it is here depends on the machine."""
    results = soak("damage", "--rate", "2000", invalid=1)
    assert [result["steps"][0]["path"] for result in results] == ["native", "generic", "tc", "tc"]
    changes = [step["path"] for step in results[3]["steps"]]
    assert changes == ["tc", "native", "userspace", "native", "native"]
    steps = [step for result in results for step in result["steps"]]
    assert len(steps) == sum(len(tunnel.damages) for tunnel in TUNNELS)
    # Nothing is noticed that is not damaged.
    assert min(step["repaired"] for step in steps) > 0
    assert any(step["lost"]["b"] for step in steps), "something hurts"


def test_rekeys_in_userspace() -> None:
    (result,) = soak("rekey", "--rekeys", "2", "--rate", "2000", "--datapath", "userspace")
    assert (counts(result, "lost"), counts(result, "twice")) == ([0, 0], [0, 0])
    assert result["sessions"] == {"a": 2, "b": 1}


def test_restarts_in_userspace() -> None:
    arguments = ("--rate", "2000", "--seconds", "8", "--datapath", "userspace")
    (result,) = soak("restart", *arguments)
    assert (counts(result, "lost"), counts(result, "twice")) == ([0, 0], [0, 0])
    assert "2 restarts, 0 kills" in result["notes"][0]


# That it can fail.


def test_a_loss_of_the_tunnel_is_found() -> None:
    """The relay plays the tunnel that loses."""

    def body(here: RelayLab) -> Result:
        run = Run(here, "lossy", Options("ebpfvpn", 2000, 2, 1))
        run.tunnel.up()
        run.relay.set([Lose([DATA], every=100)])
        run.start()
        run.wait(lambda: min(run.received().values()) > 2000, 30, "packets")
        result = run.finish()
        result.expect_nothing_lost()
        return result

    result = lab.within(RelayLab("lossy"), body)
    assert result.flows["a"].lost == result.relay["a"]["lost"] >= 20
    assert result.flows["b"].lost == 0
    assert result.flows["a"].lost_first[0][0] == result.flows["a"].lost_first[0][1] <= 100
    assert result.verdict == "broken", result


def test_a_loss_elsewhere_makes_the_run_invalid() -> None:
    def body(here: RelayLab) -> Result:
        run = Run(here, "congested", Options("ebpfvpn", 2000, 2, 1))
        run.tunnel.up()
        run.start()
        run.wait(lambda: min(run.received().values()) > 500, 30, "packets")
        # A queue that takes nothing.
        device = here.relay_devices[1]
        here.relay.run(
            "tc", "qdisc", "replace", "dev", device, "root", "handle", "5:", "bfifo", "limit", "1"
        )
        sent = run.relay.report()["a"]["sent"]
        run.wait(lambda: run.relay.report()["a"]["sent"] > sent + 500, 30, "packets to be lost")
        result = run.finish()
        result.expect_nothing_lost()
        return result

    result = lab.within(RelayLab("congested"), body)
    assert result.flows["a"].lost >= 500
    assert result.verdict == "invalid", result
    assert any(re.match(r"relay right0 queue: \d{3,}$", reason) for reason in result.invalid)


def traffic_runs(pid: int) -> bool:
    """In the tool's namespaces: a generator and a receiver on each node."""
    found = 0
    for side in ("left", "right"):
        done = subprocess.run(["ip", "netns", "pids", f"soak-{pid}-{side}"], capture_output=True)
        for each in done.stdout.decode().split():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found += b"numbered.py" in Path(f"/proc/{each}/cmdline").read_bytes()
    return found == 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals) -> None:
    with subprocess.Popen(
        [*SOAK, "rekey", "--rate", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            lab.wait_for(lambda: traffic_runs(process.pid), 30, "traffic to run")
        finally:
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert not [path for place in PLACES for path in Path(place).glob(f"*soak*{process.pid}*")]
