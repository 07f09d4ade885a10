from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2s
from importlib.resources import files

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import noise, wire
from ebpfvpn.cookie import CookieJar
from protocol import reference

KEYS = st.binary(min_size=32, max_size=32)

AEAD_FIELDS = {"KEY", "IV", "AAD", "TAG", "PLAINTEXT", "CIPHERTEXT"}

# Public keys whose every multiple is zero: https://cr.yp.to/ecdh.html#validate
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


def vectors(path: str) -> Iterator[dict[str, str]]:
    """The vectors of a file of cryptography_vectors: `name = value` lines, COUNT before each."""
    vector: dict[str, str] = {}
    for line in files("cryptography_vectors").joinpath(path).read_text().splitlines():
        name, equals, value = (part.strip() for part in line.partition("="))
        if name == "COUNT" and vector:
            yield vector
            vector = {}
        elif equals and not line.startswith("#"):
            vector[name.upper()] = value
    yield vector


def test_x25519_vectors() -> None:
    count = 0
    for vector in vectors("asymmetric/X25519/rfc7748.txt"):
        key = noise.PrivateKey(bytes.fromhex(vector["INPUT_SCALAR"]))
        assert key.exchange(bytes.fromhex(vector["INPUT_U"])).hex() == vector["OUTPUT_U"]
        count += 1
    assert count >= 3


def test_chacha20_poly1305_vectors() -> None:
    count = 0
    for vector in vectors("ciphers/ChaCha20Poly1305/openssl.txt"):
        fields = {name: bytes.fromhex(text) for name, text in vector.items() if name in AEAD_FIELDS}
        if len(fields["IV"]) != 12 or len(fields["TAG"]) != 16:
            continue
        cipher = ChaCha20Poly1305(fields["KEY"])
        sealed = fields["CIPHERTEXT"] + fields["TAG"]
        if "RESULT" in vector:
            with pytest.raises(InvalidTag):
                cipher.decrypt(fields["IV"], sealed, fields["AAD"])
        else:
            assert cipher.encrypt(fields["IV"], fields["PLAINTEXT"], fields["AAD"]) == sealed
        count += 1
    assert count >= 3


@pytest.mark.parametrize(
    ("key", "data", "outputs"),
    [
        (
            b"test-key",
            b"test-input",
            [
                "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
                "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
                "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
            ],
        ),
        (
            b"wireguard",
            b"wireguard",
            [
                "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
                "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
                "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
            ],
        ),
        (
            b"",
            b"",
            [
                "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
                "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
                "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
            ],
        ),
    ],
)
def test_kdf_vectors_of_wireguard_go(key: bytes, data: bytes, outputs: list[str]) -> None:
    for number in (1, 2, 3):
        assert [output.hex() for output in noise.kdf(key, data, number)] == outputs[:number]


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_hmac_blake2s_is_rfc_2104(key: bytes, data: bytes) -> None:
    assert hmac.digest(key, data, blake2s) == reference.hmac(key, data)


@dataclass
class Pair:
    """Both ends of one handshake, and what the whitepaper says their messages are."""

    initiator: noise.PrivateKey
    responder: noise.PrivateKey
    to_responder: noise.Remote
    to_initiator: noise.Remote
    initiation: wire.Initiation
    pending: noise.PendingInitiation
    responder_ephemeral: noise.PrivateKey
    expected: reference.Handshake

    def find(self, public_key: bytes) -> noise.Remote | None:
        return self.to_initiator if public_key == self.initiator.public else None

    def respond(self) -> tuple[wire.Response, noise.TransportKeys]:
        consumed = noise.consume_initiation(self.responder, self.initiation, self.find)
        return noise.create_response(consumed, self.responder_ephemeral, 0x55667788)


def handshake(secrets: list[bytes], timestamp: bytes) -> Pair:
    initiator, responder, e_i, e_r = (noise.PrivateKey(secret) for secret in secrets[:4])
    to_responder = noise.remote(initiator, responder.public, secrets[4])
    to_initiator = noise.remote(responder, initiator.public, secrets[4])
    initiation, pending = noise.create_initiation(
        initiator, to_responder, e_i, 0x11223344, timestamp
    )
    expected = reference.handshake(
        secrets[0],
        secrets[1],
        secrets[2],
        secrets[3],
        secrets[4],
        timestamp,
        0x11223344,
        0x55667788,
    )
    return Pair(
        initiator, responder, to_responder, to_initiator, initiation, pending, e_r, expected
    )


FIXED = [bytes([number]) * 32 for number in (1, 2, 3, 4, 5)]
FIXED_TIME = bytes.fromhex("400000000000000a00000000")


@pytest.fixture
def fixed() -> Pair:
    return handshake(FIXED, FIXED_TIME)


