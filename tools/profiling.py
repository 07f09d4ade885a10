"""Where the kernel path spends its time, and where it loses packets, so that a regression has a
name: each program's time by itself and in traffic, and what was lost at each place."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import bpf_stats
import candidates
import cpu_time
import lab
import loss_places
import measure
import quiet
import stages
import underlay
from bench_run import cpu_model
from bpf_stats import Runs
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn_pair import PINS, EbpfvpnPair
from lab import Lab, LabError
from loss_places import Places
from measure import QUICK, Durations
from results import emit

SIDES = ("left", "right")
OUTWARDS = ("steer", "seal_xdp", "seal_tc")
INWARDS = ("dispatch", "open_xdp", "open_cpu", "open_tc", "deliver", "deliver_generic")
"""`dispatch` includes open_xdp, which it tail-calls."""

Counts = dict[tuple[int, str], Runs]
"""By side and program."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Counters at one moment."""

    runs: Counts
    packets: dict[tuple[int, bool], int]
    """By side and whether they go outwards."""
    places: Places


def profile(names: list[str], kind: str, quick: bool, file: TextIO) -> str:
    """Writes JSON lines to the file; returns tables. LabError, lab.Interrupted."""
    report = Report(file)
    seen = quiet.before_run(quick)
    report.line(
        cpu=cpu_model(),
        kernel=platform.release(),
        underlay=kind,
        quiet=seen.quiet,
        busy_cpus=round(seen.cpus, 2),
    )
    try:
        by_itself(report, quick)
        for name in names:
            in_traffic(report, name, kind, QUICK if quick else Durations())
    except BpfError as error:
        raise LabError(str(error)) from None
    return "\n\n".join(report.tables)


class Report:
    def __init__(self, file: TextIO) -> None:
        self.tables: list[str] = []
        self._file = file

    def line(self, **line: Any) -> None:
        emit(self._file, line)

    def table(self, heading: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
        lines = [heading, ("---",) * len(heading), *(tuple(map(_cell, row)) for row in rows)]
        self.tables.append("\n".join(f"| {' | '.join(line)} |" for line in lines))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,.0f}"


def by_itself(report: Report, quick: bool) -> None:
    rows: list[tuple[Any, ...]] = []
    for stage in stages.costs(quick):
        spent, aead = round(stage.nanoseconds), stage.aead and round(stage.aead)
        report.line(stage=stage.program, size=stage.size, ns=spent, aead_ns=aead)
        rows.append((stage.program, stage.size, spent, aead, aead and spent - aead))
    heading = ("program, one test run", "inner bytes", "ns", "AEAD, ns", "rest, ns")
    report.table(heading, rows)


def in_traffic(report: Report, name: str, kind: str, durations: Durations) -> None:
    of = underlay.KINDS[kind]

    def body(here: Lab) -> None:
        underlay.prepare(here, kind)
        pair = candidates.ebpfvpn_pair(here, candidates.KERNEL[name], of.inner_mtu)
        underlay.prepare(here, kind)
        underlay.check(here, kind)
        address = pair.addresses[1]
        with bpf_stats.enabled(), measure.sink(here.right, address) as pid:
            flood = partial(measure.transfer, here, address, pid, rate=0, seconds=durations.flood)
            loads: dict[str, Callable[[], object]] = {
                "TCP, 1 stream": lambda: measure.tcp(here, address, 1, durations.tcp),
                "64-byte UDP, flood": lambda: flood(size=measure.SMALL),
                f"{of.large}-byte UDP, flood": lambda: flood(size=of.large),
            }
            before = look(here, pair)
            for load, send in loads.items():
                start = cpu_time.machine()
                send()
                spent = cpu_time.machine() - start
                after = look(here, pair)
                tell(report, f"{name}, {load}", before, after, spent)
                before = after

    lab.in_lab("bench", body)


def look(here: Lab, pair: EbpfvpnPair) -> Seen:
    runs = settled(partial(runs_of, pair))
    statuses = (pair.status(0), pair.status(1))
    packets = {}
    for side, status in enumerate(statuses):
        (peer,) = status["peers"]
        packets[side, True], packets[side, False] = peer["tx_packets"], peer["rx_packets"]
    return Seen(runs, packets, loss_places.count(here, statuses))


def settled(count: Callable[[], Counts]) -> Counts:
    """When what queues still held is through."""
    now = count()
    while True:
        before = now
        time.sleep(0.1)
        now = count()
        if now == before:
            return now


def runs_of(pair: EbpfvpnPair) -> Counts:
    return {
        (side, program): bpf_stats.of(path)
        for side in (0, 1)
        for program, path in pins(pair.interfaces[side]).items()
    }


def pins(interface: str) -> dict[str, Path]:
    """The tunnel's pinned programs, and the dispatcher that serves it."""
    found = {name: PINS / interface / name for name in (*OUTWARDS, *INWARDS)}
    for entry in PINS.glob(f"@*/tunnel-{interface}%*"):
        found["dispatch"] = entry.parent / "dispatch"
    return {name: path for name, path in found.items() if path.exists()}


def tell(report: Report, load: str, before: Seen, after: Seen, cpu: float) -> None:
    """`cpu`: seconds that the whole machine spent on it."""
    rows: list[tuple[Any, ...]] = []
    for (side, program), now in after.runs.items():
        spent = now - before.runs.get((side, program), Runs(0, 0))
        if not spent.count:
            continue
        way = (side, program in OUTWARDS)
        packets = after.packets[way] - before.packets[way]
        found = {
            "runs": spent.count,
            "packets": packets,
            "ns_run": round(spent.nanoseconds / spent.count),
            "ns_packet": round(spent.nanoseconds / packets) if packets else None,
        }
        report.line(profile=load, side=SIDES[side], program=program, **found)
        rows.append((f"{SIDES[side]} {program}", *found.values()))
    if received := after.packets[1, False] - before.packets[1, False]:
        a_packet = round(cpu / received * 1e9)
        report.line(profile=load, packets=received, machine_ns_packet=a_packet)
        rows.append(("all that ran on the machine", None, received, None, a_packet))
    report.table((load, "runs", "packets", "ns a run", "ns a packet"), rows)
    lost = loss_places.difference(before.places, after.places)
    report.line(profile=load, lost=lost)
    report.table(
        (f"{load}: lost, or handed on (pass_*)", "packets"),
        list(lost.items()) or [("nowhere", None)],
    )
