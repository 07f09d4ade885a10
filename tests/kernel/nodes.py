"""Two nodes with kernel datapaths and keypairs made by hand, in two namespaces: no daemon."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from ebpfvpn import virtio_net
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import bpffs, leftovers
from ebpfvpn.kernel.attach import AttachMode
from ebpfvpn.kernel.datapath import KernelDatapath
from ebpfvpn.keypair import Keypair, Session
from ebpfvpn.netlink import Netlink
from ebpfvpn.tun import Tun
from netns import Namespace, address, namespace, veth

PORT = 51820
PEER = 1
INNER = ("10.66.0.1/24", "10.66.0.2/24")
INNER6 = ("fd66::1/64", "fd66::2/64")
OUTER = ("192.0.2.1/24", "192.0.2.2/24")
OUTER6 = ("fd00::1/64", "fd00::2/64")


@dataclass(slots=True)
class Node:
    ns: Namespace
    name: str
    tun: Tun
    netlink: Netlink
    datapath: KernelDatapath


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns when it holds; fails the test when it does not within the time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def read(tun: Tun) -> bytes | None:
    """The next packet on a TUN; None: there is none."""
    buffer = bytearray(virtio_net.MOST)
    count = tun.read_into(buffer)
    return bytes(buffer[virtio_net.LENGTH : count]) if count else None


@contextlib.contextmanager
def node(
    ns: Namespace, *, mtu: int = 1420, port: int = PORT, mode: AttachMode = "auto",
    addresses: tuple[str, ...] = (), name: str = "", flow_ports: int = 1,
) -> Iterator[Node]:  # fmt: skip
    """One node in a namespace: a TUN with addresses and a datapath."""
    name = name or f"kt{secrets.token_hex(4)}"
    bpffs.mount()
    with contextlib.ExitStack() as undo:
        undo.callback(bpffs.NameLock(name).release)
        tun = ns.call(Tun.create, name)
        undo.callback(tun.close)
        netlink = ns.call(Netlink)
        undo.callback(netlink.close)
        ns.call(leftovers.remove, netlink, name)
        netlink.set_mtu(tun.ifindex, mtu)
        ns.run("sysctl", "-qw", f"net.ipv6.conf.{name}.addr_gen_mode=1")
        netlink.set_up(tun.ifindex)
        for each in addresses:
            interface: IPv4Interface | IPv6Interface = ip_interface(each)
            netlink.add_address(tun.ifindex, interface)
        datapath = ns.call(
            lambda: KernelDatapath(
                name,
                tun_ifindex=tun.ifindex,
                listen_port=port,
                mtu=mtu,
                fwmark=0,
                peers=4,
                attach_mode=mode,
                flow_ports=flow_ports,
            )
        )
        undo.callback(ns.call, datapath.remove)
        yield Node(ns, name, tun, netlink, datapath)


def introduce(one: Node, other: Node, outer: tuple[str, str] = OUTER, port: int = PORT) -> None:
    """Gives both a session with each other, installed as after a handshake that `one` began."""
    keys = secrets.token_bytes(32), secrets.token_bytes(32)
    indices = secrets.randbelow(2**31) + 1, secrets.randbelow(2**31) + 1
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    for i, here in enumerate((one, other)):
        datapath = here.datapath
        datapath.add_peer(PEER, secrets.token_bytes(32))
        networks = [ip_interface(inner[1 - i]).network for inner in (INNER, INNER6)]
        datapath.set_allowed_ips(PEER, networks)
        remote = ip_address(outer[1 - i].split("/")[0])
        here.ns.call(datapath.set_endpoint, PEER, Endpoint(remote, port))
        keypair = Keypair(Session(indices[i], indices[1 - i], i == 0, now), keys[i], keys[1 - i])
        datapath.install(PEER, keypair, confirmed=True)
        datapath.set_usable(PEER, True)


@contextlib.contextmanager
def two_nodes(
    *, mtu: int = 1420, mode: AttachMode = "auto", outer: tuple[str, str] = OUTER
) -> Iterator[tuple[Node, Node]]:
    """Two nodes over one underlay, each with a session with the other."""
    with namespace() as a, namespace() as b:
        veth(a, b)
        for i, ns in enumerate((a, b)):
            address(ns, "under0", OUTER[i], OUTER6[i])
        with (
            node(a, mtu=mtu, mode=mode, addresses=(INNER[0], INNER6[0])) as one,
            node(b, mtu=mtu, mode=mode, addresses=(INNER[1], INNER6[1])) as other,
        ):
            introduce(one, other, outer)
            for each in (one, other):
                each.ns.call(each.datapath.network_changed)
            yield one, other
