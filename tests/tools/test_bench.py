"""tools/bench from end to end, quickly: that it measures, not how much."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lab import ROOT
from measure import UNITS

BENCH = str(ROOT / "tools/bench")


@pytest.mark.parametrize("options", [[], ["--underlay", "super", "--napi-threaded"]])
def test_every_measurement_of_every_candidate(options: list[str]) -> None:
    done = subprocess.run(
        [BENCH, "--quick", "--rounds", "1", *options], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    machine, *lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    assert machine["kernel"] == Path("/proc/sys/kernel/osrelease").read_text().strip()
    measured = {(line["candidate"], line["measurement"]): line["value"] for line in lines}
    modes = ("ebpfvpn-native", "ebpfvpn-generic", "ebpfvpn-tc")
    candidates = (*modes, "wireguard-go", "none")
    assert set(measured) == {(name, unit) for name in candidates for unit in UNITS}
    assert all(value > 0 for value in measured.values()), measured
    assert all(name in done.stdout.splitlines()[-len(UNITS) - 1] for name in candidates)


def test_unknown_candidate() -> None:
    done = subprocess.run([BENCH, "openvpn"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no candidate openvpn: choose from ebpfvpn-native" in done.stderr
