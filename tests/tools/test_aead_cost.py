"""tools/bench --aead: that it measures the cipher, not how much it costs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

import aead_cost
from aead_cost import Ebpf, Native, Openssl
from lab import ROOT, LabError


@pytest.fixture
def ebpf() -> Iterator[Ebpf]:
    found = Ebpf()
    yield found
    found.close()


def test_every_implementation_is_the_same_cipher(ebpf: Ebpf, tmp_path: Path) -> None:
    aead_cost.check(ebpf, Native(tmp_path), Openssl())
    sealed = ChaCha20Poly1305(aead_cost.KEY).encrypt(b"\0\0\0\0\1\0\0\0\0\0\0\0", bytes(1420), None)
    assert ebpf.tag(1420) == sealed[1420:]


def test_another_cipher_is_not_measured(ebpf: Ebpf, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Openssl()
    monkeypatch.setattr(wrong, "tag", lambda size: bytes(16))
    with pytest.raises(LabError, match="the tags of 0 bytes are not the same"):
        aead_cost.check(ebpf, wrong)


def test_more_bytes_cost_more(ebpf: Ebpf, tmp_path: Path) -> None:
    native = Native(tmp_path)
    for cost in (ebpf.seal, ebpf.open, native.seal, native.open):
        short, long = (min(cost(size, 20) for _ in range(5)) for size in (64, 8921))
        assert 0 < 5 * short < long


def test_from_end_to_end() -> None:
    done = subprocess.run(
        [str(ROOT / "tools/bench"), "--aead", "--quick", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    header, *lines = [json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{"]
    assert "-mgeneral-regs-only" in header["flags"]
    kinds = {line["aead"] for line in lines}
    assert len(kinds) == 6
    assert {(line["aead"], line["size"]) for line in lines} == {
        (kind, size) for kind in kinds for size in aead_cost.SIZES
    }
    assert len(done.stdout.splitlines()) == 1 + len(lines) + 3 + len(aead_cost.SIZES)
