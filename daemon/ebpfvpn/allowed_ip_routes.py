"""Routes to allowed-ips, and the rules that a default route needs."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from ebpfvpn.netlink import (
    FAMILIES,
    MAIN_TABLE,
    PROTOCOL,
    Netlink,
    Network,
    family_of,
    ignoring,
)

Table = Literal["auto", "off"] | int

_FIRST_FREE_TABLE = 51820  # wg-quick's
_FIB_RULE_INVERT = 2
_STRICT = 1


class AllowedIpRoutes:
    """Routes to allowed-ips through the tunnel, as wg-quick makes them.

    With Table "auto" they are in the main table, except a default route: that one is in a table of
    its own, which rules make everything use that does not bear the tunnel's own mark (its number),
    while more specific routes of the main table still hold.
    """

    def __init__(self, netlink: Netlink, ifindex: int, table: Table) -> None:
        self._netlink = netlink
        self._ifindex = ifindex
        self._table = table

    def fwmark_needed(self, networks: Iterable[Network]) -> bool:
        """Whether `add` needs a mark: there is a default route, and Table is "auto"."""
        return self._table == "auto" and any(n.prefixlen == 0 for n in networks)

    def filtered(self, networks: Iterable[Network]) -> bool:
        """Whether a device filters strictly by the reverse path, which is the tunnel itself if that
        has a default route: then nothing comes from its endpoints, unless a program of the kernel
        path marks it."""
        if not any(self._is_default(n) and n.version == 4 for n in networks):
            return False
        modes = {}
        # Devices may come and go meanwhile.
        with contextlib.suppress(OSError):
            for path in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
                modes[path.parent.name] = int(path.read_text())
        tunnel = {link.name for link in [self._netlink.link(self._ifindex)] if link}
        others = modes.keys() - {"all", "default", "lo"} - tunnel
        return any(max(modes[name], modes.get("all", 0)) == _STRICT for name in others)

    def add(self, networks: Iterable[Network], fwmark: int) -> None:
        """`fwmark` is what the tunnel's own packets bear; see `free_table`. What an earlier daemon
        made is left. OSError."""
        if self._table == "off":
            return
        # The longest first, as wg-quick: the default route last.
        for network in sorted(set(networks), key=lambda n: -n.prefixlen):
            if self._is_default(network) and not fwmark:
                raise OSError(errno.EINVAL, "a default route needs a FwMark")
            self._netlink.add_route(network, self._ifindex, self._table_of(network, fwmark))
            if self._is_default(network):
                self._add_rules(family_of(network), fwmark)

    def remove(
        self, before: Iterable[Network], fwmark_before: int, networks: Iterable[Network],
        fwmark: int,
    ) -> None:  # fmt: skip
        """What an earlier daemon added for `before`, except what `add` added now. All routes go
        with the device, but rules do not."""
        if self._table == "off":
            return
        wanted = {(network, self._table_of(network, fwmark)) for network in networks}
        for network in before:
            table = self._table_of(network, fwmark_before)
            if (network, table) in wanted:
                continue
            if self._is_default(network):
                self.remove_rules(self._netlink, fwmark_before, (family_of(network),))
            self._netlink.delete_route(network, self._ifindex, table)

    def _is_default(self, network: Network) -> bool:
        return self._table == "auto" and network.prefixlen == 0

    def _table_of(self, network: Network, fwmark: int) -> int:
        if self._is_default(network):
            return fwmark
        return MAIN_TABLE if self._table == "auto" else int(self._table)

    def _add_rules(self, family: int, fwmark: int) -> None:
        if _rules(self._netlink, family, fwmark):
            return
        # Each rule goes before the ones that are there, so the second is asked first. It too
        # bears the mark, which makes no difference but tells whose it is.
        self._add_rule(family, fwmark, table=fwmark)
        self._add_rule(family, fwmark, table=MAIN_TABLE, FRA_SUPPRESS_PREFIXLEN=0)
        if family == socket.AF_INET:
            # Else strict reverse path filtering drops the answers to marked packets.
            Path("/proc/sys/net/ipv4/conf/all/src_valid_mark").write_text("1\n")

    def _add_rule(self, family: int, fwmark: int, **rule: object) -> None:
        """Before all others but the local table's, as the kernel places a rule by itself."""
        others = [
            other.get_attr("FRA_PRIORITY") or 0
            for other in self._netlink.request("get_rules", family=family)
        ]
        priority = min((p for p in others if p), default=32766) - 1
        self._netlink.request(
            "rule", "add", family=family, priority=priority, fwmark=fwmark, flags=_FIB_RULE_INVERT,
            FRA_PROTOCOL=PROTOCOL, **rule,
        )  # fmt: skip

    @staticmethod
    def remove_rules(netlink: Netlink, fwmark: int, families: Iterable[int] = FAMILIES) -> None:
        """Those of the tunnel with this mark."""
        for family in families:
            for priority in _rules(netlink, family, fwmark):
                with ignoring(errno.ENOENT):
                    netlink.request("rule", "del", family=family, priority=priority,
                                    FRA_PROTOCOL=PROTOCOL)  # fmt: skip


def remove_orphaned_rules(netlink: Netlink) -> None:
    """Those of tunnels whose device is gone, and with it the routes that they led to: a daemon was
    killed that moved the packets itself."""
    for family in FAMILIES:
        marks = {
            rule.get_attr("FRA_FWMARK")
            for rule in netlink.request("get_rules", family=family)
            if rule.get_attr("FRA_PROTOCOL") == PROTOCOL
        }
        # A start makes the route before the rules.
        for fwmark in marks - _tables(netlink, family) if marks else ():
            AllowedIpRoutes.remove_rules(netlink, fwmark, (family,))


def _rules(netlink: Netlink, family: int, fwmark: int) -> list[int]:
    """Priorities of a tunnel's rules."""
    return [
        rule.get_attr("FRA_PRIORITY")
        for rule in netlink.request("get_rules", family=family)
        if rule.get_attr("FRA_PROTOCOL") == PROTOCOL and rule.get_attr("FRA_FWMARK") == fwmark
    ]


def free_table(netlink: Netlink) -> int:
    """The first routing table from 51820 on that is empty: a mark and table for default routes
    where none is configured."""
    used = set().union(*(_tables(netlink, family) for family in FAMILIES))
    table = _FIRST_FREE_TABLE
    while table in used:
        table += 1
    return table


def _tables(netlink: Netlink, family: int) -> set[int]:
    """Those that are not empty."""
    return {
        message.get_attr("RTA_TABLE") or message["table"]
        for message in netlink.request("get_routes", family=family)
    }
