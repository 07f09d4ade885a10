from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpfvpn.allowed_ips import AllowedIps

# Few bits are random, so that networks meet and nest.
ADDRESSES = st.one_of(
    st.integers(0, 15).map(lambda low: IPv4Address(0x0A000000 | low << 4 | low)),
    st.integers(0, 15).map(lambda low: IPv6Address(0xFD << 120 | low << 60 | low)),
)


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network | IPv6Network:
    address = draw(ADDRESSES)
    length = draw(st.integers(0, address.max_prefixlen))
    return ip_network((address, length), strict=False)


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.1", 3),
        ("192.0.2.2", 2),
        ("192.0.3.1", 1),
        ("2001:db8::1", 5),
        ("2001:db9::1", None),
    ],
)
def test_the_longest_prefix_wins(address: str, peer: int | None) -> None:
    table = AllowedIps()
    table.insert(IPv4Network("0.0.0.0/0"), 1)
    table.insert(IPv4Network("192.0.2.1/32"), 3)
    table.insert(IPv4Network("192.0.2.0/24"), 2)
    table.insert(IPv6Network("2001:db8::/32"), 5)
    assert table.lookup(ip_address(address)) == peer


@given(
    st.lists(st.tuples(networks(), st.integers(0, 3)), max_size=20),
    st.none() | st.integers(0, 3),
    st.lists(ADDRESSES, min_size=1),
)
def test_lookup_is_a_search_through_all_networks(
    entries: list[tuple[IPv4Network | IPv6Network, int]],
    removed: int | None,
    addresses: list[IPv4Address | IPv6Address],
) -> None:
    table = AllowedIps()
    model: dict[IPv4Network | IPv6Network, int] = {}
    for network, peer in entries:
        table.insert(network, peer)
        model[network] = peer
    if removed is not None:
        table.remove_peer(removed)
        model = {network: peer for network, peer in model.items() if peer != removed}
    for address in addresses:
        holding = [network for network in model if address in network]
        longest = max(holding, key=lambda network: network.prefixlen, default=None)
        assert table.lookup(address) == (model[longest] if longest else None)
