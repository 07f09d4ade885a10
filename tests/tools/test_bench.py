"""tools/bench from end to end, quickly: that it measures, not how much."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import lab
import measure
import openvpn_pair
import tinc_pair
import underlay
from foreground import Foreground
from lab import ROOT, Lab, LabError
from measurements import MEASUREMENTS
from openvpn_pair import OpenvpnPair
from tinc_pair import TincPair

BENCH = str(ROOT / "tools/bench")
MTU = 1420


@pytest.mark.parametrize(
    ("candidates", "options"),
    [
        (("ebpfvpn-native", "ebpfvpn-tc", "ebpfvpn-userspace", "none"), []),
        (("ebpfvpn-tc", "wireguard-go"), ["--underlay", "super", "--napi-threaded"]),
        (("ebpfvpn-native", "none"), ["--underlay", "nogro"]),
        (("ebpfvpn-tc", "ebpfvpn-userspace", "none"), ["--underlay", "jumbo"]),
    ],
)
def test_every_measurement_of_every_path(candidates: Sequence[str], options: list[str]) -> None:
    header = every_measurement(candidates, *options)
    kernel = Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert header["settings"]["kernel"] == kernel


def test_every_measurement_of_peers_that_take_jumbo_frames() -> None:
    peers = ("wireguard-go", "openvpn", "nebula", "fastd")
    settings = every_measurement(peers, "--underlay", "jumbo")["settings"]
    assert settings["underlay"] == "jumbo"


def test_what_cannot_cross_whole_is_not_measured() -> None:
    def body(here: Lab) -> None:
        kind = underlay.KINDS["jumbo"]
        underlay.prepare(here, "jumbo")
        way = TincPair(here, kind.inner_mtu).up()
        measure.whole_packets(here, way, 1420)
        measure.whole_packets(here, way, kind.inner_mtu)

    with pytest.raises(LabError, match=r"^no packet of 8921 bytes crosses: "):
        lab.in_lab("whole", body)


def test_every_measurement_of_peers() -> None:
    versions = every_measurement(("tinc", "openvpn", "nebula", "fastd"))["versions"]
    assert versions["tinc"]["cipher"] == "aes-128-cbc, 16 bytes of HMAC-sha256"
    assert versions["openvpn"]["cipher"] == "AES-256-GCM"
    assert versions["tinc"]["version"].startswith("1.0.")
    assert versions["openvpn"]["version"].startswith("2.")


def test_every_measurement_of_a_peer_given_by_its_path() -> None:
    path = shutil.which("wireguard-go")
    versions = every_measurement(("other",), "--peer", f"other={path}")["versions"]
    assert versions["other"]["version"].startswith("wireguard-go v")
    assert len(versions["other"]["sha256"]) == 16


def every_measurement(candidates: Sequence[str], *options: str) -> dict[str, Any]:
    """A run with one short round; returns its first line."""
    done = subprocess.run(
        [BENCH, "--quick", "--rounds", "1", *options, *candidates],
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header: dict[str, Any]
    header, *lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    measured = {
        (line["candidate"], line["measurement"]): line["value"]
        for line in lines
        if "measurement" in line
    }
    large = {f"udp_{kind.large}_flood" for kind in underlay.KINDS.values()}
    its_own = f"udp_{underlay.KINDS[header['settings']['underlay']].large}_flood"
    expected = MEASUREMENTS.keys() - large | {its_own}
    assert set(measured) == {(name, what) for name in candidates for what in expected}
    assert all(value > 0 for value in measured.values()), measured
    assert f"| | {' | '.join(candidates)} |" in done.stdout.splitlines()
    return header


def test_openvpn_encrypts_by_the_cipher_that_is_told() -> None:
    def body(here: Lab) -> str:
        pair = OpenvpnPair(here, MTU)
        pair.up()
        return pair.daemons[0].log()

    assert f"Data Channel: cipher '{openvpn_pair.CIPHER}'" in lab.in_lab("cipher", body)


def test_tinc_takes_the_cipher_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinc_pair, "CIPHER", "nonesuch")
    with pytest.raises(LabError, match=r"^tincd ended .*: .*Unrecognized cipher type"):
        lab.in_lab("cipher", lambda here: TincPair(here, MTU).up())


def test_daemon_that_does_not_start_says_why() -> None:
    def body(here: Lab) -> None:
        log = here.directory / "log"
        daemon = Foreground(here, here.left, log, "openvpn", "--log", str(log), "--nonesuch")
        daemon.wait_for(lambda: False, 5, "to be ready")

    with pytest.raises(LabError, match=r"^openvpn ended with exit code 1: .*Options error"):
        lab.in_lab("reason", body)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["ipsec"], "no candidate ipsec: choose from ebpfvpn-native"),
        (
            ["--underlay", "super", "ebpfvpn-native"],
            "no ebpfvpn-native with --underlay super: XDP cuts super-packets",
        ),
        (["--underlay", "jumbo", "tinc"], "no tinc with --underlay jumbo: as Debian builds it"),
        (["--underlay", "nogro", "--napi-threaded"], "--napi-threaded needs GRO"),
        (["--peer", "new"], "new: give NAME=PATH"),
        (["--peer", "tinc=/bin/true"], "tinc is the name of a candidate already"),
        (["--peer", "new=/nowhere"], "/nowhere: there is no such program"),
        (["--plot", "run.txt"], "--plot run.txt: choose from .svg, .png, .pdf"),
        (["--profile", "tinc"], "--profile knows no tinc: choose from ebpfvpn-native"),
    ],
)
def test_wrong_arguments(arguments: list[str], reason: str) -> None:
    done = subprocess.run([BENCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]


def test_tables_of_different_underlays_are_refused(tmp_path: Path) -> None:
    files = []
    for kind in ("gro", "nogro"):
        files.append(str(tmp_path / kind))
        settings = {"underlay": kind}
        Path(files[-1]).write_text(json.dumps({"settings": settings, "versions": {}}) + "\n")
    done = subprocess.run([BENCH, "--table", *files], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"bench: {files[0]} and {files[1]} cannot be compared: "
        "underlay is gro there and nogro here\n"
    )


def test_a_run_overwrites_no_other(tmp_path: Path) -> None:
    there = tmp_path / "run"
    there.touch()
    done = subprocess.run(
        [BENCH, "--output", str(there), "none"], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"bench: {there} exists: each run has a file of its own\n"
