"""A hub of ours between a wireguard-go and another ebpfvpn, which reach each other through it."""

from __future__ import annotations

import pytest

from both_paths import in_userspace
from interop.ebpfvpn_node import EbpfvpnNode, nothing_failed
from interop.pair import host_port, interface_name
from interop.traffic import NumberedPackets, ping, send_tcp, wait_for
from interop.wireguard_go import WireGuardGo, genkey
from netns import address, namespace, veth

PORT = 51820
HUB, GO, OURS = 1, 2, 3
"""The last byte of their addresses inside."""


def inside(node: int) -> list[str]:
    return [f"10.66.0.{node}/24", f"fd66::{node}/64"]


def peer(public_key: str, allowed_ips: str, endpoint: str = "") -> str:
    lines = ["[Peer]", f"PublicKey = {public_key}", f"AllowedIPs = {allowed_ips}"]
    return "\n".join([*lines, f"Endpoint = {endpoint}" if endpoint else "", ""])


def interface(private_key: str, node: int, mode: str) -> str:
    """Of ours."""
    return (
        f"[Interface]\nPrivateKey = {private_key}\nListenPort = {PORT}\nMTU = 1420\n"
        f"Address = {', '.join(inside(node))}\n#! AttachMode = {mode}\n"
    )


@pytest.mark.parametrize("mode", ["native", "generic", "tc"])
def test_spoke_to_hub_to_spoke(mode: str) -> None:
    keys = {node: genkey() for node in (HUB, GO, OURS)}
    outer = {GO: ("192.0.2.1", "192.0.2.2"), OURS: ("2001:db8::1", "2001:db8::2")}
    lengths = {GO: 24, OURS: 64}
    everything = "10.66.0.0/24, fd66::/64"
    with namespace() as hub_ns, namespace() as go_ns, namespace() as our_ns:
        for node, ns in ((GO, go_ns), (OURS, our_ns)):
            veth(hub_ns, ns, f"under{node}")
            ns.run("ethtool", "-K", f"under{node}", "gro", "on")
            for end, outside in zip((hub_ns, ns), outer[node], strict=True):
                address(end, f"under{node}", f"{outside}/{lengths[node]}")
        hub_ns.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        # ping counts a redirect as an answer, and leaves before the last ones have come.
        for which in ("all", "default"):
            hub_ns.run("sysctl", "-qw", f"net.ipv4.conf.{which}.send_redirects=0")
        hub_text = interface(keys[HUB][0], HUB, mode) + "".join(
            peer(keys[node][1], f"10.66.0.{node}/32, fd66::{node}/128") for node in (GO, OURS)
        )
        endpoints = {node: host_port(outer[node][0], PORT) for node in outer}
        our_text = interface(keys[OURS][0], OURS, mode) + peer(
            keys[HUB][1], everything, endpoints[OURS]
        )
        go_text = f"[Interface]\nPrivateKey = {keys[GO][0]}\n" + peer(
            keys[HUB][1], everything, endpoints[GO]
        )
        with (
            EbpfvpnNode(hub_ns, interface_name(), hub_text) as hub,
            EbpfvpnNode(our_ns, interface_name(), our_text),
            WireGuardGo(go_ns.name, interface_name(), go_text, inside(GO)),
        ):
            for ns in (go_ns, our_ns):
                ping(ns, f"10.66.0.{HUB}")
            for prefix in ("10.66.0.", "fd66::"):
                ping(go_ns, f"{prefix}{OURS}", size=4000)
                send_tcp(go_ns, our_ns, f"{prefix}{OURS}", 10_000_000)
                send_tcp(our_ns, go_ns, f"{prefix}{GO}", 10_000_000)
                send_tcp(our_ns, hub_ns, f"{prefix}{HUB}", 5_000_000)
                with (
                    NumberedPackets(go_ns, our_ns, f"{prefix}{OURS}", 1000) as to_ours,
                    NumberedPackets(our_ns, go_ns, f"{prefix}{GO}", 1000) as to_go,
                ):
                    wait_for(lambda: min(to_ours.sent, to_go.sent) >= 300, 5, "300 packets")
                assert (to_ours.lost, to_go.lost) == ([], [])
            status = hub.status()
            devices = {} if in_userspace() else {f"under{GO}": mode, f"under{OURS}": mode}
            assert {d["name"]: d["open"] for d in status["datapath"]["devices"]} == devices
            nothing_failed(status)
