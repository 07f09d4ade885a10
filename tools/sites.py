"""Two further namespaces behind the nodes of a lab: load -> left -> way -> right -> sink. So a
tunnel carries what it forwards, as a node between two sites does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_network

import lab
from lab import Lab, Node
from way import SITES, Way

DEVICE = "site0"
"""The veth's name at either end."""


@dataclass(frozen=True, slots=True)
class Sites:
    load: Node
    sink: Node
    gateway_mac: str
    """Of the left node, as the load's packets need it."""


def connect(here: Lab, way: Way) -> Sites:
    """Makes the namespaces and routes between them over the way, whose tunnel allows SITES."""
    ends = []
    for side, node in enumerate(here.nodes):
        at_node, at_site = (str(address) for address in list(ip_network(SITES[side]).hosts())[:2])
        end = Node(f"bench-{os.getpid()}-site-{'lr'[side]}", at_site)
        here.add(end)
        lab.join(node, DEVICE, end, DEVICE)
        node.run("ip", "address", "add", f"{at_node}/25", "dev", DEVICE)
        end.run("ip", "address", "add", f"{at_site}/25", "dev", DEVICE)
        end.run("ip", "route", "add", "default", "via", at_node)
        node.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        _route(node, side, way)
        ends.append(end)
    return Sites(ends[0], ends[1], _mac(here.left, DEVICE))


def _route(node: Node, side: int, way: Way) -> None:
    there = SITES[1 - side]
    if node.run("ip", "-4", "route", "show", "exact", there).strip():
        return  # the tunnel's daemon has done it
    via = ["via", way.gateways[side]] if way.gateways else []
    node.run("ip", "route", "add", there, *via, "dev", way.interfaces[side])


def _mac(node: Node, device: str) -> str:
    words = node.run("ip", "-oneline", "link", "show", "dev", device).split()
    return words[words.index("link/ether") + 1]
