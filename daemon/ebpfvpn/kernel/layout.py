"""The structures of ebpf/layout.h, as the daemon reads and writes them.

A test compares them with the BTF of the compiled objects. The drop reasons are the fields of struct
drops, read from there (btf.py), so that ebpf/drops.h stays the only list of them.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64
from ipaddress import IPv4Address, IPv6Address

LAYOUT = 7
"""Maps of another number are not read: their tunnel goes on beside ours (generation.py)."""

ADDRESS_LENGTH = 16
KEY_LENGTH = 32
MAC_LENGTH = 6
TIMESTAMP_LENGTH = 12
MOST_CPUS = 8

ROUTE_NEIGHBOUR = 1
ROUTE_XDP = 2

EVENT_CONFIRMED = 1
EVENT_ROAMED = 2
EVENT_MESSAGES_USED = 3

SET_CURRENT = 1
SET_NEXT = 2
SET_USABLE = 4
SET_MAX_INNER = 8
SET_TIMESTAMP = 16
SET_FLOW_PORTS = 32

Address = IPv4Address | IPv6Address
_MAPPED = bytes(10) + b"\xff\xff"


class Config(Structure):
    _fields_ = (
        ("mark", c_uint8 * MAC_LENGTH),
        ("listen_port", c_uint16.__ctype_be__),
        ("tun_ifindex", c_uint32),
        ("outer_ifindex", c_uint32),
        ("inner_ifindex", c_uint32),
        ("mtu", c_uint32),
        ("fwmark", c_uint32),
        ("seals_in_threads", c_uint32),
    )


class Peer(Structure):
    _fields_ = (
        ("public_key", c_uint8 * KEY_LENGTH),
        ("current", c_uint32),
        ("next", c_uint32),
        ("usable", c_uint32),
        ("max_inner", c_uint32),
        ("expires", c_uint64),
        ("tx_packets", c_uint64),
        ("tx_bytes", c_uint64),
        ("last_sent", c_uint64),
        ("last_data_sent", c_uint64),
        ("unanswered_since", c_uint64),
        ("rx_packets", c_uint64),
        ("rx_bytes", c_uint64),
        ("last_received", c_uint64),
        ("last_data_received", c_uint64),
        ("unacknowledged_since", c_uint64),
        ("timestamp", c_uint8 * TIMESTAMP_LENGTH),
        ("flow_ports", c_uint32),
        ("replayed", c_uint64),
        ("late", c_uint64),
        ("max_lateness", c_uint64),
        ("heavy_until", c_uint64),
        ("looked", c_uint64),
        ("packets_then", c_uint64),
    )


class Session(Structure):
    _fields_ = (
        ("peer", c_uint32),
        ("remote_index", c_uint32),
        ("created", c_uint64),
        ("expires", c_uint64),
        ("send_counter", c_uint64),
        ("send_limit", c_uint64),
        ("rekey_at", c_uint64),
        ("receive_highest", c_uint64),
        ("initiator", c_uint32),
        ("reserved", c_uint32),
    )


class SessionKeys(Structure):
    _fields_ = (("send", c_uint8 * KEY_LENGTH), ("receive", c_uint8 * KEY_LENGTH))


class WindowGeometry(Structure):
    _fields_ = (("size", c_uint32), ("order", c_uint32))


class CpuList(Structure):
    _fields_ = (("count", c_uint32), ("cpus", c_uint32 * MOST_CPUS))


class Spread(Structure):
    _fields_ = (("since", c_uint64), ("bytes", c_uint64), ("busy_until", c_uint64))


class CpuEntry(Structure):
    """The kernel's struct bpf_cpumap_val: an entry of `cpus`."""

    _fields_ = (("queue", c_uint32), ("program", c_uint32))


class Endpoint(Structure):
    _fields_ = (
        ("lock", c_uint32),
        ("ifindex", c_uint32),
        ("remote", c_uint8 * ADDRESS_LENGTH),
        ("local", c_uint8 * ADDRESS_LENGTH),
        ("remote_port", c_uint16.__ctype_be__),
        ("reserved", c_uint16 * 3),
    )


class RouteKey(Structure):
    _fields_ = (("remote", c_uint8 * ADDRESS_LENGTH), ("local", c_uint8 * ADDRESS_LENGTH))


class Route(Structure):
    _fields_ = (
        ("ifindex", c_uint32),
        ("mtu", c_uint32),
        ("flags", c_uint32),
        ("source_mac", c_uint8 * MAC_LENGTH),
        ("destination_mac", c_uint8 * MAC_LENGTH),
        ("gateway", c_uint8 * ADDRESS_LENGTH),
    )


class AllowedIp4(Structure):
    _fields_ = (("prefix_length", c_uint32), ("address", c_uint8 * 4))


class AllowedIp6(Structure):
    _fields_ = (("prefix_length", c_uint32), ("address", c_uint8 * 16))


class Event(Structure):
    _fields_ = (
        ("type", c_uint32),
        ("peer", c_uint32),
        ("local_index", c_uint32),
        ("reserved", c_uint32),
    )


class SetPeer(Structure):
    """What the program `set_peer` is given: what `fields` (SET_*) names is written in place."""

    _fields_ = (
        ("peer", c_uint32),
        ("fields", c_uint32),
        ("current", c_uint32),
        ("next", c_uint32),
        ("usable", c_uint32),
        ("max_inner", c_uint32),
        ("expires", c_uint64),
        ("timestamp", c_uint8 * TIMESTAMP_LENGTH),
        ("flow_ports", c_uint32),
    )


class WipeKeys(Structure):
    """What the program `wipe_keys` is given."""

    _fields_ = (("local_index", c_uint32),)


STRUCTURES: dict[str, type[Structure]] = {
    "config": Config,
    "peer": Peer,
    "session": Session,
    "session_keys": SessionKeys,
    "window_geometry": WindowGeometry,
    "cpu_list": CpuList,
    "spread": Spread,
    "endpoint": Endpoint,
    "route_key": RouteKey,
    "route": Route,
    "allowed_ip4": AllowedIp4,
    "allowed_ip6": AllowedIp6,
    "event": Event,
    "set_peer": SetPeer,
    "wipe_keys": WipeKeys,
}


def number(value: int) -> bytes:
    """A key or value that is one __u32."""
    return bytes(c_uint32(value))


def from_number(raw: bytes) -> int:
    """The other way round."""
    return int.from_bytes(raw, sys.byteorder)


def octets(value: bytes) -> ctypes.Array[c_uint8]:
    """For a field that is an array of __u8."""
    return (c_uint8 * len(value)).from_buffer_copy(value)


def pack_address(address: Address | None) -> bytes:
    """16 bytes, IPv4 mapped; all zero: none."""
    if address is None:
        return bytes(ADDRESS_LENGTH)
    return _MAPPED + address.packed if address.version == 4 else address.packed


def unpack_address(packed: bytes) -> Address | None:
    if not any(packed):
        return None
    if packed.startswith(_MAPPED):
        return IPv4Address(packed[len(_MAPPED) :])
    return IPv6Address(packed)
