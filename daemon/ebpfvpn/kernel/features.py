"""Whether a device takes frames by XDP_REDIRECT, which `seal` in XDP does."""

from __future__ import annotations

import os

from ebpfvpn.genetlink import xdp_features
from ebpfvpn.netlink import Link

_NDO_XMIT = 4
# Before Linux 6.3 the kernel does not tell. These drivers take redirected frames once the device
# has a native program of its own. veth is not among them: it needs one (or GRO) on the peer too.
_DRIVERS = {"ena", "i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core", "sfc", "virtio_net"}


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
