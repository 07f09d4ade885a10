"""The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s (whitepaper section 5.4, noiseprotocol.org).

    initiator -> responder: e, es, s, ss, {timestamp}     create_initiation, consume_initiation
    responder -> initiator: e, ee, se, psk, {}            create_response, consume_response

The responder needs no state between the two messages: it answers at once. The initiator keeps a
PendingInitiation. Every function raises ProtocolError where the other side's message is at fault.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from hashlib import blake2s

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ebpfvpn.wire import CONSTRUCTION, IDENTIFIER, KEY_LENGTH, Initiation, ProtocolError, Response

NONCE = bytes(12)
"""Every key of the handshake encrypts one message only."""


def kdf(key: bytes, data: bytes, outputs: int) -> list[bytes]:
    """HKDF (RFC 5869) with HMAC-BLAKE2s: `outputs` keys of 32 bytes."""
    secret = hmac.digest(key, data, blake2s)
    keys: list[bytes] = []
    last = b""
    for number in range(1, outputs + 1):
        last = hmac.digest(secret, last + bytes([number]), blake2s)
        keys.append(last)
    return keys


class PrivateKey:
    """An X25519 private key, static or ephemeral."""

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def exchange(self, public: bytes) -> bytes:
        """The shared secret. Raises ProtocolError if the public key is of low order."""
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise ProtocolError("public key of low order") from None


@dataclass(frozen=True, slots=True)
class Remote:
    """What the handshake must know of a peer."""

    public_key: bytes
    preshared_key: bytes = field(repr=False)
    static_static: bytes = field(repr=False)
    """The shared secret of both static keys, computed once."""


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """What a handshake gives."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


class SymmetricState:
    """Chaining key, hash and cipher key, as the Noise specification (section 5.2) has them."""

    __slots__ = ("_chaining_key", "_hash", "_key")

    def __init__(self, responder: bytes) -> None:
        self._chaining_key = _INITIAL_CHAINING_KEY
        self._hash = _INITIAL_HASH
        self._key = b""
        self.mix_hash(responder)

    def mix_hash(self, data: bytes) -> None:
        self._hash = blake2s(self._hash + data).digest()

    def mix_key(self, secret: bytes) -> None:
        self._chaining_key, self._key = kdf(self._chaining_key, secret, 2)

    def mix_key_and_hash(self, preshared_key: bytes) -> None:
        self._chaining_key, mixed, self._key = kdf(self._chaining_key, preshared_key, 3)
        self.mix_hash(mixed)

    def mix_ephemeral(self, public: bytes) -> None:
        # With a preshared key Noise also mixes the ephemeral into the chaining key.
        self.mix_hash(public)
        self.mix_key(public)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = ChaCha20Poly1305(self._key).encrypt(NONCE, plaintext, self._hash)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        try:
            plaintext = ChaCha20Poly1305(self._key).decrypt(NONCE, ciphertext, self._hash)
        except InvalidTag:
            raise ProtocolError("authentication failed") from None
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The transport keys, initiator's sending key first."""
        first, second = kdf(self._chaining_key, b"", 2)
        return first, second


_INITIAL_CHAINING_KEY = blake2s(CONSTRUCTION).digest()
_INITIAL_HASH = blake2s(_INITIAL_CHAINING_KEY + IDENTIFIER).digest()


@dataclass(frozen=True, slots=True)
class PendingInitiation:
    """An initiation that was sent and not answered yet."""

    local_index: int
    remote: Remote
    ephemeral: PrivateKey = field(repr=False)
    state: SymmetricState = field(repr=False)


@dataclass(frozen=True, slots=True)
class ConsumedInitiation:
    """An initiation that is authentic. Whether it is a replay, its timestamp tells."""

    remote: Remote
    remote_index: int
    timestamp: bytes
    ephemeral: bytes
    state: SymmetricState = field(repr=False)


def create_initiation(
    static: PrivateKey, remote: Remote, ephemeral: PrivateKey, local_index: int, timestamp: bytes
) -> tuple[Initiation, PendingInitiation]:
    """The message, its macs still empty, and what is needed to consume the response."""
    state = SymmetricState(remote.public_key)
    state.mix_ephemeral(ephemeral.public)
    state.mix_key(ephemeral.exchange(remote.public_key))
    encrypted_static = state.encrypt_and_hash(static.public)
    state.mix_key(remote.static_static)
    encrypted_timestamp = state.encrypt_and_hash(timestamp)
    message = Initiation(local_index, ephemeral.public, encrypted_static, encrypted_timestamp)
    return message, PendingInitiation(local_index, remote, ephemeral, state)


def consume_initiation(
    static: PrivateKey, message: Initiation, find: Callable[[bytes], Remote | None]
) -> ConsumedInitiation:
    """Reads an initiation; `find` looks up a peer by its public key."""
    state = SymmetricState(static.public)
    state.mix_ephemeral(message.ephemeral)
    state.mix_key(static.exchange(message.ephemeral))
    remote = find(state.decrypt_and_hash(message.encrypted_static))
    if remote is None:
        raise ProtocolError("unknown peer")
    state.mix_key(remote.static_static)
    timestamp = state.decrypt_and_hash(message.encrypted_timestamp)
    return ConsumedInitiation(remote, message.sender_index, timestamp, message.ephemeral, state)


def create_response(
    initiation: ConsumedInitiation, ephemeral: PrivateKey, local_index: int
) -> tuple[Response, TransportKeys]:
    """The message, its macs still empty, and the keys of the new session."""
    state = copy(initiation.state)
    state.mix_ephemeral(ephemeral.public)
    state.mix_key(ephemeral.exchange(initiation.ephemeral))
    state.mix_key(ephemeral.exchange(initiation.remote.public_key))
    state.mix_key_and_hash(initiation.remote.preshared_key)
    encrypted_nothing = state.encrypt_and_hash(b"")
    message = Response(local_index, initiation.remote_index, ephemeral.public, encrypted_nothing)
    receive, send = state.split()
    return message, TransportKeys(send, receive)


def consume_response(
    static: PrivateKey, initiation: PendingInitiation, message: Response
) -> TransportKeys:
    """Reads the response to `initiation`, which stays good for another one if this one is not."""
    state = copy(initiation.state)
    state.mix_ephemeral(message.ephemeral)
    state.mix_key(initiation.ephemeral.exchange(message.ephemeral))
    state.mix_key(static.exchange(message.ephemeral))
    state.mix_key_and_hash(initiation.remote.preshared_key)
    if state.decrypt_and_hash(message.encrypted_nothing):
        raise ProtocolError("authentication failed")
    send, receive = state.split()
    return TransportKeys(send, receive)


def remote(
    static: PrivateKey, public_key: bytes, preshared_key: bytes = bytes(KEY_LENGTH)
) -> Remote:
    """A peer, its static-static secret computed. Raises ProtocolError as `exchange` does."""
    return Remote(public_key, preshared_key, static.exchange(public_key))
