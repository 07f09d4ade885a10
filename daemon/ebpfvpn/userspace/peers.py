"""The peers of the userspace path, by number and by the inner addresses that belong to them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

from ebpfvpn.allowed_ips import AllowedIps
from ebpfvpn.userspace.peer import Peer

Network = IPv4Network | IPv6Network

_MOST_CACHED = 16_384


class Peers(dict[int, Peer]):
    """Peers by number; they come and go by `add` and `remove`."""

    def __init__(self) -> None:
        super().__init__()
        self._allowed_ips = AllowedIps()
        self._networks: dict[int, set[Network]] = {}
        self._owners: dict[Network, int] = {}
        self._by_address: dict[bytes, Peer | None] = {}

    def add(self, peer: Peer) -> None:
        self[peer.number] = peer
        self._networks[peer.number] = set()

    def remove(self, number: int) -> Peer:
        self.set_allowed_ips(number, ())
        del self._networks[number]
        return self.pop(number)

    def set_allowed_ips(self, number: int, networks: Iterable[Network]) -> None:
        """See Datapath.set_allowed_ips."""
        wanted, had = set(networks), self._networks[number]
        if had - wanted:
            self._allowed_ips.remove_peer(number)
            for network in had:
                del self._owners[network]
            had = set()
        for network in wanted - had:
            self._allowed_ips.insert(network, number)
            if (owner := self._owners.get(network)) is not None:
                self._networks[owner].discard(network)
            self._owners[network] = number
        self._networks[number] = wanted
        self._by_address.clear()

    def of_address(self, address: bytes) -> Peer | None:
        """Whose allowed-ips hold it: 4 or 16 bytes."""
        try:
            return self._by_address[address]
        except KeyError:
            pass
        if len(self._by_address) >= _MOST_CACHED:
            self._by_address.clear()
        number = self._allowed_ips.lookup(ip_address(address))
        found = None if number is None else self.get(number)
        self._by_address[address] = found
        return found
