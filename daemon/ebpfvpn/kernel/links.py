"""The state of a network device by one message, in microseconds: for what is asked all the time."""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass

from ebpfvpn.genetlink import attributes, messages

_RTM_GETLINK = 18
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_IFF_UP = 1
_IFINFO = struct.Struct("=BxHiII")
_IFLA_IFNAME, _IFLA_MTU, _IFLA_IFALIAS, _IFLA_EXT_MASK, _IFLA_XDP = 3, 4, 20, 29, 43
_IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID, _IFLA_XDP_HW_PROG_ID = 5, 6, 7
_SKIP_STATS = 8
_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class State:
    """Of a device."""

    name: str
    alias: str
    mtu: int
    up: bool
    native: int
    """Id of its native XDP program; 0: none."""
    generic: int
    offloaded: int

    @property
    def xdp(self) -> bool:
        """Whether it has any XDP program."""
        return bool(self.native or self.generic or self.offloaded)


class Links:
    """Those of the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(_SECONDS)
        self._sequence = 0

    def state(self, ifindex: int) -> State | None:
        """None: there is no such device. OSError."""
        self._sequence += 1
        body = _IFINFO.pack(0, 0, ifindex, 0, 0) + struct.pack("=HHI", 8, _IFLA_EXT_MASK,
                                                               _SKIP_STATS)  # fmt: skip
        header = struct.pack("=IHHII", 16 + len(body), _RTM_GETLINK, _NLM_F_REQUEST,
                             self._sequence, 0)  # fmt: skip
        self._socket.send(header + body)
        while True:
            data = self._socket.recv(65536)
            # An answer that came too late, to a question before.
            if struct.unpack_from("=I", data, 8)[0] == self._sequence:
                break
        kind, payload = next(iter(messages(data)))
        if kind == _NLMSG_ERROR:
            code = -struct.unpack_from("=i", payload)[0]
            if code in (errno.ENODEV, errno.EINVAL):
                return None
            raise OSError(code, os.strerror(code))
        return _state(payload)

    def close(self) -> None:
        self._socket.close()


def _state(payload: bytes) -> State:
    flags = _IFINFO.unpack_from(payload)[3]
    found = attributes(payload[_IFINFO.size :])
    xdp = attributes(found.get(_IFLA_XDP, b""))
    native, generic, offloaded = (
        int.from_bytes(xdp.get(kind, b""), "little")
        for kind in (_IFLA_XDP_DRV_PROG_ID, _IFLA_XDP_SKB_PROG_ID, _IFLA_XDP_HW_PROG_ID)
    )
    return State(
        name=_text(found[_IFLA_IFNAME]),
        alias=_text(found.get(_IFLA_IFALIAS, b"")),
        mtu=int.from_bytes(found[_IFLA_MTU], "little"),
        up=bool(flags & _IFF_UP),
        native=native,
        generic=generic,
        offloaded=offloaded,
    )


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
