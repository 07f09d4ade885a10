"""The case damage of tools/soak: what others take away from a tunnel that works, under traffic."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ebpfvpn.kernel import bpffs
from ebpfvpn.kernel.map import Map
from ebpfvpn_pair import PINS
from kernel.compiler import compile_bpf
from lab import UNDERLAY, LabError
from soak_lab import PORT, Flow, RelayLab
from soak_run import Options, Result, Run, Step, increases
from watcher import SIDES

FOREIGN = """
#include <linux/bpf.h>
__attribute__((section("xdp"), used)) int foreign_xdp(struct xdp_md *p) { return XDP_PASS; }
__attribute__((section("tc"), used)) int foreign_tc(struct __sk_buff *p) { return -1; }
char LICENSE[] __attribute__((section("license"))) = "GPL";
"""
"""What somebody else attaches: it lets everything pass."""
_PATIENCE = 20.0
"""Seconds for a repair, or for a path to be built again."""
_POLL = 0.01
_DOWN = 1.0
"""Seconds: no direction may be without an arrival for so long."""
_SETTLES = 0.3
"""Seconds from a repair until packets that waited have arrived."""


class Site:
    """Node a, whose kernel path is damaged."""

    def __init__(self, here: RelayLab, interface: str) -> None:
        self.here = here
        self.interface = interface
        self.node = here.left

    def run(self, command: str) -> str:
        return self.node.run(*command.split())

    @property
    def device_pins(self) -> Path:
        """Of the underlay device."""
        inode = Path("/run/netns", self.node.namespace).stat().st_ino
        (link,) = json.loads(self.run(f"ip -j link show dev {UNDERLAY}"))
        return bpffs.device_directory(inode, link["ifindex"])

    def end(self, which: str) -> str:
        """The segmenter's device: outer or inner."""
        alias = f"ebpfvpn {self.interface} "
        for link in json.loads(self.run("ip -j -d link show")):
            found = link.get("ifalias", "")
            if found.startswith(alias) and found.endswith(f" {which}"):
                return str(link["ifname"])
        raise LabError(f"{self.interface} has no segmenter")

    @cached_property
    def foreign(self) -> Path:
        return compile_bpf(FOREIGN, self.here.directory)

    def forget_port(self) -> None:
        Map.pinned(self.device_pins / "ports").delete(PORT.to_bytes(4, "little"))

    def replace_underlay(self) -> None:
        self.run(f"ip link del dev {UNDERLAY}")
        self.here.connect_side(0)

    def put_foreign_xdp(self) -> None:
        self.run(f"ip -force link set dev {UNDERLAY} xdpdrv object {self.foreign} section xdp")

    def occupy(self) -> None:
        """Every place of ours on the underlay."""
        filters = json.loads(self.run(f"tc -j filter show dev {UNDERLAY} ingress"))
        (handle,) = {f["options"]["handle"] for f in filters if "handle" in f.get("options", {})}
        self.run(
            f"tc filter add dev {UNDERLAY} ingress prio 9 handle {handle} "
            f"bpf da object-file {self.foreign} section tc"
        )
        self.put_foreign_xdp()

    def vacate(self) -> None:
        self.run(f"ip link set dev {UNDERLAY} xdpdrv off")
        self.run(f"tc filter del dev {UNDERLAY} ingress prio 9")


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is taken away."""

    name: str
    do: Callable[[Site], object] | str
    """A string: a command, {tun}, {outer} and {inner} in it are devices."""
    lost: Mapping[str, float] = field(default_factory=dict)
    """By the side that sends: for how many milliseconds packets may be lost; 0 where none."""
    path: str = ""
    """Of a, from then on; empty: as before."""
    underlay: bool = False
    """Others than the tunnel lose packets too."""

    def inflict(self, site: Site) -> None:
        if callable(self.do):
            self.do(site)
            return
        ends = {end: site.end(end) for end in ("outer", "inner") if f"{{{end}}}" in self.do}
        site.run(self.do.format(tun=site.interface, **ends))


@dataclass(frozen=True, slots=True)
class Damaged:
    """A tunnel, and what happens to it."""

    name: str
    mode: str
    """AttachMode of a."""
    damages: list[Damage]
    most: int = 1 << 30
    """Packets a second, each way."""


_UNTIL_HEARD = 50.0
"""Until the daemon has heard of it and has put it back: what was opened, or is to be opened by
what is not there, goes nowhere. Some 5 ms on an idle machine."""
_WITHOUT_QUEUE = 50.0
"""Whoever deletes or adds a clsact qdisc takes the device's queue out of service for some
milliseconds (the kernel's dev_deactivate): what is sent there meanwhile is dropped."""
_IN_SEGMENTER = 100.0
"""What is in its ring, and what is sent to it until the daemon has heard of it."""

_REPLACED = 500.0
"""While there is no device."""

_STEER = [
    Damage("steer deleted", "tc filter del dev {tun} egress"),
    Damage("clsact of the TUN deleted", "tc qdisc del dev {tun} clsact", {"a": _WITHOUT_QUEUE}),
]
_PINS = [
    Damage("pins removed", lambda site: shutil.rmtree(PINS / site.interface)),
    Damage("pins of the device removed", lambda site: shutil.rmtree(site.device_pins)),
]
_SEGMENTER = {
    "segmenter: outer end deleted": "ip link del {outer}",
    "segmenter: inner end deleted": "ip link del {inner}",
    "segmenter: outer end down": "ip link set {outer} down",
    "segmenter: inner end down": "ip link set {inner} down",
    "segmenter: clsact of outer deleted": "tc qdisc del dev {outer} clsact",
    "segmenter: clsact of inner deleted": "tc qdisc del dev {inner} clsact",
}
_CLSACT = Damage(
    "clsact of the underlay deleted",
    f"tc qdisc del dev {UNDERLAY} clsact",
    {"a": _WITHOUT_QUEUE, "b": _UNTIL_HEARD},
    underlay=True,
)


def _segmenter(*sides: str) -> list[Damage]:
    """`sides`: whose packets go through it."""
    lost = dict.fromkeys(sides, _IN_SEGMENTER)
    return [Damage(name, command, lost) for name, command in _SEGMENTER.items()]


TUNNELS = [
    Damaged(
        "damage, native XDP",
        "auto",
        [
            Damage("XDP program taken off", f"ip link set dev {UNDERLAY} xdpdrv off"),
            Damage("dispatcher's entry deleted", Site.forget_port),
            Damage(
                "deliver deleted",
                f"tc filter del dev {UNDERLAY} ingress prio 7",
                {"b": _UNTIL_HEARD},
            ),
            _CLSACT,
            *_STEER,
            *_PINS,
            *_segmenter("a"),
            Damage(
                "segmenter: XDP program taken off",
                "ip link set {inner} xdp off",
                {"a": _IN_SEGMENTER},
            ),
        ],
    ),
    Damaged(
        "damage, generic XDP",
        "generic",
        [
            Damage("XDP program taken off", f"ip link set dev {UNDERLAY} xdpgeneric off"),
            _CLSACT,
            *_PINS,
        ],
    ),
    Damaged(
        "damage, tc",
        "tc",
        [
            Damage("open deleted", f"tc filter del dev {UNDERLAY} ingress"),
            _CLSACT,
            *_PINS,
            *_segmenter("a", "b"),
        ],
    ),
    Damaged(
        "damage, other paths",
        "auto",
        [
            Damage("another's XDP program instead", Site.put_foreign_xdp, path="tc"),
            Damage("it leaves", f"ip link set dev {UNDERLAY} xdpdrv off", path="native"),
            Damage("others in all places", Site.occupy, path="userspace"),
            Damage("they leave", Site.vacate, path="native"),
            Damage(
                "underlay replaced",
                Site.replace_underlay,
                {"a": _REPLACED, "b": _REPLACED},
                underlay=True,
            ),
        ],
        most=10_000,
    ),
]
"""The last is slow enough for userspace on any machine that carries the load of the others."""


def damage(here: RelayLab, options: Options, tunnel: Damaged) -> Result:
    """Each loses what it says at most; nothing is delivered twice, and packets arrive within a
    second, whatever is taken away."""
    run = Run(here, tunnel.name, options, {"AttachMode": tunnel.mode})
    run.tunnel.up()
    rate = min(options.rate, tunnel.most)
    site = Site(here, run.tunnel.a.interface)
    run.start(rate)
    run.wait(lambda: min(run.received().values()) > rate // 2, 10, "packets")
    path = "native" if tunnel.mode == "auto" else tunnel.mode
    run.result.expect(run.tunnel.a.path_now() == path, f"a opens by {run.tunnel.a.path_now()}")
    for each in tunnel.damages:
        path = each.path or path
        step = _step(run, site, each, rate)
        run.result.steps.append(step)
        run.result.expect(step.path == path, f"{each.name}: {step.path} after it, not {path}")
        for side in SIDES:
            lost, gap = step.lost[side], step.gap[side]
            if not run.result.invalid:
                most = step.allowed[side]
                run.result.expect(lost <= most, f"{each.name}: {lost} packets from {side} lost")
            run.result.expect(gap < _DOWN, f"{each.name}: none from {side} for {gap:.1f} s")
    result = run.finish()
    result.expect_nothing_twice()
    return result


def _step(run: Run, site: Site, each: Damage, rate: int) -> Step:
    a = run.tunnel.a
    outside, drops, changes = run.dropped_outside(), run.drops(), a.changes()
    before = {side: flow.seen()["missing"] for side, flow in run.flows.items()}
    begin = time.monotonic()
    each.inflict(site)
    while a.changes() == changes and time.monotonic() < begin + _PATIENCE:
        time.sleep(_POLL)
    repaired = time.monotonic() - begin
    run.result.expect(repaired < _PATIENCE, f"{each.name}: not noticed")
    gaps = {side: _settled(flow, rate) for side, flow in run.flows.items()}
    after = {side: flow.seen()["missing"] for side, flow in run.flows.items()}
    if each.underlay:
        run.forgive(outside)
    return Step(
        each.name,
        round(repaired, 3),
        {side: after[side] - before[side] for side in SIDES},
        {side: round(each.lost.get(side, 0) * rate / 1000) for side in SIDES},
        gaps,
        increases(drops, run.drops()),
        a.path_now(),
    )


def _settled(flow: Flow, rate: int) -> float:
    """Until packets sent after the repair have come, and those that waited; the longest gap since
    the flow was looked at last."""
    deadline = time.monotonic() + _PATIENCE
    seen = flow.seen()
    gap: float = seen["recent_gap"]
    enough = seen["unique"] + rate * _SETTLES
    while seen["unique"] < enough and time.monotonic() < deadline:
        time.sleep(_SETTLES / 3)
        seen = flow.seen()
        gap = max(gap, seen["recent_gap"])
    return gap
