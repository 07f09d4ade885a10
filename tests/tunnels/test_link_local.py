"""Endpoints with IPv6 link-local addresses, which mean nothing without their device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from both_paths import in_userspace
from echo import ping
from netns import Namespace, address, namespace
from tunnels.nodes import INNER, INNER6, MODES, connect, introduce, node, wait_for
from tunnels.traffic import tcp, udp_socket

OUTER = ("fe80::1", "fe80::2")
ENDPOINTS = (f"{OUTER[0]}%under0", f"{OUTER[1]}%under0")


@contextlib.contextmanager
def link(mtu: int = 1500) -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces with nothing but these addresses between them. Their first devices, which
    would be taken for want of a better one, lead nowhere."""
    with namespace() as a, namespace() as b, namespace() as nowhere:
        for i, ns in enumerate((a, b)):
            connect(ns, nowhere, f"first{i}", mtu)
        connect(a, b, "under0", mtu)
        for i, ns in enumerate((a, b)):
            address(ns, "under0", f"{OUTER[i]}/64")
        yield a, b


@pytest.mark.parametrize("mode", MODES)
def test_link_local_endpoints(mode: str) -> None:
    with link() as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, ENDPOINTS, AttachMode=mode)
        one.up()
        # Its first initiation stays unanswered, so it lets the kernel choose its address anew.
        with udp_socket(a, INNER[0]) as near:
            near.sendto(b"early", (INNER[1], 4000))
            wait_for(lambda: one.show()["daemon"].get("handshake_sent"))
            other.up()
            with udp_socket(b, INNER[1], 4000) as far:
                far.settimeout(12)
                assert far.recv(100) == b"early"
        for inner in (INNER, INNER6):
            assert ping(a, inner[1]) == ping(b, inner[0]) == 3
            tcp(a, b, inner[1], 1 << 20)
            tcp(b, a, inner[0], 1 << 20)
        for each in (one, other):
            assert each.failures() == 0
            assert "handshake_send_failed" not in each.show()["daemon"]


def test_fragments_to_a_link_local_endpoint() -> None:
    """What is too long for its way and must not be shorter is left to the kernel to fragment."""
    with link(1280) as (a, b), node(a) as one, node(b) as other:
        introduce(one, other, ENDPOINTS, MTU=1280)
        one.up()
        other.up()
        tcp(a, b, INNER6[1], 1 << 20)
        assert "fragmented_send_failed" not in one.show()["daemon"]
        assert in_userspace() or one.show()["daemon"]["sent_fragmented"]
