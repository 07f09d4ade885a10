"""The hooks of a device: XDP and tc, with the rule that another's program is never touched.

Everything concerns the network namespace of the calling thread.
"""

from __future__ import annotations

import ctypes
import errno
from ctypes import byref, c_int, c_size_t, c_uint32, sizeof
from dataclasses import dataclass

from ebpfvpn.kernel.libbpf import BpfError, call
from ebpfvpn.kernel.map import Map
from ebpfvpn.kernel.program import Program, uses

XDP_GENERIC = 2
XDP_NATIVE = 4
_XDP_IF_NOEXIST = 1
_XDP_REPLACE = 16
_TC_REPLACE = 1

INGRESS = 1
EGRESS = 2

# Filters of one kind on one device share a priority and differ by handle (generation.py); the
# kernel asks the one that was attached last first. What `open` has decrypted reaches `deliver`
# before `open` could look at it again.
DELIVER_PRIORITY = 7
OPEN_PRIORITY = 9
SEAL_PRIORITY = 9
STEER_PRIORITY = 7


class _XdpOptions(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("old_prog_fd", c_int))


class _TcHook(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("ifindex", c_int),
        ("attach_point", c_int),
        ("parent", c_uint32),
    )


class _TcOptions(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


def attach_xdp(ifindex: int, program: Program, mode: int, ours: Map) -> None:
    """In the place of a program that uses the map `ours`, if there is one. BpfError: the device
    has another program, or cannot."""
    there = xdp_program_id(ifindex, mode)
    what = f"XDP on device {ifindex}"
    if not uses(there, ours.id):
        call(what, "bpf_xdp_attach", ifindex, program.fd, c_uint32(mode | _XDP_IF_NOEXIST), None)
        return
    old = Program.by_id(there)
    options = _XdpOptions(sizeof(_XdpOptions), old.fd)
    call(what, "bpf_xdp_attach", ifindex, program.fd, c_uint32(mode | _XDP_REPLACE), byref(options))
    old.close()


def detach_xdp(ifindex: int, mode: int, ours: Map) -> None:
    """Detaches a program that uses the map `ours`; if none is there, nothing happens."""
    there = xdp_program_id(ifindex, mode)
    if not uses(there, ours.id):
        return
    old = Program.by_id(there)
    options = _XdpOptions(sizeof(_XdpOptions), old.fd)
    _unless_gone(f"XDP on device {ifindex}", "bpf_xdp_detach", ifindex, c_uint32(mode),
                 byref(options))  # fmt: skip
    old.close()


def xdp_program_id(ifindex: int, mode: int = 0) -> int:
    """0: none, or no such device. Mode 0: any."""
    found = c_uint32()
    try:
        call(f"XDP on device {ifindex}", "bpf_xdp_query_id", ifindex, c_int(mode), byref(found))
    except BpfError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL, errno.ENXIO):
            raise
        return 0
    return found.value


@dataclass(frozen=True, slots=True)
class Filter:
    """A direct-action tc filter of ours."""

    ifindex: int
    point: int
    """INGRESS or EGRESS."""
    handle: int
    priority: int

    def _hook(self) -> _TcHook:
        return _TcHook(sizeof(_TcHook), self.ifindex, self.point, 0)

    def attach(self, program: Program, ours: Map) -> None:
        """In the place of one whose program uses the map `ours`, if there is one. The device has
        a clsact (or, for ingress, an ingress) qdisc. BpfError with EEXIST where the handle is
        another's."""
        options = _TcOptions(
            sz=sizeof(_TcOptions),
            prog_fd=program.fd,
            flags=_TC_REPLACE if uses(self.program_id(), ours.id) else 0,
            handle=self.handle,
            priority=self.priority,
        )
        call(f"tc filter on device {self.ifindex}", "bpf_tc_attach", byref(self._hook()),
             byref(options))  # fmt: skip

    def program_id(self) -> int:
        """0: there is no such filter."""
        options = _TcOptions(sz=sizeof(_TcOptions), handle=self.handle, priority=self.priority)
        try:
            call(f"tc filter on device {self.ifindex}", "bpf_tc_query", byref(self._hook()),
                 byref(options))  # fmt: skip
        except BpfError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL, errno.ENOENT):
                raise
            return 0
        return int(options.prog_id)

    def detach(self, ours: Map) -> None:
        """If its program uses the map `ours`; nothing happens if it is gone."""
        if uses(self.program_id(), ours.id):
            options = _TcOptions(sz=sizeof(_TcOptions), handle=self.handle, priority=self.priority)
            _unless_gone(f"tc filter on device {self.ifindex}", "bpf_tc_detach",
                         byref(self._hook()), byref(options))  # fmt: skip


def steer_filter(tun_ifindex: int, handle: int) -> Filter:
    """The one on a tunnel's TUN."""
    return Filter(tun_ifindex, EGRESS, handle, STEER_PRIORITY)


def add_clsact(ifindex: int) -> bool:
    """Whether the device had neither a clsact nor an ingress qdisc, and has a clsact now."""
    hook = _TcHook(sizeof(_TcHook), ifindex, INGRESS, 0)
    try:
        call(f"clsact on device {ifindex}", "bpf_tc_hook_create", byref(hook))
    except BpfError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def remove_clsact(ifindex: int) -> None:
    """With every filter on it: the caller made sure that there is none."""
    hook = _TcHook(sizeof(_TcHook), ifindex, INGRESS | EGRESS, 0)
    _unless_gone(f"clsact on device {ifindex}", "bpf_tc_hook_destroy", byref(hook))


def _unless_gone(what: str, function: str, *arguments: object) -> None:
    try:
        call(what, function, *arguments)
    except BpfError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            raise
