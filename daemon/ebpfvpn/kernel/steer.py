"""The filter at the TUN's egress, which leads packets into the tunnel."""

from __future__ import annotations

from ebpfvpn.kernel import hooks
from ebpfvpn.kernel.generation import Facts
from ebpfvpn.kernel.objects import Object

_PROGRAM = "steer"


def attach(facts: Facts, loaded: Object) -> None:
    """BpfError."""
    hooks.add_clsact(facts.tun)
    hooks.steer_filter(facts.tun, facts.handle).attach(
        loaded.programs[_PROGRAM], loaded.maps["config"]
    )


def detach(facts: Facts, loaded: Object) -> None:
    """Packets go on into the TUN."""
    hooks.steer_filter(facts.tun, facts.handle).detach(loaded.maps["config"])


def is_attached(facts: Facts, loaded: Object) -> bool:
    there = hooks.steer_filter(facts.tun, facts.handle).program_id()
    return there == loaded.programs[_PROGRAM].id
