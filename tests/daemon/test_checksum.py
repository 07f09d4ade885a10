from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import checksum
from rows import packets


def test_the_example_of_rfc_1071() -> None:
    """Section 3."""
    assert checksum.of(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF


@given(st.binary(max_size=200).filter(any))
def test_it_is_what_adding_word_by_word_gives(data: bytes) -> None:
    assert checksum.of(data) == packets.checksum(data)


@pytest.mark.parametrize("length", [0, 1, 20])
def test_the_other_zero(length: int) -> None:
    """Of what is all zero, which no packet is."""
    assert (checksum.of(bytes(length)), packets.checksum(bytes(length))) == (0, 0xFFFF)
