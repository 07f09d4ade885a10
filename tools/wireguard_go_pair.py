"""A tunnel of wireguard-go, or of another binary with its command line, between the two nodes of a
lab. Configured by wg(8)."""

from __future__ import annotations

import os
import sys

from lab import ROOT, Lab
from way import INSIDE, SITES, Way

sys.path.append(str(ROOT / "tests"))

from interop.wireguard_go import WireGuardGo, WireGuardGoError, genkey

__all__ = ["CIPHER", "WireGuardGoError", "up"]

CIPHER = "ChaCha20-Poly1305"
PORT = 51821


def up(here: Lab, mtu: int, binary: str = "wireguard-go") -> Way:
    """`binary`: its path. WireGuardGoError."""
    keys = [genkey(), genkey()]
    interfaces = (f"bwg{os.getpid()}l", f"bwg{os.getpid()}r")
    for side, node in enumerate(here.nodes):
        other = 1 - side
        configuration = f"""
[Interface]
PrivateKey = {keys[side][0]}
ListenPort = {PORT}
[Peer]
PublicKey = {keys[other][1]}
AllowedIPs = {INSIDE[other]}/32, {SITES[other]}
Endpoint = {here.nodes[other].address}:{PORT}
"""
        end = WireGuardGo(
            node.namespace,
            interfaces[side],
            configuration,
            [f"{INSIDE[side]}/24"],
            mtu,
            binary=binary,
        )
        here.defer(end.stop)
        end.start()
    return Way(INSIDE, interfaces)
