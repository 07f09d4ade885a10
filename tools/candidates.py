"""What tools/bench compares: each makes a way between the two nodes of a lab."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from ebpfvpn_pair import EbpfvpnPair
from lab import ROOT, UNDERLAY, Lab, wait_for

sys.path.append(str(ROOT / "tests"))

from interop.wireguard_go import WireGuardGo, genkey

PORT = 51821
WIREGUARD_GO = "wireguard-go"

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


def ebpfvpn(attach_mode: str) -> Up:
    def up(here: Lab) -> str:
        pair = EbpfvpnPair(here, "bench", attach_mode)
        pair.up()
        # Devices are attached when the peer's endpoint is known: the right one learns it by this.
        here.left.run("ping", "-c", "1", "-W", "5", pair.addresses[1])
        for side in (0, 1):
            what = f"{pair.interfaces[side]} to be attached as {attach_mode}"
            wait_for(partial(_is_attached, pair, side, attach_mode), 2, what)
        return pair.addresses[1]

    return up


def _is_attached(pair: EbpfvpnPair, side: int, attach_mode: str) -> bool:
    """A figure must not stand in another mode's row."""
    devices = pair.status(side)["datapath"]["devices"]
    return {device["open"] for device in devices if device["name"] == UNDERLAY} == {attach_mode}


CANDIDATES: dict[str, Up] = {
    "ebpfvpn-native": ebpfvpn("native"),
    "ebpfvpn-generic": ebpfvpn("generic"),
    "ebpfvpn-tc": ebpfvpn("tc"),
    WIREGUARD_GO: wireguard_go,
    "none": no_tunnel,
}


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
