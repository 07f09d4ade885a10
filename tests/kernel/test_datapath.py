"""KernelDatapath: what only its maps and devices can say. What it has in common with the other
datapath is in tests/datapaths."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from ipaddress import ip_network

import pytest

from ebpfvpn.kernel import layout
from ebpfvpn.kernel.attach import AttachMode
from ebpfvpn.kernel.bpffs import pin_directory
from ebpfvpn.kernel.map import Map
from ebpfvpn.keypair import Keypair, Session
from echo import ping
from kernel.nodes import INNER, PEER, Node, node, two_nodes, wait_for
from netns import namespace


def pinned(of: Node, name: str) -> Map:
    return Map.pinned(pin_directory(of.name) / name)


def peer_entry(of: Node) -> layout.Peer:
    return layout.Peer.from_buffer_copy(dict(pinned(of, "peers").items())[layout.number(PEER)])


@pytest.mark.parametrize(("mode", "threads"), [("native", "1"), ("tc", "0")])
def test_seal_in_xdp_runs_in_threads(mode: AttachMode, threads: str) -> None:
    script = "mount -t sysfs sysfs /sys && grep -l 'ebpfvpn .* inner' /sys/class/net/*/ifalias"
    with namespace() as ns, node(ns, mode=mode):
        found = ns.run("unshare", "--mount", "sh", "-c", f"{script} | xargs dirname")
        read = f"mount -t sysfs sysfs /sys && cat {found.strip()}/threaded"
        assert ns.run("unshare", "--mount", "sh", "-c", read).strip() == threads


def test_a_confirmed_session_puts_an_unconfirmed_one_out_of_the_way() -> None:
    with two_nodes() as (one, _):
        keys = secrets.token_bytes(32), secrets.token_bytes(32)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        one.datapath.install(PEER, Keypair(Session(500, 501, False, now), *keys), confirmed=False)
        assert peer_entry(one).next == 500
        one.datapath.install(PEER, Keypair(Session(600, 601, True, now), *keys), confirmed=True)
        assert (peer_entry(one).current, peer_entry(one).next) == (600, 0)


def test_retired_session_is_forgotten_with_its_keys() -> None:
    with two_nodes() as (one, _):
        assert ping(one.ns, "10.66.0.2", 5) == 5
        (state,) = one.datapath.sessions()
        keys = pinned(one, "keys")
        assert len(keys.items()) == 1
        one.datapath.retire(state.session.local_index)
        wait_for(lambda: keys.items() == [] and pinned(one, "windows").items() == [])
        assert (peer_entry(one).current, peer_entry(one).next) == (0, 0)
        one.ns.run("ping", "-c", "1", "-W", "0.2", "10.66.0.2", check=False)
        assert one.datapath.drops()["pass_no_usable_session"] >= 1


def test_remove_peer_leaves_nothing_of_it() -> None:
    with two_nodes() as (one, _):
        assert ping(one.ns, "10.66.0.2", 5) == 5
        one.datapath.remove_peer(PEER)
        assert one.datapath.endpoint(PEER) is None
        for name in ("peers", "sessions", "endpoints", "routes", "allowed_ips4", "allowed_ips6"):
            assert pinned(one, name).items() == [], name
        wait_for(lambda: pinned(one, "keys").items() == [])


def test_allowed_ips_move_between_peers() -> None:
    with namespace() as ns, node(ns) as one:
        datapath = one.datapath
        for peer in (1, 2):
            datapath.add_peer(peer, bytes([peer] * 32))
        wide, narrow = ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")
        v6 = ip_network("fd00::/8")
        datapath.set_allowed_ips(1, [wide, v6])
        datapath.set_allowed_ips(2, [narrow, wide])
        datapath.set_allowed_ips(1, [v6])

        def owners(name: str) -> dict[bytes, int]:
            return {k[:5]: layout.from_number(v) for k, v in pinned(one, name).items()}

        assert owners("allowed_ips4") == {b"\x08\0\0\0\x0a": 2, b"\x10\0\0\0\x0a": 2}
        assert owners("allowed_ips6") == {b"\x08\0\0\0\xfd": 1}
        datapath.set_allowed_ips(2, [])
        assert owners("allowed_ips4") == {}


def test_bpftool_shows_fields_by_name() -> None:
    with two_nodes() as (one, _):
        shown = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", f"{one.datapath.describe()['pins']}/peers"],
            capture_output=True,
            check=True,
        ).stdout
        (entry,) = json.loads(shown)
        assert entry["formatted"]["key"] == PEER
        assert entry["formatted"]["value"]["usable"] == 1
        assert INNER[0] in one.ns.run("ip", "address")
