"""What the kernel does alone: daemons frozen, and the filter that delivers taken away."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator

import pytest

from ebpfvpn.kernel import layout
from ebpfvpn.kernel.map import Map
from echo import ping
from netns import Namespace
from tunnels.nodes import INNER, INNER6, MODES, frozen, pair, wait_for
from tunnels.traffic import Numbered, tcp, udp_socket


@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_carries_packets_while_daemons_are_frozen(mode: str) -> None:
    with pair(AttachMode=mode) as (one, other):
        a, b = one.ns, other.ns
        assert ping(a, INNER[1]) == 3
        with Numbered(a, b, INNER[1]) as there, Numbered(b, a, INNER[0]) as back:
            there.wait_for_more(100)
            back.wait_for_more(100)
            with frozen(one, other):
                for inner in (INNER, INNER6):
                    assert ping(a, inner[1], 20) == 20
                    assert ping(b, inner[0], 20) == 20
                tcp(a, b, INNER[1])
                tcp(b, a, INNER[0])
                there.wait_for_more(300)
                back.wait_for_more(300)
            there.wait_for_more(300)
            back.wait_for_more(300)
        for flow in (there, back):
            assert (flow.lost, flow.duplicates) == ([], [])
        assert one.show()["peers"][0]["rx_packets"] > 1000
        assert one.show()["daemon"].get("reinjected", 0) == 0


def remove_delivery(ns: Namespace) -> None:
    """Takes the filters away that give decrypted packets to the stack, wherever they are."""
    removed = 0
    for link in json.loads(ns.run("ip", "-j", "link")):
        device = link["ifname"]
        listed = ns.run("tc", "filter", "show", "dev", device, "ingress", check=False)
        for found in re.finditer(r"pref (\d+) bpf chain 0 handle (0x[0-9a-f]+) deliver", listed):
            ns.run("tc", "filter", "del", "dev", device, "ingress", "prio", found[1],
                   "handle", found[2], "bpf")  # fmt: skip
            removed += 1
    assert removed


class Watch:
    """Collects what UDP sockets and raw sockets of a namespace get, by whatever device."""

    def __init__(self, ns: Namespace, port: int) -> None:
        raw = ns.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self._sockets = [udp_socket(ns, "0.0.0.0", port), raw]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(s,)) for s in self._sockets]
        self.seen: list[bytes] = []

    def _run(self, sock: socket.socket) -> None:
        sock.settimeout(0.1)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                self.seen.append(sock.recv(65535))

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()


@contextlib.contextmanager
def load(ns: Namespace, to: tuple[str, int], text: bytes) -> Iterator[None]:
    """About a thousand packets a second while the body runs."""
    stop = threading.Event()
    sock = ns.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)

    def run() -> None:
        while not stop.wait(0.001):
            sock.sendto(text, to)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sock.close()


@pytest.mark.parametrize("mode", MODES)
def test_decrypted_packets_die_without_the_filter_that_delivers_them(mode: str) -> None:
    """They never enter the stack as the underlay's own, whatever it would take from there."""
    with pair(AttachMode=mode) as (one, other):
        a, b = one.ns, other.ns
        for device in ("all", "default", "under0", other.name):
            b.run("sysctl", "-qw", f"net.ipv4.conf.{device}.rp_filter=0")
        b.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        assert ping(a, INNER[1]) == 3
        with Watch(b, 4000) as watch, load(a, (INNER[1], 4000), b"the secret"):
            wait_for(lambda: any(b"the secret" in data for data in watch.seen))
            peers = Map.pinned(other.pins / "peers")

            def received() -> int:
                ((_, value),) = peers.items()
                return int(layout.Peer.from_buffer_copy(value).rx_packets)

            with frozen(other):  # it would put them back
                remove_delivery(b)
                ping(a, INNER[1], 1)  # what was on its way has arrived
                watch.seen.clear()
                before = received()
                assert ping(a, INNER[1], 10) == 0
                wait_for(lambda: received() > before + 200)
                assert [data for data in watch.seen if b"the secret" in data] == []
