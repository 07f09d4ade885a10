"""tools/bench --profile: programs and places by name, not how much."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import bpf_stats
import loss_places
import underlay
from bpf_stats import Runs
from ebpfvpn.kernel import bpffs, objects
from ebpfvpn.kernel.program import Program
from lab import ROOT
from profiling import INWARDS, OUTWARDS
from rows.tunnel import BUILD
from stages import SIZES, STAGES

ETHTOOL = """NIC statistics:
     peer_ifindex: 2
     rx_queue_0_xdp_packets: 10
     rx_queue_0_drops: 3
     rx_queue_1_drops: 4
     tx_queue_0_xdp_xmit_errors: 5
"""
SNMP = """Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors
Udp: 7 1 900 8 2 0 3
"""
SOFTNET = "25a1912f 00000004 000002ef 00000000\n246179b3 00000000 00000010 00000000\n"


def test_places() -> None:
    assert list(loss_places.ethtool("net0", ETHTOOL)) == [
        ("net0 rx_drops", 3),
        ("net0 rx_drops", 4),
        ("net0 tx_xdp_xmit_errors", 5),
    ]
    assert dict(loss_places.udp(SNMP)) == {
        "UDP NoPorts": 1,
        "UDP RcvbufErrors": 2,
        "UDP SndbufErrors": 0,
        "UDP InCsumErrors": 3,
    }
    assert list(loss_places.softnet(SOFTNET)) == [
        ("dropped", 4),
        ("time_squeeze", 0x2EF),
        ("dropped", 0),
        ("time_squeeze", 16),
    ]


def test_only_where_something_was_lost() -> None:
    before = {"a": 1, "b": 2}
    assert loss_places.difference(before, {"a": 1, "b": 5, "c": 4}) == {"b": 3, "c": 4}


@pytest.fixture
def pinned() -> Iterator[Path]:
    """A program, pinned."""
    bpffs.mount()
    path = bpffs.BPFFS / f"ebpfvpn-stats-{os.getpid()}-{secrets.token_hex(4)}"
    loaded = objects.load(BUILD / "aead_cost.bpf.o", programs=["cost_of_nothing"])
    try:
        loaded.programs["cost_of_nothing"].pin(path)
        yield path
    finally:
        path.unlink(missing_ok=True)
        loaded.close()


def test_runs_are_counted(pinned: Path) -> None:
    program = Program.pinned(pinned)
    with bpf_stats.enabled():
        before = bpf_stats.of(pinned)
        program.test_run(bytes(64), repeat=100)
        spent = bpf_stats.of(pinned) - before
    program.close()
    assert spent.count == 100
    assert spent.nanoseconds > 100
    assert Runs(5, 70) - Runs(2, 30) == Runs(3, 40)


@pytest.mark.parametrize("kind", ["gro", "jumbo"])
def test_from_end_to_end(tmp_path: Path, kind: str) -> None:
    output = tmp_path / "profile"
    argv = [str(ROOT / "tools/bench"), "--profile", "--quick", "--output", str(output)]
    argv += ["--underlay", kind]
    done = subprocess.run([*argv, "ebpfvpn-tc"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    header, *lines = map(json.loads, output.read_text().splitlines())
    assert header["underlay"] == kind

    stages = {(line["stage"], line["size"]): line for line in lines if "stage" in line}
    assert set(stages) == {(program, size) for program in STAGES for size in SIZES}
    small, large = (stages["open_tc", size] for size in SIZES)
    assert small["ns"] < large["ns"]
    assert small["aead_ns"] < large["aead_ns"]

    programs = {
        (line["profile"], line["side"], line["program"]): line
        for line in lines
        if "program" in line
    }
    assert {program for _, _, program in programs} <= {*OUTWARDS, *INWARDS}
    large = f"{underlay.KINDS[kind].large}-byte UDP, flood"
    for load in ("TCP, 1 stream", "64-byte UDP, flood", large):
        # In tc what need not be cut is sealed where it is sent.
        sealing = "seal_tc" if load.startswith("TCP") else "steer"
        sealed = programs[f"ebpfvpn-tc, {load}", "left", sealing]
        opened = programs[f"ebpfvpn-tc, {load}", "right", "open_tc"]
        # Each packet once; a handshake or a lost one may come in between.
        assert sealed["runs"] == pytest.approx(sealed["packets"], rel=0.01)
        assert opened["runs"] == pytest.approx(opened["packets"], rel=0.01)
        assert opened["ns_run"] > 0
    assert sum("lost" in line for line in lines) == 3
    assert "| ebpfvpn-tc, TCP, 1 stream: lost, or handed on (pass_*) | packets |" in done.stdout
