"""Taking a tunnel away, dead or alive: all that is found by its pins, in whatever namespace."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from ebpfvpn.allowed_ip_routes import AllowedIpRoutes, remove_orphaned_rules
from ebpfvpn.kernel import attach, bpffs, generation, hooks, segmenter, sessions
from ebpfvpn.kernel.attach import Tunnel
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.kernel.libbpf import BpfError
from ebpfvpn.netlink import Netlink
from ebpfvpn.tun import alias

_CLONE_NEWNET = 0x40000000


def clean(name: str) -> None:
    """Takes away what is left of the tunnel NAME; nothing happens where nothing is left.
    DatapathError where it runs."""
    lock = bpffs.NameLock(name)
    try:
        netlink = Netlink()
        try:
            remove(netlink, name)
            remove_orphaned_rules(netlink)
        finally:
            netlink.close()
    finally:
        lock.release()


def remove(netlink: Netlink, name: str, *, tun_stays: bool = False) -> None:
    """As `clean`, for who holds the lock of NAME. `netlink` is in this thread's namespace."""
    found = generation.find(name)
    for each in found:
        _stop(netlink, each)
    for each in found if not tun_stays else ():
        _in_namespace(netlink, each.facts.netns, partial(_remove_tun, each))
    # The pins last: whoever is interrupted before is followed by one who knows all that is left.
    for directory in generation.directories(name):
        bpffs.remove(directory)


def remove_generation(netlink: Netlink, of: Generation) -> None:
    """The TUN stays."""
    _stop(netlink, of)
    bpffs.remove(of.pins)


def _stop(netlink: Netlink, of: Generation) -> None:
    """Takes away its devices, and programs from others; wipes its keys."""
    # First: nobody must go on with sessions whose keys are zero.
    generation.abandon(of)
    try:
        tunnel = Tunnel.of(of)
    except BpfError:
        tunnel = None  # it did not come so far as to be attached
    _in_namespace(netlink, of.facts.netns, partial(_detach, of, tunnel))
    sessions.wipe_leftover(of.pins)
    # Of namespaces that are gone, and with them their devices.
    for netns, ifindex in attach.attached_devices(of):
        bpffs.remove(bpffs.device_directory(netns, ifindex))


def _detach(of: Generation, tunnel: Tunnel | None, netlink: Netlink) -> None:
    """In its namespace."""
    if tunnel is not None:
        for netns, ifindex in attach.attached_devices(of):
            if netns == bpffs.netns_inode():
                attach.detach(netlink, tunnel, ifindex)
        hooks.steer_filter(of.facts.tun, of.facts.handle).detach(tunnel.ours)
    segmenter.remove(netlink, of.label)


def _remove_tun(of: Generation, netlink: Netlink) -> None:
    """And the rules that lead to it, unless another device has its number now."""
    link = netlink.link(of.facts.tun)
    if link is not None and link.alias != alias(of.name):
        return
    AllowedIpRoutes.remove_rules(netlink, of.facts.fwmark)
    if link is not None:
        netlink.delete_link(link.ifindex)


def _in_namespace(netlink: Netlink, inode: int, function: Callable[[Netlink], None]) -> None:
    """Calls it with a netlink there; nothing happens if the namespace is gone."""
    if inode == bpffs.netns_inode():
        function(netlink)
    elif (path := _find_namespace(inode)) is not None:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_enter, path, function).result()


def _enter(path: str, function: Callable[[Netlink], None]) -> None:
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
        function(netlink)
    finally:
        netlink.close()


def _find_namespace(inode: int) -> str | None:
    """A path to a network namespace: by name, or by a process in it."""
    for path in (*glob.glob("/run/netns/*"), *glob.glob("/proc/[0-9]*/ns/net")):
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == inode:
                return path
    return None
