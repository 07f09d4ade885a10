"""The wheel has the compiled BPF objects in it, so that no node needs a compiler."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from lab import ROOT


def test_wheel_contains_the_objects(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("ebpfvpn-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        objects = {name: archive.read(name) for name in names if name.endswith(".o")}
    sources = {source.name.removesuffix(".c") for source in (ROOT / "ebpf").glob("*.bpf.c")}
    assert sources == {"tc.bpf", "xdp.bpf", "dispatch.bpf"}
    assert set(objects) == {f"ebpfvpn/bpf/{source}.o" for source in sources}
    for name, content in objects.items():
        assert content.startswith(b"\x7fELF"), name
        assert b".BTF" in content, name
        assert str(ROOT).encode() not in content, name
    assert "ebpfvpn/cli.py" in names
    assert any(name.endswith("licenses/ebpf/LICENSE") for name in names)
