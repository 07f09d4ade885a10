"""mac1, mac2 and cookies: what a handshake costs us before we know that it is honest.

mac1 shows that the sender knows our public key; mac2, demanded under load, that it receives what
is sent to its address (whitepaper sections 5.3, 5.4.4 and 5.4.7).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from hashlib import blake2s

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.wire import (
    COOKIE_LENGTH,
    COOKIE_NONCE_LENGTH,
    COOKIE_SECRET_LATENCY,
    COOKIE_SECRET_MAX_AGE,
    KEY_LENGTH,
    LABEL_COOKIE,
    LABEL_MAC1,
    MAC_LENGTH,
    NO_MAC,
    CookieReply,
    ProtocolError,
)


def mac(key: bytes, data: bytes) -> bytes:
    """Keyed BLAKE2s (RFC 7693), 16 bytes."""
    return blake2s(data, key=key, digest_size=MAC_LENGTH).digest()


def mac1_key(public_key: bytes) -> bytes:
    """The key of mac1 of messages to the owner of `public_key`."""
    return blake2s(LABEL_MAC1 + public_key).digest()


def cookie_key(public_key: bytes) -> bytes:
    """The key of cookie replies from the owner of `public_key`."""
    return blake2s(LABEL_COOKIE + public_key).digest()


def _split(message: bytes) -> tuple[bytes, bytes, bytes]:
    """A handshake message as (what mac1 covers, mac1, mac2)."""
    return (
        message[: -2 * MAC_LENGTH],
        message[-2 * MAC_LENGTH : -MAC_LENGTH],
        message[-MAC_LENGTH:],
    )


class CookieChecker:
    """Our side as the one who demands cookies. One per device."""

    def __init__(self, public_key: bytes, random: Callable[[int], bytes]) -> None:
        self._mac1_key = mac1_key(public_key)
        self._cookie_key = cookie_key(public_key)
        self._random = random
        self._secret = b""
        self._secret_born = 0.0

    def mac1_is_valid(self, message: bytes) -> bool:
        covered, mac1, _ = _split(message)
        return hmac.compare_digest(mac1, mac(self._mac1_key, covered))

    def mac2_is_valid(self, message: bytes, source: Endpoint, now: float) -> bool:
        covered, mac1, mac2 = _split(message)
        return hmac.compare_digest(mac2, mac(self._cookie(source, now), covered + mac1))

    def reply(self, message: bytes, sender_index: int, source: Endpoint, now: float) -> CookieReply:
        """The cookie of `source`, readable only by who saw the message it answers."""
        _, mac1, _ = _split(message)
        nonce = self._random(COOKIE_NONCE_LENGTH)
        encrypted = crypto_aead_xchacha20poly1305_ietf_encrypt(
            self._cookie(source, now), mac1, nonce, self._cookie_key
        )
        return CookieReply(sender_index, nonce, encrypted)

    def _cookie(self, source: Endpoint, now: float) -> bytes:
        if not self._secret or now - self._secret_born >= COOKIE_SECRET_MAX_AGE:
            self._secret = self._random(KEY_LENGTH)
            self._secret_born = now
        return mac(self._secret, source.address.packed + source.port.to_bytes(2, "big"))


class CookieJar:
    """Our side as the one of whom cookies are demanded. One per peer."""

    def __init__(self, public_key: bytes) -> None:
        self._mac1_key = mac1_key(public_key)
        self._cookie_key = cookie_key(public_key)
        self._last_mac1: bytes | None = None
        self._cookie: bytes | None = None
        self._received = 0.0

    def add_macs(self, message: bytes, now: float) -> bytes:
        """The handshake message with mac1, and with mac2 while we have a cookie."""
        covered, _, _ = _split(message)
        self._last_mac1 = mac(self._mac1_key, covered)
        if now - self._received >= COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY:
            self._cookie = None
        covered += self._last_mac1
        return covered + (mac(self._cookie, covered) if self._cookie else NO_MAC)

    def receive(self, reply: CookieReply, now: float) -> None:
        """Keeps the cookie for the next message. One reply to each message is taken.

        Raises ProtocolError if the reply is not one to our last message.
        """
        if self._last_mac1 is None:
            raise ProtocolError("unexpected cookie reply")
        try:
            cookie = crypto_aead_xchacha20poly1305_ietf_decrypt(
                reply.encrypted_cookie, self._last_mac1, reply.nonce, self._cookie_key
            )
        except CryptoError:
            raise ProtocolError("authentication failed") from None
        assert len(cookie) == COOKIE_LENGTH
        self._cookie = cookie
        self._received = now
        self._last_mac1 = None
