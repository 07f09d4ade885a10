"""KernelDatapath gives its sessions away and is taken away, whatever fails."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import NoReturn

import pytest

from ebpfvpn.endpoint import Endpoint
from ebpfvpn.kernel import bpffs, hooks, layout, leftovers
from ebpfvpn.kernel.map import Map
from ebpfvpn.keypair import Keypair, Session
from kernel.nodes import PEER, PORT, Node, two_nodes, wait_for
from kernel.test_health import segmenter_ends

KEYS = bytes(32), bytes(32)


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    with two_nodes() as nodes:
        yield nodes


def read_only(*_: object, **__: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def bug(*_: object, **__: object) -> NoReturn:
    raise KeyError("nobody expected this")


def steer(of: Node) -> int:
    """Id of the program."""
    facts = of.datapath._generation.facts
    return of.ns.call(hooks.steer_filter(facts.tun, facts.handle).program_id)


@pytest.mark.parametrize(
    "what",
    [
        "kernel.generation.abandon",
        "kernel.health.Health.close",
        "kernel.steer.detach",
        "kernel.dispatcher.unset_port",
    ],
)
def test_what_fails_keeps_no_session_from_being_given_away(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    one, _ = pair
    with monkeypatch.context() as patch:
        patch.setattr(f"ebpfvpn.{what}", read_only)
        (half,) = one.ns.call(one.datapath.release)
    assert half.session == one.datapath.sessions()[0].session
    assert bool(steer(one)) == (what == "kernel.steer.detach")
    (told,) = caplog.records
    assert told.getMessage().endswith("Read-only file system")
    assert "\n" not in caplog.text.rstrip()


_LEFT = {
    "kernel.attach.detach": {"pins", "xdp", "clsact"},
    "kernel.dispatcher.unset_port": {"pins", "xdp", "clsact"},
    "kernel.steer.detach": set(),
    "kernel.segmenter.remove": {"pins", "segmenter"},
    "kernel.leftovers.remove_generation": {"pins"},
    "kernel.sessions.wipe_leftover": {"pins"},
}
"""Of what is taken away, what is there if one step is refused each time."""


def left(of: Node) -> set[str]:
    found = {
        "pins": bpffs.pin_directory(of.name).exists(),
        "segmenter": segmenter_ends(of.ns),
        "xdp": of.ns.call(hooks.xdp_program_id, of.ns.ifindex("under0")),
        "clsact": "clsact" in of.ns.run("tc", "qdisc", "show", "dev", "under0"),
        "steer": steer(of),
        "filters": of.ns.run("tc", "filter", "show", "dev", "under0", "ingress"),
    }
    return {what for what, is_there in found.items() if is_there}


@pytest.mark.parametrize("what", _LEFT)
@pytest.mark.parametrize("how", [read_only, bug])
def test_what_fails_keeps_nothing_else_from_being_taken_away(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, how: Callable[..., None], what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    one, _ = pair
    one.ns.call(one.datapath.release)
    with monkeypatch.context() as patch:
        patch.setattr(f"ebpfvpn.{what}", how)
        one.ns.call(one.datapath.discard)
    assert left(one) <= _LEFT[what] | {"filters"}
    assert caplog.records
    one.ns.call(leftovers.remove, one.netlink, one.name)
    assert left(one) == set()


def test_what_waits_to_be_sent_by_the_daemon_is_not_lost(pair: tuple[Node, Node]) -> None:
    one, _ = pair
    one.ns.run("ip", "link", "set", "under0", "mtu", "1300")
    one.ns.call(one.datapath.network_changed)
    packet = bytes([0x45, 0]) + (1400).to_bytes(2, "big") + bytes(1396)
    for sent in range(1, 81):
        one.datapath.send(PEER, [packet])
        wait_for(lambda sent=sent: one.datapath.traffic()[PEER].tx_packets == sent)  # type: ignore[misc]
    one.ns.call(one.datapath.release)
    found = one.datapath.unread()
    counters = [int.from_bytes(each.message[8:16], "little") for each in found]
    assert counters == list(range(80))
    assert one.datapath.unread() == []


def test_keys_that_cannot_be_overwritten_are_tried_again(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, _ = pair
    sessions = one.datapath._sessions
    keypair = Keypair(Session(500, 501, True, time.clock_gettime(time.CLOCK_BOOTTIME)), *KEYS)
    one.datapath.install(PEER, keypair, confirmed=True)
    keys = Map.pinned(bpffs.pin_directory(one.name) / "keys")
    real, refused = sessions._wipe_keys.syscall, next(iter(sessions.of_peer(PEER)))

    def wipe(which: layout.WipeKeys) -> int:
        return bug() if which.local_index == refused else real(which)

    with monkeypatch.context() as patch:
        patch.setattr(sessions._wipe_keys, "syscall", wipe)
        sessions.retire_all()
        wait_for(lambda: [*keys.keys()] == [layout.number(refused)])
        wait_for(lambda: sessions._retired == [refused])
    assert "cannot be overwritten: KeyError" in caplog.text
    one.datapath.close()
    assert [*keys.keys()] == []


def test_what_is_reinjected_late_is_not_opened_behind_the_back_of_who_goes_on(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in a queue of the segmenter until its window has been read."""
    one, other = pair
    local = ip_address("192.0.2.2")
    with other.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(("", 0))
        elsewhere = Endpoint(local, sock.getsockname()[1])
        one.ns.call(one.datapath.set_endpoint, PEER, elsewhere)
        one.datapath.send(PEER, [b""])
        message = sock.recv(100)
    (half,) = other.ns.call(other.datapath.release)
    with other.ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(("", PORT))
        source = Endpoint(ip_address("192.0.2.1"), PORT, local, other.ns.ifindex("under0"))
        other.datapath.reinject(message, source, 0)
        assert sock.recv(100) == message
    assert half.highest == other.datapath.sessions()[0].receive_highest == 0
