"""Where packets are lost between two nodes, by place: every counter that the kernel and ebpfvpn
have of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import Lab, Node

Places = dict[str, int]
"""Packets by place."""

_LOST = re.compile(r"drop|error|fail")
_QUEUE = re.compile(r"_queue_\d+")
_UDP = ("NoPorts", "RcvbufErrors", "SndbufErrors", "InCsumErrors", "MemErrors")
"""Not InErrors: there the generator's sink counts what arrives."""


def count(here: Lab, statuses: tuple[dict[str, Any], dict[str, Any]]) -> Places:
    """Since the machine, the devices and the daemons started. `statuses`: what `show --json` says
    at either node, where what is handed on from one part to another counts too (pass_*)."""
    found: Counter[str] = Counter()
    for side, node in enumerate(here.nodes):
        name = ("left", "right")[side]
        for place, packets in _of_node(node):
            found[f"{name}: {place}"] += packets
        for reason, packets in (statuses[side]["drops"] | statuses[side]["refused"]).items():
            found[f"{name}: ebpfvpn {reason}"] += packets
    for place, packets in softnet(Path("/proc/net/softnet_stat").read_text()):
        found[f"machine: softnet {place}"] += packets
    return dict(found)


def difference(before: Places, after: Places) -> Places:
    """Only places where something was lost."""
    changed = {place: after[place] - before.get(place, 0) for place in after}
    return {place: packets for place, packets in changed.items() if packets}


def _of_node(node: Node) -> Iterator[tuple[str, int]]:
    for link in json.loads(node.run("ip", "-json", "-statistics", "link", "show")):
        device = link["ifname"]
        for way, counters in link["stats64"].items():
            for kind in ("dropped", "errors"):
                yield f"{device} {way} {kind}", counters[kind]
        if link.get("address") and link["link_type"] == "ether":
            yield from ethtool(device, node.run("ethtool", "-S", device))
    for queue in json.loads(node.run("tc", "-json", "-statistics", "qdisc", "show")):
        yield f"{queue['dev']} qdisc {queue['kind']} dropped", queue.get("drops", 0)
    yield from udp(node.run("cat", "/proc/net/snmp"))


def ethtool(device: str, text: str) -> Iterator[tuple[str, int]]:
    """From the output of ethtool -S: what is lost, over all queues."""
    for line in text.splitlines():
        name, _, value = line.strip().partition(": ")
        if _LOST.search(name) and value.isdigit():
            yield f"{device} {_QUEUE.sub('', name)}", int(value)


def udp(text: str) -> Iterator[tuple[str, int]]:
    """From the text of /proc/net/snmp."""
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("Udp:"))
    for name, value in zip(names, values, strict=True):
        if name in _UDP:
            yield f"UDP {name}", int(value)


def softnet(text: str) -> Iterator[tuple[str, int]]:
    """From the text of /proc/net/softnet_stat, a line for each CPU: packets that found the backlog
    full, and how often the softirq's budget was used up."""
    for line in text.splitlines():
        fields = [int(field, 16) for field in line.split()]
        yield "dropped", fields[1]
        yield "time_squeeze", fields[2]
