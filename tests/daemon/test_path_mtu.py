"""What fits the way to an endpoint, where the kernel is asked or does not answer."""

from __future__ import annotations

import errno
import logging
from ipaddress import ip_address
from typing import cast

import pytest

from ebpfvpn import path_mtu
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.netlink import Netlink
from ebpfvpn.path_mtu import PathMtu, longest_inner

TO = Endpoint(ip_address("192.0.2.2"), 51820)


@pytest.mark.parametrize(
    ("mtu", "version", "inner_mtu", "expected"),
    [
        (1500, 4, 1420, 0),
        (1500, 6, 1420, 0),
        (1499, 6, 1420, 1408),
        (1280, 4, 1420, 1216),
        (92, 4, 1420, 32),
        (76, 4, 1420, 16),
        # Nothing fits, which must not read as if everything did.
        (75, 4, 1420, 16),
        (60, 4, 1420, 16),
        (0, 6, 1420, 16),
    ],
)
def test_longest_inner(mtu: int, version: int, inner_mtu: int, expected: int) -> None:
    assert longest_inner(mtu, version, inner_mtu) == expected


def test_a_kernel_that_does_not_answer_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    error = OSError(errno.ENOBUFS, "no")

    def resolve(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(path_mtu, "resolve", resolve)
    ways = PathMtu(cast(Netlink, None), 0)
    with caplog.at_level(logging.WARNING):
        assert [ways.max_inner(TO, 1420) for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1
    monkeypatch.setattr(path_mtu, "resolve", lambda *_, **__: type("Way", (), {"mtu": 1280}))
    assert ways.max_inner(TO, 1420) == 1216
