"""What the kernel path needs: each thing that can be missing is found, and named."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import bpffs, features, libbpf
from ebpfvpn.kernel.libbpf import BpfError

PROBES = (
    [(("libbpf_probe_bpf_prog_type", number), name) for number, name in features._PROGRAMS.items()]
    + [(("libbpf_probe_bpf_map_type", number), name) for number, name in features._MAPS.items()]
    + [(("libbpf_probe_bpf_helper", *numbers), name) for numbers, name in features._HELPERS.items()]
)


def calls_with(change: Callable[..., int | None]) -> Callable[..., int]:
    """As libbpf.call, unless `change` knows a result for the function and its numbers."""

    def call(what: str, function: str, *arguments: Any) -> int:
        numbers = [getattr(argument, "value", argument) for argument in arguments]
        result = change(function, *numbers)
        return libbpf.call(what, function, *arguments) if result is None else result

    return call


def test_nothing_is_missing_here() -> None:
    features.require()


@pytest.mark.parametrize(("probe", "name"), PROBES, ids=[name for _, name in PROBES])
def test_what_the_kernel_does_not_have(
    probe: tuple[object, ...], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(function: str, *numbers: object) -> int | None:
        return 0 if (function, *numbers)[: len(probe)] == probe else None

    monkeypatch.setattr(features, "call", calls_with(lacks))
    with pytest.raises(DatapathError) as refused:
        features.require()
    assert str(refused.value) == f"the kernel has no {name}"


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EPERM, "(seccomp, or a locked-down kernel?)"), (errno.ENOSYS, "not implemented")],
)
def test_the_system_call(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(function: str, *_: object) -> int | None:
        if function == "bpf_map_create":
            raise BpfError("creating a map", code)
        return None

    monkeypatch.setattr(features, "call", calls_with(refuses))
    with pytest.raises(DatapathError, match="bpf\\(\\) is refused") as refused:
        features.require()
    assert words in str(refused.value)


def test_the_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_may_use_bpf", lambda: False)
    with pytest.raises(DatapathError, match="lacks CAP_BPF"):
        features.require()


def test_libbpf(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **_: object) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    libbpf.library.cache_clear()
    try:
        with pytest.raises(DatapathError, match="apt install libbpf1"):
            features.require()
    finally:
        libbpf.library.cache_clear()


@pytest.mark.parametrize("mounted", [True, False])
def test_bpffs(mounted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be no directory of a file system that has none (/proc)."""
    where = Path("/proc/self/no-bpffs")
    monkeypatch.setattr(bpffs, "_is_mounted", lambda: mounted)
    monkeypatch.setattr(bpffs, "BPFFS", where)
    monkeypatch.setattr(bpffs, "PINS", where / "ebpfvpn")
    with pytest.raises(DatapathError, match="cannot make" if mounted else "cannot mount bpffs"):
        features.require()
