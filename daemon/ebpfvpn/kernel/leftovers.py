"""What a daemon leaves that died before it could clean up: found by its pins, and taken away.

Its TUN is gone with it, unless something else holds that. A directory `@NETNS` among the pins tells
in which network namespace all that was.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ebpfvpn.kernel import attach, bpffs, hooks, layout, objects, segmenter, sessions
from ebpfvpn.kernel.attach import Tunnel
from ebpfvpn.kernel.layout import number
from ebpfvpn.kernel.objects import Object
from ebpfvpn.netlink import Netlink

_CLONE_NEWNET = 0x40000000
_PROGRAMS = ("deliver", "deliver_generic", "open_tc", "open_xdp", "steer", "wipe_keys")
_MAPS = ("config", "keys")


def clean(name: str) -> None:
    """Takes away what is left of the tunnel NAME; nothing happens where nothing is left.
    DatapathError where it runs."""
    bpffs.mount()
    lock = bpffs.NameLock(name)
    try:
        netlink = Netlink()
        try:
            remove(netlink, name)
        finally:
            netlink.close()
    finally:
        lock.release()


def note_namespace(pins: Path) -> None:
    """To be called by who runs: says for later where it is."""
    (pins / f"@{bpffs.netns_inode()}").mkdir()


def remove(netlink: Netlink, name: str) -> None:
    """As `clean`, for who holds the lock of NAME. `netlink` is in this thread's namespace."""
    pins = bpffs.pin_directory(name)
    inodes = {int(entry.name[1:]) for entry in pins.glob("@*")}
    inodes |= {netns for netns, _ in attach.attached_devices(name)}
    loaded = objects.open_pinned(pins, _PROGRAMS, _MAPS)
    try:
        for inode in inodes:
            if inode == bpffs.netns_inode():
                _remove_here(netlink, name, loaded)
            elif (path := _find_namespace(inode)) is not None:
                with ThreadPoolExecutor(1) as thread:
                    thread.submit(_remove_there, path, name, loaded).result()
        sessions.wipe_leftover(loaded)
    finally:
        loaded.close()
    # Of namespaces that are gone, and with them their devices.
    for netns, ifindex in attach.attached_devices(name):
        bpffs.remove(bpffs.device_directory(netns, ifindex))
    bpffs.remove(pins)


def _remove_there(path: str, name: str, loaded: Object) -> None:
    """In a thread that ends after this."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {path}")
    finally:
        os.close(fd)
    netlink = Netlink()
    try:
        _remove_here(netlink, name, loaded)
    finally:
        netlink.close()


def _remove_here(netlink: Netlink, name: str, loaded: Object) -> None:
    tunnel = _tunnel(name, loaded)
    for netns, ifindex in attach.attached_devices(name):
        if netns == bpffs.netns_inode() and tunnel is not None:
            attach.detach(netlink, tunnel, ifindex)
    if tunnel is not None and "steer" in loaded.programs:
        steer = hooks.steer_filter(tunnel.tun_ifindex)
        if steer.program_id() == loaded.programs["steer"].id:
            steer.detach()  # something else held the TUN
    segmenter.remove_leftover(netlink, name)


def _tunnel(name: str, loaded: Object) -> Tunnel | None:
    """None: it died before it attached anything."""
    value = loaded.maps["config"].lookup(number(0)) if "config" in loaded.maps else None
    if value is None:
        return None
    config = layout.Config.from_buffer_copy(value)
    try:
        return Tunnel.of(
            name, config.tun_ifindex, config.listen_port, bytes(config.mark), loaded.programs
        )
    except KeyError:
        return None


def _find_namespace(inode: int) -> str | None:
    """A path to a network namespace: by name, or by a process in it."""
    for path in (*glob.glob("/run/netns/*"), *glob.glob("/proc/[0-9]*/ns/net")):
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                return path
    return None
