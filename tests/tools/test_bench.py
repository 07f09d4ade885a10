"""tools/bench from end to end, quickly: that it measures, not how much."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import lab
import openvpn_pair
import tinc_pair
from foreground import Foreground
from lab import ROOT, Lab, LabError
from measure import UNITS
from openvpn_pair import OpenvpnPair
from tinc_pair import TincPair

BENCH = str(ROOT / "tools/bench")

# tinc and OpenVPN have a test of their own, for all at once take too long.
CANDIDATES = (
    "ebpfvpn-native",
    "ebpfvpn-generic",
    "ebpfvpn-tc",
    "ebpfvpn-userspace",
    "wireguard-go",
    "none",
)


@pytest.mark.parametrize("options", [[], ["--underlay", "super", "--napi-threaded"]])
def test_every_measurement_of_every_candidate(options: list[str]) -> None:
    machine = every_measurement(CANDIDATES, *options)
    assert machine["kernel"] == Path("/proc/sys/kernel/osrelease").read_text().strip()


def test_every_measurement_of_tinc_and_openvpn() -> None:
    machine = every_measurement(("tinc", "openvpn"))
    peers = machine["peers"]
    assert peers["tinc"]["cipher"] == "aes-128-cbc, 16 bytes of HMAC-sha256"
    assert peers["openvpn"]["cipher"] == "AES-256-GCM"
    assert peers["tinc"]["version"].startswith("1.0.")
    assert peers["openvpn"]["version"].startswith("2.")


def every_measurement(candidates: Sequence[str], *options: str) -> dict[str, Any]:
    """A run with one short round; returns what it says of the machine."""
    done = subprocess.run(
        [BENCH, "--quick", "--rounds", "1", *options, *candidates],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    machine: dict[str, Any]
    machine, *lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    measured = {(line["candidate"], line["measurement"]): line["value"] for line in lines}
    assert set(measured) == {(name, unit) for name in candidates for unit in UNITS}
    assert all(value > 0 for value in measured.values()), measured
    assert all(name in done.stdout.splitlines()[-len(UNITS) - 1] for name in candidates)
    return machine


def test_openvpn_encrypts_by_the_cipher_that_is_told() -> None:
    def body(here: Lab) -> str:
        pair = OpenvpnPair(here)
        pair.up()
        return pair.daemons[0].log()

    assert f"Data Channel: cipher '{openvpn_pair.CIPHER}'" in lab.in_lab("cipher", body)


def test_tinc_takes_the_cipher_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinc_pair, "CIPHER", "nonesuch")
    with pytest.raises(LabError, match=r"^tincd ended .*: .*Unrecognized cipher type"):
        lab.in_lab("cipher", lambda here: TincPair(here).up())


def test_daemon_that_does_not_start_says_why() -> None:
    def body(here: Lab) -> None:
        log = here.directory / "log"
        daemon = Foreground(here, here.left, log, "openvpn", "--log", str(log), "--nonesuch")
        daemon.wait_for(lambda: False, 5, "to be ready")

    with pytest.raises(LabError, match=r"^openvpn ended with exit code 1: .*Options error"):
        lab.in_lab("reason", body)


def test_unknown_candidate() -> None:
    done = subprocess.run([BENCH, "ipsec"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no candidate ipsec: choose from ebpfvpn-native" in done.stderr
