"""What the kernel path needs of this machine, probed one by one; and whether a device takes frames
by XDP_REDIRECT, which `seal` in XDP does."""

from __future__ import annotations

import errno
import os
from ctypes import c_int
from pathlib import Path

from ebpfvpn.datapath import DatapathError
from ebpfvpn.genetlink import xdp_features
from ebpfvpn.kernel import bpffs
from ebpfvpn.kernel.libbpf import BpfError, Descriptor, call, library
from ebpfvpn.netlink import Link

_CAP_SYS_ADMIN, _CAP_BPF = 21, 39
_SOCKET_FILTER, _SCHED_CLS, _XDP, _SYSCALL = 1, 3, 6, 31
_ARRAY = 2
# By the numbers of include/uapi/linux/bpf.h; in brackets the first kernel that has it.
_PROGRAMS = {
    _SOCKET_FILTER: "socket filters",
    _SCHED_CLS: "tc programs",
    _XDP: "XDP programs",
    _SYSCALL: "syscall programs (Linux 5.14)",
}
_MAPS = {
    1: "hash maps",
    _ARRAY: "array maps",
    3: "program arrays",
    6: "per-CPU arrays",
    11: "LPM tries",
    27: "ring buffers (Linux 5.8)",
}
_HELPERS = {
    (_SCHED_CLS, 125): "bpf_ktime_get_boot_ns (Linux 5.8)",
    (_SCHED_CLS, 135): "bpf_csum_level (Linux 5.8)",
    (_SCHED_CLS, 152): "bpf_redirect_neigh (Linux 5.10)",
    (_XDP, 189): "bpf_xdp_load_bytes (Linux 5.18)",
}

_NDO_XMIT = 4
# Before Linux 6.3 the kernel does not tell. These drivers take redirected frames once the device
# has a native program of its own. veth is not among them: it needs one (or GRO) on the peer too.
_DRIVERS = {"ena", "i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core", "sfc", "virtio_net"}


def require() -> None:
    """DatapathError, which names it, if something is missing. What is found out only by loading the
    programs, or by making the devices, is not looked at."""
    library()
    if not _may_use_bpf():
        raise DatapathError("BPF is not allowed: this process lacks CAP_BPF (or CAP_SYS_ADMIN)")
    try:
        probe = call("creating a map", "bpf_map_create", _ARRAY, b"probe", 4, 4, 1, None)
    except BpfError as error:
        hint = " (seccomp, or a locked-down kernel?)" if error.errno == errno.EPERM else ""
        raise DatapathError(f"the system call bpf() is refused: {error.reason}{hint}") from None
    Descriptor(probe, "probe").close()
    bpffs.mount()
    for kind, name in _PROGRAMS.items():
        _probe(name, "libbpf_probe_bpf_prog_type", kind)
    for kind, name in _MAPS.items():
        _probe(name, "libbpf_probe_bpf_map_type", kind)
    for (kind, helper), name in _HELPERS.items():
        _probe(name, "libbpf_probe_bpf_helper", kind, helper)


def _may_use_bpf() -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return bool(effective >> _CAP_BPF & 1 or effective >> _CAP_SYS_ADMIN & 1)


def _probe(name: str, function: str, *numbers: int) -> None:
    if call(f"probing {name}", function, *map(c_int, numbers), None) == 0:
        raise DatapathError(f"the kernel has no {name}")


def takes_redirect(link: Link) -> bool:
    """Of a device with our program in native mode, in the namespace of this thread."""
    try:
        features = xdp_features(link.ifindex)
        if features is not None:
            return bool(features & _NDO_XMIT)
        driver = os.readlink(f"/sys/class/net/{link.name}/device/driver")
        return os.path.basename(driver) in _DRIVERS
    except OSError:  # gone, or no driver
        return False
