from __future__ import annotations

import random
from dataclasses import replace
from hashlib import blake2s
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from ebpfvpn import wire
from ebpfvpn.cookie import CookieChecker, CookieJar
from ebpfvpn.endpoint import Endpoint
from protocol import reference

NOW = 1000.0
PUBLIC_KEY = b"P" * 32
SOURCE = Endpoint(IPv4Address("192.0.2.1"), 51820)
MESSAGE = wire.Response(1, 2, b"e" * 32, b"n" * 16).encode()


@pytest.fixture
def checker() -> CookieChecker:
    return CookieChecker(PUBLIC_KEY, random.Random(1).randbytes)


@pytest.fixture
def jar() -> CookieJar:
    return CookieJar(PUBLIC_KEY)


def test_mac1_is_the_whitepapers(jar: CookieJar) -> None:
    message = jar.add_macs(MESSAGE, NOW)
    key = blake2s(b"mac1----" + PUBLIC_KEY).digest()
    assert message == MESSAGE[:-32] + reference.mac(key, MESSAGE[:-32]) + bytes(16)


def test_a_cookie_gives_a_valid_mac2(checker: CookieChecker, jar: CookieJar) -> None:
    first = jar.add_macs(MESSAGE, NOW)
    assert checker.mac1_is_valid(first)
    assert not checker.mac2_is_valid(first, SOURCE, NOW)
    jar.receive(checker.reply(first, 7, SOURCE, NOW), NOW)
    second = jar.add_macs(MESSAGE, NOW + 5)
    assert checker.mac1_is_valid(second)
    assert checker.mac2_is_valid(second, SOURCE, NOW + 5)


def test_the_reply_is_the_whitepapers(checker: CookieChecker, jar: CookieJar) -> None:
    # Section 5.4.7, with the same random numbers: first the nonce, then the secret.
    message = jar.add_macs(MESSAGE, NOW)
    numbers = random.Random(1)
    nonce, secret = numbers.randbytes(24), numbers.randbytes(32)
    address_and_port = bytes([192, 0, 2, 1]) + (51820).to_bytes(2, "big")
    cookie = reference.mac(secret, address_and_port)
    key = blake2s(b"cookie--" + PUBLIC_KEY).digest()
    sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(cookie, message[-32:-16], nonce, key)
    reply = checker.reply(message, 7, SOURCE, NOW)
    assert reply == wire.CookieReply(7, nonce, sealed)
    jar.receive(reply, NOW)
    second = jar.add_macs(MESSAGE, NOW)
    assert second[-16:] == reference.mac(cookie, second[:-16])


@pytest.mark.parametrize(
    "other",
    [
        replace(SOURCE, port=51821),
        replace(SOURCE, address=IPv4Address("192.0.2.2")),
        replace(SOURCE, address=IPv6Address("2001:db8::1")),
    ],
)
def test_a_cookie_is_of_one_address_and_port(
    checker: CookieChecker, jar: CookieJar, other: Endpoint
) -> None:
    jar.receive(checker.reply(jar.add_macs(MESSAGE, NOW), 7, SOURCE, NOW), NOW)
    assert not checker.mac2_is_valid(jar.add_macs(MESSAGE, NOW), other, NOW)


def test_our_own_address_and_device_do_not_matter(checker: CookieChecker, jar: CookieJar) -> None:
    jar.receive(checker.reply(jar.add_macs(MESSAGE, NOW), 7, SOURCE, NOW), NOW)
    other = replace(SOURCE, local=IPv4Address("192.0.2.9"), ifindex=3)
    assert checker.mac2_is_valid(jar.add_macs(MESSAGE, NOW), other, NOW)


def test_the_secret_is_renewed(checker: CookieChecker, jar: CookieJar) -> None:
    jar.receive(checker.reply(jar.add_macs(MESSAGE, NOW), 7, SOURCE, NOW), NOW)
    message = jar.add_macs(MESSAGE, NOW)
    assert checker.mac2_is_valid(message, SOURCE, NOW + 119.9)
    assert not checker.mac2_is_valid(message, SOURCE, NOW + 120)


def test_a_cookie_is_used_until_shortly_before_the_secret_can_change(
    checker: CookieChecker, jar: CookieJar
) -> None:
    jar.receive(checker.reply(jar.add_macs(MESSAGE, NOW), 7, SOURCE, NOW), NOW)
    assert jar.add_macs(MESSAGE, NOW + 114.9)[-16:] != wire.NO_MAC
    assert jar.add_macs(MESSAGE, NOW + 115)[-16:] == wire.NO_MAC


def test_a_reply_is_taken_once(checker: CookieChecker, jar: CookieJar) -> None:
    reply = checker.reply(jar.add_macs(MESSAGE, NOW), 7, SOURCE, NOW)
    jar.receive(reply, NOW)
    with pytest.raises(wire.ProtocolError, match="unexpected"):
        jar.receive(reply, NOW)


def test_a_reply_to_another_message_is_refused(checker: CookieChecker, jar: CookieJar) -> None:
    reply = checker.reply(jar.add_macs(MESSAGE, NOW), 7, SOURCE, NOW)
    jar.add_macs(wire.Response(1, 3, b"e" * 32, b"n" * 16).encode(), NOW)
    with pytest.raises(wire.ProtocolError, match="authentication failed"):
        jar.receive(reply, NOW)


def test_nothing_is_taken_before_something_is_sent(checker: CookieChecker, jar: CookieJar) -> None:
    with pytest.raises(wire.ProtocolError, match="unexpected"):
        jar.receive(checker.reply(MESSAGE, 7, SOURCE, NOW), NOW)


@given(st.integers(0, len(MESSAGE) - 17), st.integers(0, 7))
def test_mac1_covers_every_bit(position: int, bit: int) -> None:
    checker = CookieChecker(PUBLIC_KEY, random.Random(1).randbytes)
    message = bytearray(CookieJar(PUBLIC_KEY).add_macs(MESSAGE, NOW))
    message[position] ^= 1 << bit
    assert not checker.mac1_is_valid(bytes(message))
