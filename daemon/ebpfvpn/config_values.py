"""Values of configuration keys, as wg(8) and wg-quick(8) have them.

Each parser takes a value without white space. Its ValueError's text goes behind the key's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import (
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
)
from typing import NamedTuple


class HostPort(NamedTuple):
    """An endpoint as written: `host` is an address without brackets, or an unresolved name."""

    host: str
    port: int


def quote(value: str) -> str:
    """For messages: a key that was put in the wrong place is not shown."""
    if re.search(r"[A-Za-z0-9+/]{32,}", value):
        return "this (hidden, it may be a key)"
    return repr(value if len(value) <= 60 else value[:60] + "...")


def number(low: int, high: int, *, hexadecimal: bool = False, **names: int) -> Callable[[str], int]:
    """A parser of a decimal (or also 0x) number from low to high, or of one of the names."""
    expected = " or ".join([*(repr(name) for name in names), f"a number from {low} to {high}"])

    def parse_number(value: str) -> int:
        if value.lower() in names:
            return names[value.lower()]
        number = -1
        if re.fullmatch(r"[0-9]{1,20}", value):
            number = int(value)
        elif hexadecimal and re.fullmatch(r"0x[0-9a-fA-F]{1,8}", value):
            number = int(value, 16)
        if not low <= number <= high:
            raise ValueError(f"must be {expected}, not {quote(value)}")
        return number

    return parse_number


def table(value: str) -> int | str:
    if value.lower() in ("auto", "off"):
        return value.lower()
    try:
        return number(1, 2**32 - 1, hexadecimal=True)(value)
    except ValueError:
        raise ValueError(f"must be 'auto', 'off' or a table's number, not {quote(value)}") from None


def choice(*choices: str) -> Callable[[str], str]:
    """A parser of one of several words."""
    expected = f"{', '.join(choices[:-1])} or {choices[-1]}"

    def parse_choice(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"must be {expected}, not {quote(value)}")
        return value.lower()

    return parse_choice


def addresses(value: str) -> tuple[IPv4Interface | IPv6Interface, ...]:
    """Addresses with their prefix lengths, separated by commas; without one, the whole address."""
    return tuple(_address(item) for item in value.split(",")) if value else ()


def _address(item: str) -> IPv4Interface | IPv6Interface:
    # The module would also take netmasks and scopes, which wg refuses.
    if re.fullmatch(r"[0-9a-fA-F:.]+(/[0-9]{1,3})?", item):
        try:
            return ip_interface(item)
        except ValueError:
            pass
    raise ValueError(f"must be like 10.0.0.1/24 or fd00::1/64, not {quote(item)}")


def networks(value: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(address.network for address in addresses(value))


def endpoint(value: str) -> HostPort:
    """HOST:PORT, ADDRESS:PORT or [ADDRESS]:PORT; as in wg(8), IPv6 without brackets too."""
    bracketed = re.fullmatch(r"\[(.*)\]:(.*)", value)
    host, _, port = value.rpartition(":")
    if bracketed:
        host, port = bracketed.groups()
    if not _is_host(host) or (bracketed and ":" not in host):
        raise ValueError(f"must be host:port or [IPv6 address]:port, not {quote(value)}")
    try:
        return HostPort(host, number(1, 65535)(port))
    except ValueError as error:
        raise ValueError(f"the port {error}") from None


def _is_host(host: str) -> bool:
    if ":" in host or re.fullmatch(r"[0-9.]+", host):
        try:
            return ip_address(host).version == (6 if ":" in host else 4)
        except ValueError:
            return False
    return len(host) <= 253 and bool(re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*)", host))
