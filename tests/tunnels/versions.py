"""Other versions of the whole project: programs and daemon, built in a directory of their own."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PARTS = ("daemon", "ebpf", "Makefile")


class Version:
    """A tree, and a way to put another in its place as an upgrade does."""

    def __init__(self, directory: Path) -> None:
        self._current = directory / "current"

    @property
    def python_path(self) -> Path:
        return self._current / "daemon"

    def install(self, tree: Path) -> None:
        self._current.unlink(missing_ok=True)
        self._current.symlink_to(tree)


def earlier(directory: Path) -> Path | None:
    """The last commit whose programs are other ones. None: there is no history."""
    log = _git(["git", "log", "--format=%H", "-n", "20", "--", "ebpf"]).stdout.decode().split()
    for number, commit in enumerate(log):
        for candidate in (commit, f"{commit}^"):
            tree = directory / f"earlier{number}{candidate[-1]}"
            archive = _git(["git", "archive", candidate, *_PARTS])
            if archive.returncode != 0:
                return None
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
                files.extractall(tree, filter="data")
            if _code(tree) != _code(ROOT):
                return _built(tree)
    return None


def _code(tree: Path) -> list[str]:
    """Of the programs, without comments and white space."""
    sources = sorted((tree / "ebpf").glob("*.[ch]"))
    return [
        "".join(re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL).split())
        for source in sources
    ]


def another_program(directory: Path) -> Path:
    """This version, with the same maps, but its messages have another time to live."""
    tree = _copy(directory / "program")
    _change(tree / "ebpf/headers.h", r"#define TTL 64\n", "#define TTL 77\n")
    return _built(tree)


def another_layout(directory: Path) -> Path:
    """This version, but with maps whose entries look different. It lets the older one live on for
    8 seconds only."""
    tree = _copy(directory / "layout")
    _change(tree / "ebpf/layout.h", r"struct (peer|session|config) \{\n", r"\g<0>\t__u64 moved;\n")
    layout = tree / "daemon/ebpfvpn/kernel/layout.py"
    fields = r"class (Peer|Session|Config)\(Structure\):\n    _fields_ = \(\n"
    _change(layout, fields, r'\g<0>        ("moved", c_uint64),\n')
    _change(layout, r"\nLAYOUT = (\d+)\n", "\nLAYOUT = 1\\g<1>\n")
    # So that a test can see the end of it.
    daemon = tree / "daemon/ebpfvpn/daemon.py"
    _change(
        daemon, r"REJECT_AFTER_TIME, self.datapath.remove_older", "8.0, self.datapath.remove_older"
    )
    return _built(tree)


def _copy(tree: Path) -> Path:
    for part in _PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("*.o"))
        else:
            shutil.copy(ROOT / part, tree / part)
    return tree


def _change(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count
    path.write_text(text)


def _built(tree: Path) -> Path:
    subprocess.run(["make", "-s", "-C", str(tree), "bpf"], check=True, capture_output=True)
    return tree


def _git(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, cwd=ROOT, capture_output=True)
