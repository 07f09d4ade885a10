"""Poly1305 in eBPF: the published vectors of its carries, and what drives its limbs to their
bounds. r and s are the test's choice here, which the AEAD's key does not allow."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from ebpfvpn.kernel import objects
from ebpfvpn.kernel.layout import number
from rows.tunnel import BUILD

MAX_BLOCKS = 1024
ONES = b"\xff" * 16
GREATEST_R = bytes.fromhex("ffffff0ffcffff0ffcffff0ffcffff0f")
"""Clamped as RFC 8439 section 2.5 says."""
ANY_PACKET = bytes(64)


class Authenticator:
    """The program on its map."""

    def __init__(self, loaded: objects.Object) -> None:
        self._program = loaded.programs["poly1305_tag"]
        self._job = loaded.maps["poly1305_job"]

    def tag(self, key: bytes, text: bytes) -> bytes:
        return self.tag_and_sum(key, text)[0]

    def tag_and_sum(self, key: bytes, text: bytes) -> tuple[bytes, int]:
        """Tag, and the sum of the text's 32-bit words."""
        job = struct.pack("<32s16xQQ", key, 0, len(text) // 16) + text.ljust(16 * MAX_BLOCKS, b"\0")
        self._job.update(number(0), job)
        assert self._program.test_run(ANY_PACKET).retval == 0
        after = self._job.lookup(number(0))
        assert after is not None
        return after[32:48], struct.unpack_from("<Q", after, 48)[0]


@pytest.fixture(scope="module")
def poly1305() -> Iterator[Authenticator]:
    loaded = objects.load(BUILD / "poly1305.bpf.o")
    yield Authenticator(loaded)
    loaded.close()


def published() -> list[tuple[bytes, bytes, bytes]]:
    """Key, message and tag of RFC 8439 appendix A.3's vectors of whole blocks."""
    with cryptography_vectors.open_vector_file("poly1305/rfc7539.txt", "r") as file:
        lines = [line.partition("=") for line in file if "=" in line]
    values = [bytes.fromhex(value) for name, _, value in lines if name.strip() != "COUNT"]
    triples = zip(*[iter(values)] * 3, strict=True)
    return [(key, text, tag) for key, text, tag in triples if len(text) % 16 == 0]


def test_the_vectors_of_the_carries_are_there() -> None:
    assert len(published()) == 8


@pytest.mark.parametrize(("key", "text", "tag"), published())
def test_published_vectors(poly1305: Authenticator, key: bytes, text: bytes, tag: bytes) -> None:
    assert poly1305.tag(key, text) == tag


@pytest.mark.parametrize("above", range(-8, 8))
def test_sums_around_the_modulus(poly1305: Authenticator, above: int) -> None:
    # With r = 1 the sum is that of the blocks, each with 2**128 added.
    key = (1).to_bytes(16, "little") + bytes(16)
    rest = 2**130 - 5 + above - 3 * 2**128
    blocks = [2**128 - 1, min(rest - 2**128 + 1, 2**128 - 1)] if rest >= 2**128 else [rest, 0]
    blocks.append(rest - sum(blocks))
    text = b"".join(block.to_bytes(16, "little") for block in blocks)
    assert poly1305.tag(key, text) == (above % (2**130 - 5) % 2**128).to_bytes(16, "little")


@pytest.mark.parametrize("r", [GREATEST_R, ONES, bytes(16)], ids=["greatest", "unclamped", "zero"])
@pytest.mark.parametrize("fill", [b"\xff", b"\0", b"\xfb"])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 5, 559, MAX_BLOCKS])
def test_limbs_at_their_bounds(poly1305: Authenticator, r: bytes, fill: bytes, blocks: int) -> None:
    for s in (ONES, bytes(16)):
        text = fill * (16 * blocks)
        tag, total = poly1305.tag_and_sum(r + s, text)
        assert tag == Poly1305.generate_tag(r + s, text)
        assert total == sum(struct.unpack(f"<{4 * blocks}I", text))


WORD = st.sampled_from([0, 1, 4, 5, 0x0FFFFFFC, 0x7FFFFFFF, 0xFFFFFFFB, 0xFFFFFFFC, 0xFFFFFFFF])
BLOCK = st.lists(WORD, min_size=4, max_size=4).map(lambda words: struct.pack("<4I", *words))


@given(r=BLOCK, s=BLOCK, blocks=st.lists(BLOCK | st.binary(min_size=16, max_size=16), max_size=40))
@settings(max_examples=200, deadline=None, database=None)
def test_words_at_their_bounds(
    poly1305: Authenticator, r: bytes, s: bytes, blocks: list[bytes]
) -> None:
    text = b"".join(blocks)
    assert poly1305.tag(r + s, text) == Poly1305.generate_tag(r + s, text)


def test_random_messages(poly1305: Authenticator) -> None:
    source = random.Random(1305)
    for _ in range(500):
        key, text = source.randbytes(32), source.randbytes(16 * source.randrange(MAX_BLOCKS + 1))
        assert poly1305.tag(key, text) == Poly1305.generate_tag(key, text)
