"""What crosses the veth between the nodes of a lab, and what its receiver joins again."""

from __future__ import annotations

from lab import UNDERLAY, Lab, LabError

KINDS = {
    "super": "super-packets of 64 KB may cross whole",
    "gro": "real packets of at most 1500 bytes, a receiver with GRO",
    "nogro": "real packets of at most 1500 bytes, a receiver without GRO",
}

_CUT = ("tcp-segmentation-offload", "generic-segmentation-offload", "tx-udp-segmentation")
_GRO = "generic-receive-offload"


def _features(kind: str) -> dict[str, bool]:
    """By their names of ethtool -k. The sender's kernel cuts everything into packets of the MTU, as
    for a NIC without offloads, unless super-packets may cross."""
    return {_GRO: kind != "nogro"} | dict.fromkeys(_CUT, kind == "super")


def prepare(here: Lab, kind: str) -> None:
    """Before the tunnel is there, and after it: native XDP on a veth switches GRO on."""
    for node in here.nodes:
        wanted = _features(kind)
        node.offload(UNDERLAY, **{name.replace("-", "_"): on for name, on in wanted.items()})


def check(here: Lab, kind: str) -> None:
    """A figure must not stand in another underlay's table. LabError."""
    for node in here.nodes:
        found = features(node.run("ethtool", "-k", UNDERLAY))
        for name, wanted in _features(kind).items():
            if found[name] != wanted:
                state = "on" if found[name] else "off"
                raise LabError(f"underlay {kind}: {name} of {UNDERLAY} is {state} with this tunnel")


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
