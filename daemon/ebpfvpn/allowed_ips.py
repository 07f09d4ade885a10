"""Allowed-ips: which peer an inner address belongs to, by the longest prefix that matches."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network


class AllowedIps:
    """One table per IP version and prefix length: a lookup costs as many steps as there are
    lengths in use, however many networks there are."""

    def __init__(self) -> None:
        self._tables: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}
        """IP version, then prefix length, longest first, then prefix: peer number."""

    def insert(self, network: IPv4Network | IPv6Network, peer: int) -> None:
        """A network that another peer has moves to this one."""
        length = network.prefixlen
        prefix = int(network.network_address) >> (network.max_prefixlen - length)
        tables = self._tables[network.version]
        if length not in tables:
            tables[length] = {}
            self._tables[network.version] = dict(sorted(tables.items(), reverse=True))
        self._tables[network.version][length][prefix] = peer

    def lookup(self, address: IPv4Address | IPv6Address) -> int | None:
        number = int(address)
        for length, peers in self._tables[address.version].items():
            peer = peers.get(number >> (address.max_prefixlen - length))
            if peer is not None:
                return peer
        return None

    def remove_peer(self, peer: int) -> None:
        """Costs a look at every network."""
        for version, tables in self._tables.items():
            kept = {
                length: {prefix: owner for prefix, owner in peers.items() if owner != peer}
                for length, peers in tables.items()
            }
            self._tables[version] = {length: peers for length, peers in kept.items() if peers}
