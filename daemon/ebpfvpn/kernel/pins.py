"""What is pinned of a generation, and is put back when somebody removes it: without it a later
daemon would find nothing to go on with, and nobody could take away what is attached."""

from __future__ import annotations

import os

from ebpfvpn.kernel import bpffs, generation
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.kernel.libbpf import Descriptor
from ebpfvpn.kernel.objects import Object


class Pins:
    """Of one generation."""

    def __init__(self, of: Generation, loaded: Object) -> None:
        """Of `loaded`, what is pinned now."""
        self._of = of
        pinned = os.listdir(of.pins)
        # In this order they are pinned again.
        self._objects: dict[str, Descriptor] = {
            name: one
            for name, one in (*loaded.maps.items(), *loaded.programs.items())
            if name in pinned
        }
        self._names = {*self._objects, *of.directories}

    def check(self) -> list[str]:
        """Puts back what is missing. DatapathError, OSError: it cannot be."""
        missing = self._missing()
        if not missing:
            return []
        bpffs.mount()
        # Nobody is to go on with what is not whole.
        generation.abandon(self._of)
        self._of.pins.mkdir(mode=0o700, exist_ok=True)
        for name in (name for name in self._objects if name in missing):
            self._objects[name].pin(self._of.pins / name)
        self._of.state_facts()
        generation.complete(self._of)
        return [f"{len(missing)} pins were missing in {self._of.pins}: pinned again"]

    def _missing(self) -> set[str]:
        try:
            return self._names - set(os.listdir(self._of.pins))
        except FileNotFoundError:
            return self._names
