"""What tools/bench compares: each makes a way between the two nodes of a lab."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import fastd_pair
import nebula_pair
import openvpn_pair
import tinc_pair
import wireguard_go_pair
from ebpfvpn_pair import EbpfvpnPair
from fastd_pair import FastdPair
from lab import ROOT, UNDERLAY, Lab, LabError, run, wait_for
from nebula_pair import NebulaPair
from openvpn_pair import OpenvpnPair
from tinc_pair import TincPair
from way import SITES, Up, Way

sys.path.append(str(ROOT / "daemon"))

import ebpfvpn

DEBIAN = {
    "wireguard-go": wireguard_go_pair.CIPHER,
    "tinc": f"{tinc_pair.CIPHER}, {tinc_pair.MAC_LENGTH} bytes of HMAC-{tinc_pair.DIGEST}",
    "openvpn": openvpn_pair.CIPHER,
    "nebula": nebula_pair.CIPHER,
    "fastd": fastd_pair.METHOD,
}
"""Ciphers of Debian's peers, by the names of candidate and package."""

NATIVE, TC = "ebpfvpn-native", "ebpfvpn-tc"

KERNEL = {NATIVE: "native", TC: "tc"}
"""Ours by their attach mode. Generic XDP on a veth does not see what a tc program has redirected to
it: it would be tc that is measured."""


def no_tunnel(here: Lab, _mtu: int) -> Way:
    left, right = here.left.address, here.right.address
    return Way((left, right), (UNDERLAY, UNDERLAY), gateways=(right, left))


def ours(path: str) -> Up:
    """`path`: an attach mode, or "userspace"."""

    def up(here: Lab, mtu: int) -> Way:
        pair = ebpfvpn_pair(here, path, mtu)
        return Way(pair.addresses, (pair.interfaces[0], pair.interfaces[1]))

    return up


def ebpfvpn_pair(here: Lab, path: str, mtu: int) -> EbpfvpnPair:
    """Up, and seen to use this path and no other."""
    mode, datapath = (None, path) if path == "userspace" else (path, "kernel")
    pair = EbpfvpnPair(here, "bench", attach_mode=mode, datapath=datapath, sites=SITES, mtu=mtu)
    pair.up()
    # Devices are attached when the peer's endpoint is known: the right one learns it by this.
    here.left.run("ping", "-c", "1", "-W", "5", pair.addresses[1])
    for side in (0, 1):
        wait_for(partial(_uses, pair, side, path), 2, f"{pair.interfaces[side]} to use {path}")
    return pair


def _uses(pair: EbpfvpnPair, side: int, path: str) -> bool:
    """A figure must not stand in another path's row."""
    datapath = pair.status(side)["datapath"]
    if path == "userspace":
        return bool(datapath["path"] == path)
    devices = datapath["devices"]
    return {device["open"] for device in devices if device["name"] == UNDERLAY} == {path}


CANDIDATES: dict[str, Up] = {
    **{name: ours(mode) for name, mode in KERNEL.items()},
    "ebpfvpn-userspace": ours("userspace"),
    "wireguard-go": wireguard_go_pair.up,
    "tinc": lambda here, mtu: TincPair(here, mtu).up(),
    "openvpn": lambda here, mtu: OpenvpnPair(here, mtu).up(),
    "nebula": lambda here, mtu: NebulaPair(here, mtu).up(),
    "fastd": lambda here, mtu: FastdPair(here, mtu).up(),
    "none": no_tunnel,
}

CANNOT: dict[str, dict[str, str]] = {
    "super": {NATIVE: "XDP cuts super-packets"},
    "jumbo": {
        NATIVE: "a veth refuses native XDP with this MTU",
        "tinc": "as Debian builds it, its packets have at most 1504 bytes",
    },
}
"""Who is not measured on a kind of underlay, and why. Native XDP on a veth also switches off that
its peer hands it super-packets."""


def version(name: str, binary: Path | None = None) -> dict[str, str | None]:
    """What a candidate is; `binary`: that of one given by its path."""
    if binary:
        return {"version": _said_version(binary), "sha256": _digest(binary)}
    if name in DEBIAN:
        return {"version": _package(name), "cipher": DEBIAN[name]}
    if name == "none":
        return {}
    package = Path(ebpfvpn.__file__).parent
    parts = sorted([*package.rglob("*.py"), *package.rglob("*.o")])
    return {
        "version": ebpfvpn.__version__,
        "sha256": _digest(*parts),
        "python": platform.python_version(),
    }


def _package(name: str) -> str | None:
    """None where it is no installed Debian package."""
    try:
        return run(["dpkg-query", "-W", "-f", "${Version}", name]) or None
    except (LabError, FileNotFoundError):
        return None


def _said_version(binary: Path) -> str | None:
    """None where it says none."""
    try:
        done = subprocess.run(
            [binary, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
