"""The segmenter: a veth pair through which a tunnel's packets go, all but light traffic.

Towards `inner` the kernel has to cut GSO packets and to fill checksums, because the devices say
that they can do neither; towards `outer` it joins with GRO what `open` decrypted in tc.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path

from pyroute2.ethtool.ioctl import IoctlEthtool

from ebpfvpn.datapath import DatapathError
from ebpfvpn.kernel import sysfs
from ebpfvpn.netlink import Netlink

MAX_MTU = 65535
XDP_MTU = 3498
"""Of the outer end: with more, veth refuses native XDP on the inner one (a frame must lie in one
page of 4 KiB, with headroom and struct skb_shared_info). ENA has the same limit."""
_XDP_ROOM = 100
_QUEUE_LENGTH = 1000
_GRO = "rx-gro"
_ROOT = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Segmenter:
    """The two ends, by ifindex."""

    outer: int
    inner: int
    outer_mac: bytes
    jumbo: bool
    """The TUN's packets are too large for XDP on the inner end."""


def is_jumbo(mtu: int) -> bool:
    """Of the TUN's MTU."""
    return mtu + _XDP_ROOM > XDP_MTU


def create(netlink: Netlink, label: str, mtu: int) -> Segmenter:
    """For the TUN's MTU, in the network namespace of netlink and of this thread; `label` says
    whose it is (see `find`). DatapathError."""
    jumbo = is_jumbo(mtu)
    try:
        prefix = _add_pair(netlink, label)
    except OSError as error:
        raise DatapathError(f"cannot create the segmenter of {label} (veth): {error}") from None
    ends: dict[str, int] = {}
    try:
        for end in ("outer", "inner"):
            device = prefix + end[0]
            (ends[end],) = netlink.request("link_lookup", ifname=device)
            _quiet(device)
            _set_features(device, gro=end == "outer")
            netlink.request("link", "set", index=ends[end], arp=False,
                            mtu=XDP_MTU if end == "outer" and not jumbo else MAX_MTU,
                            IFLA_IFALIAS=_alias(label, end))  # fmt: skip
        _add_queues(netlink, ends["outer"])
        for ifindex in ends.values():
            netlink.set_up(ifindex)
        outer = netlink.link(ends["outer"])
        assert outer is not None
        assert outer.mac is not None
    except BaseException as error:
        if "outer" in ends:
            netlink.delete_link(ends["outer"])
        if isinstance(error, OSError):
            raise DatapathError(f"cannot set up the segmenter of {label}: {error}") from None
        raise
    return Segmenter(ends["outer"], ends["inner"], outer.mac, jumbo)


def seal_in_threads(segmenter: Segmenter) -> bool:
    """Lets the inner end, once it has its XDP program, receive in kernel threads, which the
    scheduler can place, and not in the sender's context: on two cores twice as many small packets
    a second. Whether it does: a container may not be allowed to mount sysfs."""
    try:
        sysfs.set_attribute(socket.if_indextoname(segmenter.inner), "threaded", "1")
    except OSError:
        return False
    return True


def find(netlink: Netlink, label: str, mtu: int) -> Segmenter | None:
    """One that an earlier daemon created, in netlink's namespace; None: it is gone."""
    ends = {link.alias: link for link in netlink.links()}
    outer, inner = (ends.get(_alias(label, end)) for end in ("outer", "inner"))
    if outer is None or inner is None or outer.mac is None:
        return None
    return Segmenter(outer.ifindex, inner.ifindex, outer.mac, is_jumbo(mtu))


def remove(netlink: Netlink, label: str) -> None:
    """What there is of it; nothing happens if it is gone."""
    for link in netlink.links():
        # Whoever made it may have died before it could say whose it is.
        unfinished = link.name == f"{_prefix(label)}o" and not link.alias
        if unfinished or link.alias in (_alias(label, "outer"), _alias(label, "inner")):
            netlink.delete_link(link.ifindex)


def _alias(label: str, end: str) -> str:
    return f"ebpfvpn {label} {end}"


def _prefix(label: str) -> str:
    return f"sg{blake2s(label.encode(), digest_size=3).hexdigest()}"


def _queues() -> int:
    """One per CPU, as far as they are there (possible ones may be many more)."""
    return os.cpu_count() or 1


def _add_pair(netlink: Netlink, label: str) -> str:
    # XDP wants as many receiving queues as the peer has sending ones.
    queues = {"num_tx_queues": _queues(), "num_rx_queues": _queues()}
    prefix = _prefix(label)
    while True:
        try:
            netlink.request("link", "add", ifname=f"{prefix}o", kind="veth", **queues,
                            peer={"ifname": f"{prefix}i", **queues})  # fmt: skip
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise
            prefix = f"sg{secrets.token_hex(3)}"
        else:
            return prefix


def _quiet(device: str) -> None:
    """No addresses and no neighbour discovery. Best effort, for /proc/sys may be read-only in a
    container: what the stack sends by itself here bears no mark, so `seal` drops it."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1\n")


def _set_features(device: str, *, gro: bool) -> None:
    """Everything off that leaves work on a packet to the device; GRO as told. With GRO on, veth
    receives by NAPI."""
    ethtool = IoctlEthtool(device)
    try:
        features = ethtool.get_features()
        for feature, active, available, *_ in list(features):
            wanted = gro if feature == _GRO else not feature.startswith("tx-") and active
            if available and wanted != active:
                features[feature] = wanted
        ethtool.set_features(features)
    except Exception as error:
        # pyroute2's own exceptions are no OSError.
        raise OSError(errno.EOPNOTSUPP, f"features of {device}: {error!r}") from None
    finally:
        ethtool.close()


def _add_queues(netlink: Netlink, outer: int) -> None:
    """A queue before each of veth's rings, which hold 256 packets: a full ring then holds the
    sender back (from Linux 6.16 on), where a device without a queue drops."""
    count = _queues()
    if count == 1:
        netlink.request("tc", "add", kind="pfifo", index=outer, handle=0x10000, parent=_ROOT,
                        limit=_QUEUE_LENGTH)  # fmt: skip
        return
    # mq's own children would be what net.core.default_qdisc says.
    netlink.request("tc", "add", kind="mq", index=outer, handle=0x10000, parent=_ROOT)
    for queue in range(1, count + 1):
        netlink.request("tc", "add", kind="pfifo", index=outer, handle=(queue + 1) << 16,
                        parent=0x10000 | queue, limit=_QUEUE_LENGTH)  # fmt: skip
