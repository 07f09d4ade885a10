"""The handshake once more, written down from the whitepaper's formulas (section 5.4) line by line,
with another library's primitives (libsodium) and an HMAC of its own. Slow, and only for tests."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2s

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)


def hash_(data: bytes) -> bytes:
    return blake2s(data).digest()


def hmac(key: bytes, data: bytes) -> bytes:
    """RFC 2104; BLAKE2s has blocks of 64 bytes."""
    block = (key if len(key) <= 64 else hash_(key)).ljust(64, b"\0")
    inner = hash_(bytes(byte ^ 0x36 for byte in block) + data)
    return hash_(bytes(byte ^ 0x5C for byte in block) + inner)


def kdf(key: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    t0 = hmac(key, data)
    t1 = hmac(t0, b"\1")
    t2 = hmac(t0, t1 + b"\2")
    return t1, t2, hmac(t0, t2 + b"\3")


def aead(key: bytes, counter: int, plain: bytes, additional: bytes) -> bytes:
    nonce = bytes(4) + counter.to_bytes(8, "little")
    return crypto_aead_chacha20poly1305_ietf_encrypt(plain, additional, nonce, key)


def mac(key: bytes, data: bytes) -> bytes:
    return blake2s(data, digest_size=16, key=key).digest()


@dataclass
class Handshake:
    initiation: bytes
    """With mac1, without cookie."""
    response: bytes
    initiator_sends: bytes
    responder_sends: bytes


def handshake(
    initiator: bytes,
    responder: bytes,
    initiator_ephemeral: bytes,
    responder_ephemeral: bytes,
    preshared_key: bytes,
    timestamp: bytes,
    initiator_index: int,
    responder_index: int,
) -> Handshake:
    """Both sides at once, from all private keys."""
    dh, pub = crypto_scalarmult, crypto_scalarmult_base
    s_i, s_r = pub(initiator), pub(responder)
    e_i, e_r = pub(initiator_ephemeral), pub(responder_ephemeral)

    # 5.4.2 first message
    c = hash_(b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s")
    h = hash_(hash_(c + b"WireGuard v1 zx2c4 Jason@zx2c4.com") + s_r)
    c, _, _ = kdf(c, e_i)
    h = hash_(h + e_i)
    c, k, _ = kdf(c, dh(initiator_ephemeral, s_r))
    static = aead(k, 0, s_i, h)
    h = hash_(h + static)
    c, k, _ = kdf(c, dh(initiator, s_r))
    stamp = aead(k, 0, timestamp, h)
    h = hash_(h + stamp)
    initiation = b"\1\0\0\0" + initiator_index.to_bytes(4, "little") + e_i + static + stamp
    initiation += mac(hash_(b"mac1----" + s_r), initiation) + bytes(16)

    # 5.4.3 second message
    c, _, _ = kdf(c, e_r)
    h = hash_(h + e_r)
    c, _, _ = kdf(c, dh(responder_ephemeral, e_i))
    c, _, _ = kdf(c, dh(responder_ephemeral, s_i))
    c, t, k = kdf(c, preshared_key)
    h = hash_(h + t)
    empty = aead(k, 0, b"", h)
    response = b"\2\0\0\0" + responder_index.to_bytes(4, "little")
    response += initiator_index.to_bytes(4, "little") + e_r + empty
    response += mac(hash_(b"mac1----" + s_i), response) + bytes(16)

    # 5.4.5 transport data keys
    initiator_sends, responder_sends, _ = kdf(c, b"")
    return Handshake(initiation, response, initiator_sends, responder_sends)
