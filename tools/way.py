"""A way between the two nodes of a lab, as what brings it up tells of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab import Lab

INSIDE = ("198.51.100.1", "198.51.100.2")
"""Addresses inside the tunnels: left, right."""

SITES = ("203.0.113.0/25", "203.0.113.128/25")
"""The networks behind the nodes, left and right, that a tunnel joins as well."""

HEADERS = 80
"""What every tunnel leaves of the underlay's MTU: each one's headers fit."""


@dataclass(frozen=True, slots=True)
class Way:
    addresses: tuple[str, str]
    """Of the nodes on it: left, right."""
    interfaces: tuple[str, str]
    gateways: tuple[str, str] | None = None
    """To the other node's site; None: the interface alone tells."""


Up = Callable[[Lab, int], Way]
"""Brings it up, with this MTU."""
