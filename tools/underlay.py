"""What crosses the veth between the nodes of a lab, and what its receiver joins again."""

from __future__ import annotations

import json
from dataclasses import dataclass

from lab import UNDERLAY, Lab, LabError, Node
from way import HEADERS


@dataclass(frozen=True, slots=True)
class Kind:
    what: str
    """What crosses."""
    cut: bool = True
    """By the sender's kernel, all into packets of the MTU, as for a NIC without offloads."""
    gro: bool = True
    """The receiver's."""
    mtu: int = 1500
    large: int = 1300
    """Bytes of payload of the large UDP packets that are measured."""

    @property
    def inner_mtu(self) -> int:
        """The tunnels'."""
        return self.mtu - HEADERS


KINDS = {
    "super": Kind("super-packets of 64 KB may cross whole", cut=False),
    "gro": Kind("real packets of at most 1500 bytes, a receiver with GRO"),
    "nogro": Kind("real packets of at most 1500 bytes, a receiver without GRO", gro=False),
    "jumbo": Kind(
        "real packets of at most 9001 bytes, a receiver with GRO, tunnels with an MTU of 8921",
        mtu=9001,
        large=8800,
    ),
}

_CUT = ("tcp-segmentation-offload", "generic-segmentation-offload", "tx-udp-segmentation")
_GRO = "generic-receive-offload"


def _features(kind: Kind) -> dict[str, bool]:
    """By their names of ethtool -k."""
    return {_GRO: kind.gro} | dict.fromkeys(_CUT, not kind.cut)


def prepare(here: Lab, name: str) -> None:
    """Before the tunnel is there, and after it: native XDP on a veth switches GRO on."""
    kind = KINDS[name]
    wanted = {feature.replace("-", "_"): on for feature, on in _features(kind).items()}
    for node in here.nodes:
        node.run("ip", "link", "set", UNDERLAY, "mtu", str(kind.mtu))
        node.offload(UNDERLAY, **wanted)


def check(here: Lab, name: str) -> None:
    """A figure must not stand in another underlay's table. LabError."""
    kind = KINDS[name]
    for node in here.nodes:
        found = features(node.run("ethtool", "-k", UNDERLAY))
        for feature, wanted in _features(kind).items():
            if found[feature] != wanted:
                state = "on" if found[feature] else "off"
                raise LabError(
                    f"underlay {name}: {feature} of {UNDERLAY} is {state} with this tunnel"
                )
        mtu = _mtu(node)
        if mtu != kind.mtu:
            raise LabError(f"underlay {name}: the MTU of {UNDERLAY} is {mtu} with this tunnel")


def _mtu(node: Node) -> int:
    (link,) = json.loads(node.run("ip", "-j", "link", "show", "dev", UNDERLAY))
    mtu: int = link["mtu"]
    return mtu


def features(text: str) -> dict[str, bool]:
    """From the output of ethtool -k."""
    pairs = (line.split(": ", 1) for line in text.splitlines() if ": " in line)
    return {name.strip(): value.split()[0] == "on" for name, value in pairs}


def thread_napi(here: Lab) -> None:
    """Every veth's receiving side works in a kernel thread of its own, which the scheduler can
    place, not in the softirq of whoever sends."""
    for node in here.nodes:
        veths = node.run("ip", "-brief", "link", "show", "type", "veth").splitlines()
        for name in (line.split("@")[0].split()[0] for line in veths):
            # One with neither GRO nor XDP has no NAPI and refuses; the underlay has GRO.
            may_refuse = "" if name == UNDERLAY else " 2>/dev/null || true"
            node.sysfs(f"echo 1 >/sys/class/net/{name}/threaded{may_refuse}")
