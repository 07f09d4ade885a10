"""The AEAD in eBPF equals cryptography's ChaCha20Poly1305, bit for bit."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ebpfvpn.kernel import objects
from ebpfvpn.kernel.layout import number
from rows.packets import checksum
from rows.tunnel import BUILD

MAX_INNER = 8921
ROOM = 9216
COUNTERS = (0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 2**13 - 2)
ANY_PACKET = bytes(64)
_JOB = struct.Struct(f"<32sQII16sQ{ROOM}s")


@dataclass(frozen=True, slots=True)
class Done:
    text: bytes
    tag: bytes
    checksum: int
    """The Internet checksum of the ciphertext."""


class Aead:
    """The programs on their map."""

    def __init__(self, loaded: objects.Object) -> None:
        self._programs = loaded.programs
        self._job = loaded.maps["aead_job"]

    def seal(self, key: bytes, counter: int, text: bytes) -> Done:
        return self._run("aead_seal", key, counter, text)

    def open(self, key: bytes, counter: int, text: bytes) -> Done:
        """`text` without the tag, which is for the caller to compare."""
        return self._run("aead_open", key, counter, text)

    def _run(self, program: str, key: bytes, counter: int, text: bytes) -> Done:
        self._job.update(number(0), _JOB.pack(key, counter, len(text), 0, b"", 0, text))
        result = self._programs[program].test_run(ANY_PACKET, data_size_out=ROOM)
        assert result.retval == 0
        after = self._job.lookup(number(0))
        assert after is not None
        _, _, length, _, tag, total, changed = _JOB.unpack(after)
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        # In little-endian words the sum comes out with its bytes swapped (RFC 1071 section 2 B).
        swapped = int.from_bytes(struct.pack("<H", ~total & 0xFFFF), "big")
        return Done(changed[:length], tag, swapped)


@pytest.fixture(scope="module")
def aead() -> Iterator[Aead]:
    loaded = objects.load(BUILD / "aead.bpf.o")
    yield Aead(loaded)
    loaded.close()


def nonce(counter: int) -> bytes:
    return struct.pack("<4xQ", counter)


@pytest.mark.parametrize("rest", range(8))
def test_every_length(aead: Aead, rest: int) -> None:
    source = random.Random(rest)
    for length in range(rest, MAX_INNER + 1, 8):
        key, text = source.randbytes(32), source.randbytes(length)
        counter = source.choice([*COUNTERS, source.getrandbits(64)])
        expected = ChaCha20Poly1305(key).encrypt(nonce(counter), text, b"")
        ciphertext, tag = expected[:-16], expected[-16:]

        sealed = aead.seal(key, counter, text)
        assert (sealed.text, sealed.tag) == (ciphertext, tag), f"seal of {length} bytes"
        assert sealed.checksum == checksum(ciphertext), f"checksum of {length} bytes"
        opened = aead.open(key, counter, ciphertext)
        assert (opened.text, opened.tag) == (text, tag), f"open of {length} bytes"


def octets(text: str) -> bytes:
    """A value of the vectors: a string in quotes, or hexadecimal."""
    return text.strip('"').encode() if '"' in text else bytes.fromhex(text)


def published() -> list[dict[str, str]]:
    """BoringSSL's vectors without additional data and with a nonce as WireGuard has them."""
    file = "ciphers/ChaCha20Poly1305/boringssl.txt"
    with cryptography_vectors.open_vector_file(file, "r") as lines:
        parts = lines.read().split("\n\n")
    found = [dict(re.findall(r"^(\w+)\s*= *(.*)$", part, re.MULTILINE)) for part in parts]
    return [
        vector
        for vector in found
        if vector.get("AD") == '""' and vector["NONCE"].startswith("00000000")
    ]


def test_published_vectors_are_there() -> None:
    assert published()


@pytest.mark.parametrize("vector", published())
def test_published_vectors(aead: Aead, vector: dict[str, str]) -> None:
    (counter,) = struct.unpack("<4xQ", bytes.fromhex(vector["NONCE"]))
    sealed = aead.seal(octets(vector["KEY"]), counter, octets(vector["IN"]))
    assert (sealed.text, sealed.tag) == (octets(vector["CT"]), octets(vector["TAG"]))


@pytest.mark.parametrize("length", [0, 1, 16, 63, 64, 65, 1420, MAX_INNER])
def test_all_ones(aead: Aead, length: int) -> None:
    key, counter, text = b"\xff" * 32, 2**64 - 1, b"\xff" * length
    sealed = aead.seal(key, counter, text)
    assert sealed.text + sealed.tag == ChaCha20Poly1305(key).encrypt(nonce(counter), text, b"")
