"""A run of tools/bench: each candidate's turn in each round, in a lab of its own."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import lab
import quiet
import sites
import underlay
from lab import Lab, LabError
from measure import QUICK, Durations, measure, whole_packets
from measurements import MEASUREMENTS
from results import Results, emit
from way import Up
from wireguard_go_pair import WireGuardGoError


@dataclass(frozen=True, slots=True)
class Options:
    ups: Mapping[str, Up]
    """Of the candidates."""
    versions: Mapping[str, Any]
    rounds: int
    underlay: str
    napi_threaded: bool
    quick: bool

    @property
    def durations(self) -> Durations:
        return QUICK if self.quick else Durations()


def settings(options: Options) -> dict[str, Any]:
    """What must be the same where runs are compared."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "underlay": options.underlay,
        "napi_threaded": options.napi_threaded,
        "durations": asdict(options.durations),
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in cpuinfo if line.startswith("model name")]
    return models[0] if models else platform.machine()


class Writer:
    """Writes each line and adds it to the results."""

    def __init__(self, options: Options, file: TextIO) -> None:
        self.results = Results(settings(options), dict(options.versions))
        self._file = file
        command = shlex.join(["tools/bench", *sys.argv[1:]])
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        emit(file, self.results.header(command=command, began=began))

    def line(self, **line: Any) -> None:
        self.results.add(line)
        emit(self._file, line)


def run(options: Options, file: TextIO) -> tuple[Results, bool]:
    """Writes JSON lines to the file; tells whether everything could be measured. Interrupted."""
    writer = Writer(options, file)
    complete = True
    for number in range(1, options.rounds + 1):
        for name in options.ups:
            try:
                _turn(name, number, options, writer)
            except (LabError, WireGuardGoError) as error:
                complete = False
                writer.line(candidate=name, round=number, error=str(error))
                print(f"bench: {name}, round {number}: {error}", file=sys.stderr, flush=True)
    return writer.results, complete


def _turn(name: str, number: int, options: Options, writer: Writer) -> None:
    seen = quiet.before_run(options.quick)
    writer.line(
        candidate=name,
        round=number,
        quiet=seen.quiet,
        busy_cpus=round(seen.cpus, 2),
        busy={process: round(cpus, 2) for process, cpus in seen.processes},
    )

    kind = underlay.KINDS[options.underlay]

    def body(here: Lab) -> None:
        underlay.prepare(here, options.underlay)
        way = options.ups[name](here, kind.inner_mtu)
        underlay.prepare(here, options.underlay)
        underlay.check(here, options.underlay)
        whole_packets(here, way, kind.inner_mtu)
        ends = sites.connect(here, way)
        if options.napi_threaded:
            underlay.thread_napi(here)
        for measurement, value in measure(here, way, ends, kind.large, options.durations):
            writer.line(
                candidate=name,
                round=number,
                measurement=measurement,
                value=float(f"{value:.5g}"),
                unit=MEASUREMENTS[measurement].unit,
            )

    lab.in_lab("bench", body)
