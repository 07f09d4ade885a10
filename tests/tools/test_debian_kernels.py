"""How the kernels for the VMs are chosen; booting them is tests/kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

import debian_kernels as kernels

LISTING = """\
linux-image-6.1.0-9-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-10-amd64 - Linux 6.1 for 64-bit PCs (signed)
linux-image-6.1.0-11-cloud-amd64 - Linux 6.1 for x86-64 cloud (signed)
linux-image-6.1.0-11-amd64-unsigned - Linux 6.1 for 64-bit PCs
linux-image-6.1.0-11-amd64-dbg - Debug symbols for linux-image-6.1.0-11-amd64
"""

BACKPORTS = """\
linux-image-6.12-amd64 - Linux for 64-bit PCs (meta-package)
linux-image-6.12.9+bpo-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.41+deb13-amd64 - Linux 6.12 for 64-bit PCs (signed)
linux-image-6.12.41+deb13-rt-amd64 - Linux 6.12 for 64-bit PCs (signed), PREEMPT_RT
"""


@pytest.mark.parametrize(
    ("series", "listing", "newest"),
    [("6.1", LISTING, "6.1.0-10-amd64"), ("6.12", BACKPORTS, "6.12.41+deb13-amd64")],
)
def test_newest_plain_kernel(
    series: str, listing: str, newest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_run", lambda *_argv, **_options: listing)
    assert kernels.offered(series)[-1] == newest


def test_cached_kernel_needs_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("6.1.0-9-amd64", "6.1.0-10-amd64", "6.12.41+deb13-amd64"):
        boot = tmp_path / release / "boot"
        boot.mkdir(parents=True)
        (boot / f"vmlinuz-{release}").touch()
    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert kernels.get("6.1").release == "6.1.0-10-amd64"
    with pytest.raises(kernels.KernelUnavailable):
        kernels.get("6.9")


def test_unknown_kernel_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    monkeypatch.setattr(kernels, "_run", lambda *_argv, **_options: "")
    with pytest.raises(kernels.KernelUnavailable, match=r"no Debian kernel 6\.12"):
        kernels.get("6.12")
