"""Keys as wg(8) writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import keys


def test_wg_derives_the_same_public_key() -> None:
    private_key = keys.generate_private_key()
    result = subprocess.run(
        ["wg", "pubkey"], input=keys.encode_key(private_key), capture_output=True, text=True
    )
    assert keys.encode_key(keys.public_key(private_key)) == result.stdout.strip()


def test_private_keys_are_clamped_and_differ() -> None:
    generated = {keys.generate_private_key() for _ in range(100)}
    assert len(generated) == 100
    for key in generated:
        assert (key[0] & 7, key[31] & 0xC0) == (0, 0x40)


def test_preshared_keys_differ() -> None:
    assert len({keys.generate_preshared_key() for _ in range(100)}) == 100


@given(st.binary(min_size=32, max_size=32))
def test_keys_come_back(key: bytes) -> None:
    assert keys.decode_key(keys.encode_key(key)) == key


@given(st.binary().filter(lambda data: len(data) != 32))
def test_other_lengths_are_no_keys(data: bytes) -> None:
    with pytest.raises(ValueError, match="44 characters of base64"):
        keys.decode_key(keys.encode_key(data))


@pytest.mark.parametrize(
    "text",
    [
        "A" * 43,
        "A" * 44,
        "A" * 42 + "B=",
        " " + "A" * 43 + "=",
        "A" * 21 + "\n" + "A" * 22 + "=",
        "A" * 42 + "-=",
        "A" * 42 + "é=",
    ],
)
def test_not_keys(text: str) -> None:
    with pytest.raises(ValueError, match="44 characters of base64"):
        keys.decode_key(text)


def test_no_core_dumps() -> None:
    """In a process of its own, since it cannot be taken back."""
    script = """if True:
        import ctypes, resource
        from ebpfvpn import keys
        PR_GET_DUMPABLE = 3
        prctl = ctypes.CDLL(None).prctl
        before = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        keys.forbid_core_dumps()
        after = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
        print(before, after, resource.getrlimit(resource.RLIMIT_CORE))
    """
    packages = Path(keys.__file__).parents[1]
    result = subprocess.run(
        ["env", f"PYTHONPATH={packages}", sys.executable, "-c", script],
        capture_output=True,
        text=True,
    )
    assert result.stdout == "1 0 (0, 0)\n"
