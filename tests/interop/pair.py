"""A tunnel between ebpfvpn ("ours") and wireguard-go ("theirs"), in two namespaces."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ebpfvpn.show import PeerStatus
from interop.ebpfvpn_node import EbpfvpnNode
from interop.wireguard_go import PeerDump, WireGuardGo, genkey
from netns import Namespace, address, namespace, veth

Side = Literal["ours", "theirs"]
SIDES: tuple[Side, Side] = ("ours", "theirs")

PORTS = (51820, 51821)
"""Of ours, of theirs; so in all the pairs."""
OUTER = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
INNER = {4: ("10.66.0.1", "10.66.0.2"), 6: ("fd66::1", "fd66::2")}
PREFIX = {4: 24, 6: 64}
HOST = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True)
class Pair:
    ours: EbpfvpnNode
    theirs: WireGuardGo
    our_ns: Namespace
    their_ns: Namespace
    our_key: str
    """Public."""
    their_key: str

    def our_peer(self) -> PeerStatus:
        """What ours knows of theirs."""
        return self.ours.peer(self.their_key)

    def their_peer(self) -> PeerDump:
        """What theirs knows of ours."""
        return self.theirs.peers()[self.our_key]


def host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def interface_name() -> str:
    """Unique on the machine, as control sockets and pins require."""
    return f"ei{secrets.token_hex(4)}"


@contextlib.contextmanager
def pair(
    initiator: Side = "ours",
    *,
    outer: int = 4,
    our_interface: str = "",
    our_peer: str = "",
    their_peer: str = "",
    mtu: int = 1420,
    our_view_of_their_key: str | None = None,
    their_view_of_our_key: str | None = None,
) -> Iterator[Pair]:
    """`initiator` alone has the other's endpoint. Further lines for the sections, and wrong public
    keys, may be given. No packet is sent by this."""
    our_keys, their_keys = genkey(), genkey()
    with namespace() as our_ns, namespace() as their_ns:
        veth(our_ns, their_ns)
        # XDP redirects to a veth only if its peer has an XDP program or GRO.
        their_ns.run("ethtool", "-K", "under0", "gro", "on")
        for family in (4, 6):
            for side, ns in enumerate((our_ns, their_ns)):
                address(ns, "under0", f"{OUTER[family][side]}/{PREFIX[family]}")
        ours = EbpfvpnNode(
            our_ns,
            interface_name(),
            "[Interface]\n"
            f"PrivateKey = {our_keys[0]}\n"
            f"ListenPort = {PORTS[0]}\n"
            f"Address = {', '.join(_inside(0))}\n"
            f"MTU = {mtu}\n"
            f"{our_interface}\n"
            + _peer(1, our_view_of_their_key or their_keys[1], outer, initiator == "ours")
            + f"{our_peer}\n",
        )
        theirs = WireGuardGo(
            their_ns.name,
            interface_name(),
            "[Interface]\n"
            f"PrivateKey = {their_keys[0]}\n"
            f"ListenPort = {PORTS[1]}\n"
            + _peer(0, their_view_of_our_key or our_keys[1], outer, initiator == "theirs")
            + f"{their_peer}\n",
            _inside(1),
            mtu,
        )
        # The responder first, for a persistent keepalive begins at once.
        ends = (theirs, ours) if initiator == "ours" else (ours, theirs)
        with ends[0], ends[1]:
            yield Pair(
                ours,
                theirs,
                our_ns,
                their_ns,
                their_view_of_our_key or our_keys[1],
                our_view_of_their_key or their_keys[1],
            )


def _inside(side: int) -> list[str]:
    return [f"{INNER[family][side]}/{PREFIX[family]}" for family in (4, 6)]


def _peer(side: int, public_key: str, outer: int, with_endpoint: bool) -> str:
    allowed = ", ".join(f"{INNER[family][side]}/{HOST[family]}" for family in (4, 6))
    lines = ["[Peer]", f"PublicKey = {public_key}", f"AllowedIPs = {allowed}"]
    if with_endpoint:
        lines.append(f"Endpoint = {host_port(OUTER[outer][side], PORTS[side])}")
    return "\n".join(lines) + "\n"
