"""Parts of bringing an interface up, and of taking it away."""

from __future__ import annotations

import secrets
from ipaddress import ip_network
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from ebpfvpn import keys, setup
from ebpfvpn.allowed_ip_routes import AllowedIpRoutes
from ebpfvpn.config import Config, InterfaceConfig, PeerConfig
from ebpfvpn.config_values import HostPort
from ebpfvpn.errors import OperatorError
from ebpfvpn.kernel.adoption import NOTHING, Found
from ebpfvpn.kernel.generation import Generation
from ebpfvpn.losses import SocketLosses
from ebpfvpn.netlink import Netlink
from ebpfvpn.tun import alias
from ebpfvpn.userspace.state import State
from netns import address, namespace, veth


def test_a_device_is_ours_also_when_it_has_to_be_made_for_what_goes_on() -> None:
    name = f"ts{secrets.token_hex(4)}"
    with namespace() as ns:
        netlink = ns.call(Netlink)
        tun = ns.call(setup._tun, netlink, name, None, NOTHING, goes_on=True)
        link = netlink.link(tun.ifindex)
        assert link is not None
        assert link.alias == alias(name)
        with pytest.raises(OperatorError, match="exists already"):
            ns.call(setup._tun, netlink, name, None, NOTHING, goes_on=True)
        tun.close()
        netlink.close()


@pytest.mark.parametrize("remote", ["192.0.2.2", "fe80::2%under0"])
def test_the_mtu_is_known_without_asking_who_the_neighbour_is(remote: str) -> None:
    peer = PeerConfig(bytes(32), endpoint=HostPort(remote, 51820))
    interface = InterfaceConfig(keys.generate_private_key())
    with namespace() as here, namespace() as there:
        veth(here, there)
        address(here, "under0", "192.0.2.1/24")
        here.run("ip", "link", "set", "under0", "mtu", "1480")
        netlink = here.call(Netlink)
        made = Config(Path("wg0.conf"), "wg0", interface, (peer,))
        assert here.call(setup._mtu, netlink, made) == 1400
        assert here.run("ip", "neighbour", "show", remote.partition("%")[0]) == ""
        netlink.close()


@pytest.mark.parametrize(
    ("port", "older", "dropped"), [(7, [], [3, 4]), (8, [], []), (7, [MagicMock(Generation)], [])]
)
def test_which_counts_of_sockets_are_gone_on_with(
    port: int, older: list[Generation], dropped: list[int]
) -> None:
    state = State("", 7, 0, [], SocketLosses([3, 4], 5), [])
    found = setup._losses(state, MagicMock(port=port), Found(None, older))
    assert found == SocketLosses(dropped, 5)


def test_what_fails_to_be_taken_away_keeps_nothing_else() -> None:
    interface = MagicMock(fwmark=4711)
    interface.datapath.remove.side_effect = OSError("no")
    with namespace() as ns:
        netlink = ns.call(Netlink)
        before = ns.run("ip", "rule")
        routes = AllowedIpRoutes(netlink, ns.ifindex("lo"), "auto")
        ns.call(routes.add, [ip_network("0.0.0.0/0")], interface.fwmark)
        assert ns.run("ip", "rule") != before
        with pytest.raises(OSError, match="no"):
            ns.call(setup.Interface.remove, interface)
        assert ns.run("ip", "rule") == before
        netlink.close()
    interface.tun.persist.assert_called_once_with(False)
