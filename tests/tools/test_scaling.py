"""tools/scaling: that it measures what it says, not how much."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import all_cpus
import one_queue
from all_cpus import HOWS, KINDS
from lab import ROOT, LabError
from one_queue import PORTS, Received, Sender
from rows.tunnel import Tunnel

several_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU shares nothing")


@several_cpus
def test_every_figure(tmp_path: Path) -> None:
    output = tmp_path / "run.jsonl"
    done = subprocess.run(
        [ROOT / "tools" / "scaling", "--quick", "--rounds", "1", "--output", output],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header, *lines = map(json.loads, output.read_text().splitlines())
    assert {"cpu", "kernel", "cpus", "quiet"} <= set(header)
    received = {(x["size"], x["flow_ports"]): x for x in lines if "flow_ports" in x}
    assert set(received) == {(size, ports) for size in one_queue.SIZES for ports in PORTS}
    assert all(line["per_second"] > 0 for line in received.values())
    programs = {(x["program"], x["size"], x["sessions"]): x["ns"] for x in lines if "ns" in x}
    assert set(programs) == {
        (kind.program, size, how) for kind in KINDS for size in all_cpus.SIZES for how in HOWS
    }
    assert "| seal_xdp, 92 |" in done.stdout
    assert "| 1420 | 4 |" in done.stdout


def test_an_unknown_part() -> None:
    done = subprocess.run(
        [ROOT / "tools" / "scaling", "send"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "no part send: choose from receive, programs" in done.stderr


def test_packets_that_do_not_go_on_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tunnel, "set_route", lambda *_: None)
    with pytest.raises(LabError, match="returned"), open(os.devnull, "w") as file:
        all_cpus.compare(1, True, file)


@several_cpus
def test_lost_messages_are_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Sender.send
    monkeypatch.setattr(Sender, "send", lambda *of: send(*of) + 1)  # one of them it has not
    monkeypatch.setattr(one_queue, "_PATIENCE", 0.2)
    with pytest.raises(LabError, match="messages were lost"), open(os.devnull, "w") as file:
        one_queue.compare(1, True, file)


def test_gain_is_that_of_the_same_round() -> None:
    found = {
        (size, ports): [
            Received(rate * (2 if ports > 1 else 1), [0.5, 0.25], 0.3) for rate in (100, 300)
        ]
        for size in one_queue.SIZES
        for ports in PORTS
    }
    table = one_queue._table(found).splitlines()
    assert table[2] == "| 92 | 1 | 200 (100..300) | 1.00 | 0.50 + 0.25 | 0.30 |"
    assert table[3] == "| 92 | 4 | 400 (200..600) | 2.00 | 0.50 + 0.25 | 0.30 |"
