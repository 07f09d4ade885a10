"""The BPF compiler, for programs that tests make up."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

EBPF = Path(__file__).parents[2] / "ebpf"


def compile_bpf(source: str, directory: Path) -> Path:
    """Compiles C, which may include the headers of ebpf/; returns the object."""
    found = (shutil.which(f"clang-{version}") for version in range(30, 15, -1))
    clang = next(filter(None, found), "clang")
    written = directory / "test.bpf.c"
    written.write_text(source)
    compiled = written.with_suffix(".o")
    include = [f"-I{EBPF}", f"-I/usr/include/{platform.machine()}-linux-gnu"]
    command = [
        clang,
        "-O2",
        "-g",
        "-target",
        "bpf",
        *include,
        "-c",
        str(written),
        "-o",
        str(compiled),
    ]
    subprocess.run(command, check=True)
    return compiled
