"""WireGuard version 1 on the wire: every constant and the layout of the four messages.

Source: WireGuard whitepaper, sections 5.4 (messages) and 6.1 (timers); where it is silent,
Linux drivers/net/wireguard/messages.h and cookie.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct
from typing import Any, ClassVar, Self

# Times, in seconds.
REKEY_TIMEOUT = 5.0
REKEY_TIMEOUT_JITTER = 0.333
REKEY_ATTEMPT_TIME = 90.0
REKEY_AFTER_TIME = 120.0
REJECT_AFTER_TIME = 180.0
KEEPALIVE_TIMEOUT = 10.0
COOKIE_SECRET_MAX_AGE = 120.0
COOKIE_SECRET_LATENCY = 5.0

# Numbers of messages.
REKEY_AFTER_MESSAGES = 2**60
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1
INITIATIONS_PER_SECOND = 50
"""More from one peer are refused."""
HANDSHAKES_UNDER_LOAD = 500
"""As many handshake messages in a second mean load: about a tenth of a core's time."""
HANDSHAKES_PER_SOURCE = 20
"""Under load, more than this in a second from one address (IPv6: one /64) are refused."""
MAX_SOURCES = 8192
"""Under load, as many addresses are counted; others wait for the next second."""

# Lengths, in bytes.
KEY_LENGTH = 32
TAG_LENGTH = 16
MAC_LENGTH = 16
COOKIE_LENGTH = 16
COOKIE_NONCE_LENGTH = 24
TIMESTAMP_LENGTH = 12
PADDING = 16
"""The plaintext of a data message is padded with zeros to a multiple of this."""

# Labels.
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"

NO_MAC = bytes(MAC_LENGTH)
NO_PRESHARED_KEY = bytes(KEY_LENGTH)


class ProtocolError(Exception):
    """A message was refused. The text is one of a fixed few, so that it can be counted by."""


# The type is one byte and three reserved ones, which must be zero: together a number of 32 bits.


@dataclass(frozen=True, slots=True)
class Initiation:
    """First message of a handshake, initiator to responder."""

    TYPE: ClassVar[int] = 1
    LAYOUT: ClassVar[Struct] = Struct("<II 32s 48s 28s 16s 16s")

    sender_index: int
    ephemeral: bytes
    encrypted_static: bytes
    encrypted_timestamp: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    def encode(self) -> bytes:
        return self.LAYOUT.pack(
            self.TYPE,
            self.sender_index,
            self.ephemeral,
            self.encrypted_static,
            self.encrypted_timestamp,
            self.mac1,
            self.mac2,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(*_unpack(cls.LAYOUT, cls.TYPE, data))


@dataclass(frozen=True, slots=True)
class Response:
    """Second message of a handshake, responder to initiator."""

    TYPE: ClassVar[int] = 2
    LAYOUT: ClassVar[Struct] = Struct("<III 32s 16s 16s 16s")

    sender_index: int
    receiver_index: int
    ephemeral: bytes
    encrypted_nothing: bytes
    mac1: bytes = NO_MAC
    mac2: bytes = NO_MAC

    def encode(self) -> bytes:
        return self.LAYOUT.pack(
            self.TYPE,
            self.sender_index,
            self.receiver_index,
            self.ephemeral,
            self.encrypted_nothing,
            self.mac1,
            self.mac2,
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(*_unpack(cls.LAYOUT, cls.TYPE, data))


@dataclass(frozen=True, slots=True)
class CookieReply:
    """The answer to a handshake message under load."""

    TYPE: ClassVar[int] = 3
    LAYOUT: ClassVar[Struct] = Struct("<II 24s 32s")

    receiver_index: int
    nonce: bytes
    encrypted_cookie: bytes = field(repr=False)

    def encode(self) -> bytes:
        return self.LAYOUT.pack(self.TYPE, self.receiver_index, self.nonce, self.encrypted_cookie)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(*_unpack(cls.LAYOUT, cls.TYPE, data))


@dataclass(frozen=True, slots=True)
class Data:
    """A sealed packet of a session; `sealed` is the padded packet and its tag."""

    TYPE: ClassVar[int] = 4
    LAYOUT: ClassVar[Struct] = Struct("<IIQ")
    """What stands before `sealed`."""
    OVERHEAD: ClassVar[int] = LAYOUT.size + TAG_LENGTH
    """Bytes that a message has more than its padded packet, and the least it has."""

    receiver_index: int
    counter: int
    sealed: bytes

    def encode(self) -> bytes:
        return self.LAYOUT.pack(self.TYPE, self.receiver_index, self.counter) + self.sealed

    @classmethod
    def decode(cls, data: bytes) -> Self:
        header, sealed = data[: cls.LAYOUT.size], data[cls.LAYOUT.size :]
        if len(sealed) < TAG_LENGTH:
            raise ProtocolError("malformed message")
        receiver_index, counter = _unpack(cls.LAYOUT, cls.TYPE, header)
        return cls(receiver_index, counter, sealed)


Message = Initiation | Response | CookieReply | Data


def decode(data: bytes) -> Message:
    """The message in a UDP payload. Raises ProtocolError if its type or length is none of ours."""
    kind = int.from_bytes(data[:4], "little")
    for message in (Initiation, Response, CookieReply, Data):
        if kind == message.TYPE:
            return message.decode(data)
    raise ProtocolError("malformed message")


def _unpack(layout: Struct, kind: int, data: bytes) -> tuple[Any, ...]:
    if len(data) != layout.size:
        raise ProtocolError("malformed message")
    found, *values = layout.unpack(data)
    if found != kind:
        raise ProtocolError("malformed message")
    return tuple(values)
