"""Netlink without pyroute2: multicast groups, and the generic family "netdev", which tells what the
XDP of a device can do (Linux 6.3 and newer)."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Mapping

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_GENERIC = 16
_GENL_CONTROL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_FAMILY_ID, _CTRL_FAMILY_NAME, _CTRL_GROUPS = 1, 2, 7
_CTRL_GROUP_NAME, _CTRL_GROUP_ID = 1, 2
_NETDEV_CMD_DEV_GET, _NETDEV_CMD_QUEUE_GET = 1, 10
_NETDEV_IFINDEX, _NETDEV_XDP_FEATURES = 1, 3
_QUEUE_ID, _QUEUE_IFINDEX, _QUEUE_TYPE = 1, 2, 3
_QUEUE_RX = 0


def messages(data: bytes) -> Iterable[tuple[int, bytes]]:
    """Type and payload of each netlink message in a datagram (struct nlmsghdr)."""
    while len(data) >= 16:
        length, kind = struct.unpack_from("=IH", data)
        if not 16 <= length <= len(data):
            return
        yield kind, data[16:length]
        data = data[-(-length // 4) * 4 :]


def attributes(data: bytes) -> dict[int, bytes]:
    """Netlink attributes (struct nlattr) by type, without the flags of nesting."""
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[-(-length // 4) * 4 :]
    return found


def subscribe(protocol: int, groups: Iterable[int]) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


def _generic(family: int, command: int, asked: Mapping[int, bytes]) -> dict[int, bytes]:
    """Asks a generic netlink family with attributes; those of its answer. OSError; with ENOENT
    where there is none, which is what Linux 6.8 to 6.12 say of a device that is down."""
    body = struct.pack("=BBH", command, 1, 0)
    for attribute, value in asked.items():
        body += struct.pack("=HH", 4 + len(value), attribute) + value + bytes(-len(value) % 4)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_GENERIC) as sock:
        sock.bind((0, 0))
        sock.send(struct.pack("=IHHII", 16 + len(body), family, 1, 1, 0) + body)
        kind, payload = next(iter(messages(sock.recv(65536))), (0, b""))
    if not payload:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if kind == 2:  # NLMSG_ERROR
        code = -struct.unpack_from("=i", payload)[0]
        raise OSError(code, os.strerror(code))
    return attributes(payload[4:])


def _netdev_family() -> dict[int, bytes]:
    """OSError with ENOENT: the kernel is older than 6.3."""
    return _generic(_GENL_CONTROL, _CTRL_CMD_GETFAMILY, {_CTRL_FAMILY_NAME: b"netdev\0"})


def subscribe_features() -> socket.socket:
    groups = attributes(_netdev_family()[_CTRL_GROUPS])
    for group in map(attributes, groups.values()):
        if group[_CTRL_GROUP_NAME] == b"mgmt\0":
            (identity,) = struct.unpack("=I", group[_CTRL_GROUP_ID])
            return subscribe(_NETLINK_GENERIC, (identity,))
    raise OSError(errno.ENOENT, "no multicast group mgmt")


def xdp_features(ifindex: int) -> int | None:
    """NETDEV_XDP_ACT_* bits of a device, in the namespace of this thread; None: the kernel does
    not tell (before 6.3)."""
    try:
        (family,) = struct.unpack("=H", _netdev_family()[_CTRL_FAMILY_ID])
    except OSError:
        return None
    answer = _generic(family, _NETDEV_CMD_DEV_GET, {_NETDEV_IFINDEX: struct.pack("=I", ifindex)})
    return int.from_bytes(answer[_NETDEV_XDP_FEATURES], "little")


def has_one_receive_queue(ifindex: int) -> bool:
    """Whether a device that is up, in the namespace of this thread, has no second receive queue in
    use. OSError: it is down or gone, or the kernel does not tell (before 6.8)."""
    (family,) = struct.unpack("=H", _netdev_family()[_CTRL_FAMILY_ID])
    second = {_QUEUE_ID: 1, _QUEUE_IFINDEX: ifindex, _QUEUE_TYPE: _QUEUE_RX}
    asked = {attribute: struct.pack("=I", value) for attribute, value in second.items()}
    try:
        _generic(family, _NETDEV_CMD_QUEUE_GET, asked)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return True
    return False