@given(st.lists(KEYS, min_size=5, max_size=5), st.binary(min_size=12, max_size=12))
def test_every_handshake_equals_the_whitepapers(secrets: list[bytes], timestamp: bytes) -> None:
    ends = handshake(secrets, timestamp)
    initiation = CookieJar(ends.responder.public).add_macs(ends.initiation.encode(), 0.0)
    assert initiation == ends.expected.initiation
    consumed = noise.consume_initiation(ends.responder, ends.initiation, ends.find)
    assert consumed.timestamp == timestamp
    message, responder_keys = ends.respond()
    response = CookieJar(ends.initiator.public).add_macs(message.encode(), 0.0)
    assert response == ends.expected.response
    initiator_keys = noise.consume_response(ends.initiator, ends.pending, message)
    assert initiator_keys.send == responder_keys.receive == ends.expected.initiator_sends
    assert initiator_keys.receive == responder_keys.send == ends.expected.responder_sends


def test_a_handshake_with_fixed_keys_has_these_bytes(fixed: Pair) -> None:
    message, keys = fixed.respond()
    assert fixed.initiation.encode().hex() == (
        "01000000443322115dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22"
        "0a26599fb2188bb723276fc173af67616c817fc32fd04d686d87ec152fac10eed2bda3bb3b6f1ede"
        "d6977684082284d817fb46b3ccc89ae3bd273ed6525c1b131ec36489604dcf23d080384d00000000"
        "00000000000000000000000000000000000000000000000000000000"
    )
    assert message.encode().hex() == (
        "020000008877665544332211ac01b2209e86354fb853237b5de0f4fab13c7fcbf433a61c01936961"
        "7fecf10b6dcfbb685c8bddd302b5a68750a623990000000000000000000000000000000000000000"
        "000000000000000000000000"
    )
    assert keys.receive.hex() == "a18cc809fd05b6b5f99644cf506f89dce368c2f54a9dbeb9a384f36c274317ef"
    assert keys.send.hex() == "b1aa1b797d3a45da97552b8084ade493aa767f15af95854bc86557f6dacd851d"


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.mark.parametrize("field", ["ephemeral", "encrypted_static", "encrypted_timestamp"])
@pytest.mark.parametrize("position", [0, 15, -1])
def test_a_changed_initiation_is_refused(fixed: Pair, field: str, position: int) -> None:
    value = getattr(fixed.initiation, field)
    changed = flipped(value, position % len(value))
    message = replace(fixed.initiation, **{field: changed})  # type: ignore[arg-type]
    with pytest.raises(wire.ProtocolError):
        noise.consume_initiation(fixed.responder, message, fixed.find)


def test_a_changed_response_is_refused_and_the_true_one_still_taken(fixed: Pair) -> None:
    message, keys = fixed.respond()
    for changed in (
        replace(message, ephemeral=flipped(message.ephemeral, 5)),
        replace(message, encrypted_nothing=flipped(message.encrypted_nothing, 5)),
    ):
        with pytest.raises(wire.ProtocolError):
            noise.consume_response(fixed.initiator, fixed.pending, changed)
    assert noise.consume_response(fixed.initiator, fixed.pending, message).send == keys.receive


def test_another_preshared_key_is_refused(fixed: Pair) -> None:
    fixed.to_initiator = replace(fixed.to_initiator, preshared_key=b"6" * 32)
    message, _ = fixed.respond()
    with pytest.raises(wire.ProtocolError, match="authentication failed"):
        noise.consume_response(fixed.initiator, fixed.pending, message)


def test_an_unknown_initiator_is_refused(fixed: Pair) -> None:
    with pytest.raises(wire.ProtocolError, match="unknown peer"):
        noise.consume_initiation(fixed.responder, fixed.initiation, lambda public_key: None)


def test_an_initiator_without_the_static_key_is_refused(fixed: Pair) -> None:
    # Everything but the static-static secret can be made by who only knows both public keys.
    forged = replace(fixed.to_responder, static_static=bytes(32))
    message, _ = noise.create_initiation(
        fixed.initiator, forged, fixed.responder_ephemeral, 1, FIXED_TIME
    )
    with pytest.raises(wire.ProtocolError, match="authentication failed"):
        noise.consume_initiation(fixed.responder, message, fixed.find)


@pytest.mark.parametrize("public_key", LOW_ORDER)
def test_low_order_public_keys_are_refused(fixed: Pair, public_key: str) -> None:
    point = bytes.fromhex(public_key)
    message, _ = fixed.respond()
    refused = pytest.raises(wire.ProtocolError, match="low order")
    with refused:
        noise.remote(fixed.initiator, point)
    with refused:
        noise.consume_initiation(
            fixed.responder, replace(fixed.initiation, ephemeral=point), fixed.find
        )
    with refused:
        noise.consume_response(fixed.initiator, fixed.pending, replace(message, ephemeral=point))


def test_no_secret_is_shown(fixed: Pair) -> None:
    _, keys = fixed.respond()
    consumed = noise.consume_initiation(fixed.responder, fixed.initiation, fixed.find)
    shown = repr([keys, consumed, fixed.pending, fixed.to_responder])
    secrets = [
        keys.send,
        keys.receive,
        fixed.to_responder.preshared_key,
        fixed.to_responder.static_static,
    ]
    assert not any(repr(secret)[2:-1] in shown or secret.hex() in shown for secret in secrets)
