"""What tools/install says on a machine that lacks something essential: one line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab import ROOT


def install(path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "tools/install"), "test"],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )


def commands(directory: Path, **answers: str) -> str:
    """A PATH on which these commands answer so."""
    for name, answer in answers.items():
        (directory / name).write_text(f"#!/bin/sh\n{answer}\n")
        (directory / name).chmod(0o755)
    return f"{directory}:{os.environ['PATH']}"


def test_old_kernel(tmp_path: Path) -> None:
    done = install(commands(tmp_path, uname="echo 5.15.0-91-generic"))
    assert done.returncode == 1
    assert done.stderr == (
        "make test: Linux 5.15.0-91-generic is too old for the kernel path: boot 6.1 or newer\n"
    )


def test_not_root() -> None:
    # From standard input, for nobody may have no access to the tree.
    with (ROOT / "tools/install").open() as script:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-s", "test"],
            stdin=script,
            cwd="/",
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "make test: needs root (namespaces, BPF): run it with sudo\n"


def test_apt_fails(tmp_path: Path) -> None:
    path = commands(tmp_path, iperf3="exit 1", **{"apt-get": "echo no network >&2; exit 100"})
    done = install(path)
    assert done.returncode == 1
    assert done.stderr == "no network\nmake test: apt-get could not install: iperf3\n"


def test_nothing_missing_asks_nothing_of_apt(tmp_path: Path) -> None:
    done = install(commands(tmp_path, **{"apt-get": "echo called; exit 1"}))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
