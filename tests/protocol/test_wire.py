from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn import wire

INDEX = st.integers(0, 2**32 - 1)


def test_layouts_have_the_lengths_of_the_whitepaper() -> None:
    assert wire.Initiation.LAYOUT.size == 148
    assert wire.Response.LAYOUT.size == 92
    assert wire.CookieReply.LAYOUT.size == 64
    assert wire.Data.LAYOUT.size == 16


def test_fields_lie_where_the_whitepaper_has_them() -> None:
    initiation = wire.Initiation(
        0x04030201, b"e" * 32, b"s" * 48, b"t" * 28, b"1" * 16, b"2" * 16
    ).encode()
    assert initiation[:8] == b"\1\0\0\0\1\2\3\4"
    assert initiation[8:] == b"e" * 32 + b"s" * 48 + b"t" * 28 + b"1" * 16 + b"2" * 16
    response = wire.Response(1, 2, b"e" * 32, b"n" * 16, b"1" * 16, b"2" * 16).encode()
    assert response[:12] == b"\2\0\0\0\1\0\0\0\2\0\0\0"
    assert response[12:] == b"e" * 32 + b"n" * 16 + b"1" * 16 + b"2" * 16
    reply = wire.CookieReply(1, b"n" * 24, b"c" * 32).encode()
    assert reply == b"\3\0\0\0\1\0\0\0" + b"n" * 24 + b"c" * 32
    data = wire.Data(1, 0x0807060504030201, b"x" * 16).encode()
    assert data == b"\4\0\0\0\1\0\0\0\1\2\3\4\5\6\7\x08" + b"x" * 16


@given(
    st.one_of(
        st.builds(
            wire.Initiation,
            INDEX,
            st.binary(min_size=32, max_size=32),
            st.binary(min_size=48, max_size=48),
            st.binary(min_size=28, max_size=28),
            st.binary(min_size=16, max_size=16),
            st.binary(min_size=16, max_size=16),
        ),
        st.builds(
            wire.Response,
            INDEX,
            INDEX,
            st.binary(min_size=32, max_size=32),
            st.binary(min_size=16, max_size=16),
            st.binary(min_size=16, max_size=16),
            st.binary(min_size=16, max_size=16),
        ),
        st.builds(
            wire.CookieReply,
            INDEX,
            st.binary(min_size=24, max_size=24),
            st.binary(min_size=32, max_size=32),
        ),
        st.builds(wire.Data, INDEX, st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=99)),
    )
)
def test_decode_is_the_inverse_of_encode(message: wire.Message) -> None:
    assert wire.decode(message.encode()) == message


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_protocol_error(data: bytes) -> None:
    with contextlib.suppress(wire.ProtocolError):
        wire.decode(data)


@given(st.integers(0, 5), st.integers(0, 200))
def test_only_the_right_length_is_taken(kind: int, length: int) -> None:
    data = (kind.to_bytes(4, "little") + bytes(length))[:length]
    if (kind, length) in {(1, 148), (2, 92), (3, 64)} or (kind == 4 and length >= 32):
        assert wire.decode(data).encode() == data
    else:
        with pytest.raises(wire.ProtocolError):
            wire.decode(data)


@pytest.mark.parametrize("position", [1, 2, 3])
def test_reserved_bytes_must_be_zero(position: int) -> None:
    data = bytearray(wire.CookieReply(1, bytes(24), bytes(32)).encode())
    data[position] = 1
    with pytest.raises(wire.ProtocolError):
        wire.decode(bytes(data))
