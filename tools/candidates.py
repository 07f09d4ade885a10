"""What tools/bench compares: each makes a way between the two nodes of a lab."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

import openvpn_pair
import tinc_pair
from ebpfvpn_pair import EbpfvpnPair
from lab import ROOT, UNDERLAY, Lab, LabError, run, wait_for
from openvpn_pair import OpenvpnPair
from tinc_pair import TincPair

sys.path.append(str(ROOT / "tests"))

from interop.wireguard_go import WireGuardGo, genkey

PORT = 51821
WIREGUARD_GO = "wireguard-go"
TINC = "tinc"
OPENVPN = "openvpn"

CIPHERS = {
    WIREGUARD_GO: "ChaCha20-Poly1305",
    TINC: f"{tinc_pair.CIPHER}, {tinc_pair.MAC_LENGTH} bytes of HMAC-{tinc_pair.DIGEST}",
    OPENVPN: openvpn_pair.CIPHER,
}
"""Of the peers, by the names of candidate and Debian package."""

Up = Callable[[Lab], str]
"""Brings the way up; returns the right node's address on it."""


def no_tunnel(here: Lab) -> str:
    return here.right.address


def wireguard_go(here: Lab) -> str:
    keys = [genkey(), genkey()]
    inside = ["198.51.100.1", "198.51.100.2"]
    for side, node in enumerate(here.nodes):
        other = 1 - side
        configuration = f"""
[Interface]
PrivateKey = {keys[side][0]}
ListenPort = {PORT}
[Peer]
PublicKey = {keys[other][1]}
AllowedIPs = {inside[other]}/32
Endpoint = {here.nodes[other].address}:{PORT}
"""
        interface = f"bwg{os.getpid()}{'lr'[side]}"
        end = WireGuardGo(node.namespace, interface, configuration, [f"{inside[side]}/24"])
        here.defer(end.stop)
        end.start()
    return inside[1]


def tinc(here: Lab) -> str:
    """AES-128-CBC with HMAC-SHA-256; tools/tinc_pair.py says why."""
    pair = TincPair(here)
    pair.up()
    return pair.addresses[1]


def openvpn(here: Lab) -> str:
    """AES-256-GCM, without OpenVPN's kernel module."""
    pair = OpenvpnPair(here)
    pair.up()
    return pair.addresses[1]


def ebpfvpn(path: str) -> Up:
    """`path`: an attach mode, or "userspace"."""

    def up(here: Lab) -> str:
        if path == "userspace":
            pair = EbpfvpnPair(here, "bench", datapath=path)
        else:
            pair = EbpfvpnPair(here, "bench", attach_mode=path, datapath="kernel")
        pair.up()
        # Devices are attached when the peer's endpoint is known: the right one learns it by this.
        here.left.run("ping", "-c", "1", "-W", "5", pair.addresses[1])
        for side in (0, 1):
            wait_for(partial(_uses, pair, side, path), 2, f"{pair.interfaces[side]} to use {path}")
        return pair.addresses[1]

    return up


def _uses(pair: EbpfvpnPair, side: int, path: str) -> bool:
    """A figure must not stand in another path's row."""
    datapath = pair.status(side)["datapath"]
    if path == "userspace":
        return bool(datapath["path"] == path)
    devices = datapath["devices"]
    return {device["open"] for device in devices if device["name"] == UNDERLAY} == {path}


CANDIDATES: dict[str, Up] = {
    "ebpfvpn-native": ebpfvpn("native"),
    "ebpfvpn-generic": ebpfvpn("generic"),
    "ebpfvpn-tc": ebpfvpn("tc"),
    "ebpfvpn-userspace": ebpfvpn("userspace"),
    WIREGUARD_GO: wireguard_go,
    TINC: tinc,
    OPENVPN: openvpn,
    "none": no_tunnel,
}


def peers() -> dict[str, dict[str, str | None]]:
    """Version and cipher of each peer; no version where it is no installed Debian package."""
    return {name: {"version": _version(name), "cipher": CIPHERS[name]} for name in CIPHERS}


def _version(package: str) -> str | None:
    try:
        return run(["dpkg-query", "-W", "-f", "${Version}", package]) or None
    except (LabError, FileNotFoundError):
        return None


def prepare_underlay(here: Lab, underlay: str) -> None:
    """`real`: the sender's kernel cuts everything into packets of the MTU, as for a NIC without
    offloads, and the receiver may join them again (GRO). `super`: super-packets cross whole."""
    cuts = underlay == "real"
    for node in here.nodes:
        node.offload(UNDERLAY, gro=True)
        if cuts:
            node.offload(UNDERLAY, tso=False, gso=False, tx_udp_segmentation=False)


def thread_napi(here: Lab) -> None:
    """Every veth's receiving side works in a kernel thread of its own, which the scheduler can
    place, not in the softirq of whoever sends."""
    for node in here.nodes:
        veths = node.run("ip", "-brief", "link", "show", "type", "veth").splitlines()
        for name in (line.split("@")[0].split()[0] for line in veths):
            # One with neither GRO nor XDP has no NAPI and refuses; the underlay has GRO.
            may_refuse = "" if name == UNDERLAY else " 2>/dev/null || true"
            node.sysfs(f"echo 1 >/sys/class/net/{name}/threaded{may_refuse}")
