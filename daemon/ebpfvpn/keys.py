"""Keys as the operator handles them: 32 bytes, written in base64 (wg(8))."""

from __future__ import annotations

import base64
import binascii
import ctypes
import os
import resource

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

KEY_LENGTH = 32
_PR_SET_DUMPABLE = 4


def generate_private_key() -> bytes:
    """32 random bytes, clamped as RFC 7748 section 5 has it."""
    key = bytearray(os.urandom(KEY_LENGTH))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def generate_preshared_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_LENGTH)


def public_key(private_key: bytes) -> bytes:
    """The 32 bytes of the public key (X25519) of a private key of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def encode_key(key: bytes) -> str:
    """44 characters of base64."""
    return base64.b64encode(key).decode()


def decode_key(text: str) -> bytes:
    """The 32 bytes of a key in base64; as strict as wg(8). ValueError does not quote the text."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # Equal in text too: base64 has more than one way to write the last character.
    if len(key) != KEY_LENGTH or encode_key(key) != text:
        raise ValueError("is not a key: it must be 44 characters of base64, as genkey prints")
    return key


def forbid_core_dumps() -> None:
    """Keeps secrets of this process out of core dumps and from debuggers of the same user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
