"""Pins, locks and the mark."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys

import pytest

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import bpffs


@pytest.fixture
def name() -> str:
    return f"kt{secrets.token_hex(4)}"


def test_mounted_for_root_alone() -> None:
    bpffs.mount()
    bpffs.mount()
    assert os.path.ismount(bpffs.BPFFS)
    assert bpffs.PINS.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("suffix", [".prod", "%", "..", "-_1"])
def test_names_that_bpffs_refuses(name: str, suffix: str) -> None:
    bpffs.mount()
    directory = bpffs.pin_directory(name + suffix)
    assert directory.parent == bpffs.PINS
    directory.mkdir()
    (directory / "marker").mkdir()
    bpffs.remove(directory)
    assert not directory.exists()
    bpffs.remove(directory)


def test_different_names_have_different_directories() -> None:
    names = ["a.b", "a%2Eb", "a%b", "ab"]
    assert len({bpffs.pin_directory(name) for name in names}) == len(names)


def test_name_is_held_once(name: str) -> None:
    lock = bpffs.NameLock(name)
    with pytest.raises(DatapathError, match=f"{name} is in use .* {os.getpid()}"):
        bpffs.NameLock(name)
    lock.release()
    lock.release()
    assert not (bpffs.RUN / f"{name}.lock").exists()
    bpffs.NameLock(name).release()


def test_name_is_free_when_its_process_dies(name: str) -> None:
    program = (
        "import sys; from ebpfvpn.kernel.bpffs import NameLock;"
        f"lock = NameLock({name!r}); print(flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(DatapathError, match=f"process {process.pid}"):
            bpffs.NameLock(name)
    finally:
        process.kill()
        process.communicate()
    bpffs.NameLock(name).release()


def test_mark_is_one_secret_unicast_address() -> None:
    mark = bpffs.mark()
    assert mark == bpffs.mark()
    assert len(mark) == 6
    assert mark[0] & 3 == 2
    assert (bpffs.RUN / "mark").stat().st_mode & 0o777 == 0o600
