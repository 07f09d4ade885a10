"""Build hook: compiles the BPF objects into the wheel, so that no node needs a compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfBuildHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable install runs the tree itself, whose objects `make bpf` keeps up to date.
        if version == "editable":
            return
        subprocess.run(["make", "bpf"], cwd=self.root, check=True)
        if not list(Path(self.root, "daemon/ebpfvpn/bpf").glob("*.bpf.o")):
            raise RuntimeError("make bpf left no objects in daemon/ebpfvpn/bpf: not a whole tree")
