"""An endpoint: where a peer's outer packets come from and which of our addresses they reach."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`address` is never an IPv4-mapped IPv6 address: IPv4 is IPv4Address. Nor has it a zone
    (`%eth0`), which is `ifindex`."""

    address: IPv4Address | IPv6Address
    port: int
    local: IPv4Address | IPv6Address | None = None
    """Our address that the peer used last, of the same family; None: the kernel's choice."""
    ifindex: int = 0
    """The device its last packet came in by; 0: unknown."""

    @property
    def zone(self) -> int:
        """The ifindex without which the address says nothing (RFC 4007); 0: it needs none."""
        return self.ifindex if self.address.version == 6 and self.address.is_link_local else 0

    def of_flow(self, known: Endpoint | None, flow_ports: int) -> Endpoint:
        """Where the peer is that a data message came from: here, but of its flow ports the first
        one is that of the endpoint that is `known`."""
        if known is not None and 0 <= self.port - known.port < flow_ports:
            return replace(self, port=known.port)
        return self

    def unbound(self) -> Endpoint:
        """The same, but from where the kernel chooses."""
        return replace(self, local=None, ifindex=self.zone)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"
