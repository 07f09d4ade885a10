"""The daemon of one interface: what connects the protocol with sockets, netlink and clocks."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable

from ebpfvpn import control, handover, keys, status
from ebpfvpn.actions import (
    Action,
    EndpointMoved,
    GaveUp,
    Install,
    Keepalive,
    Retire,
    Send,
    SessionReady,
    TimestampReceived,
)
from ebpfvpn.clock import now
from ebpfvpn.config import Config
from ebpfvpn.datapath import (
    Confirmed,
    DatapathError,
    Left,
    MessagesUsed,
    PathChanged,
    TooLong,
)
from ebpfvpn.device import Device
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.errors import OperatorError
from ebpfvpn.first_packets import FirstPackets
from ebpfvpn.resolver import Resolver
from ebpfvpn.setup import Interface
from ebpfvpn.staged import Staged
from ebpfvpn.timestamps import Timestamps
from ebpfvpn.wire import REJECT_AFTER_TIME

POLL_INTERVAL = 0.5
"""Seconds between looks at the peers' traffic: the resolution of the timers that hang on it."""
_NETWORK_SETTLES = 0.05
"""Seconds to wait for more after something about the network changed."""
_DAMAGES = {"link", "tc"}
"""Changes by which the datapath may have lost something."""
_RENEWED_AT_ONCE, _RENEWAL_PAUSE = 10, 0.05
"""Handshakes, seconds: so that other work gets its turn."""

log = logging.getLogger(__name__)


class Daemon:
    """Runs in an event loop of its own."""

    def __init__(self, config: Config, interface: Interface) -> None:
        self.config = config
        self.interface = interface
        self.datapath = interface.datapath
        self.counters: Counter[str] = Counter()
        self.staged = Staged()
        self.device = Device(
            config.interface.private_key,
            tai64n=Timestamps().next,
            rekey_after_time=config.interface.rekey_after_time,
            rekey_after_messages=config.interface.rekey_after_messages,
        )
        self.first_packets = FirstPackets(interface, self.device, self.staged, self.counters)
        self.started = now()
        self.restarts = False
        """It stops to make room for the next one."""
        self.tun_is_gone = False
        """It stops because somebody deleted the TUN device."""
        self._stop = asyncio.Event()
        self._wake: asyncio.TimerHandle | None = None
        self._settle: asyncio.TimerHandle | None = None
        self._described: list[object] = []

    async def serve(self, ready: Callable[[], None]) -> None:
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        handlers = {
            "status": lambda: status.of(self),
            "down": self._down,
            "restart": self._restart,
        }
        async with control.serve(self.config.name, handlers):
            resolver = Resolver(self._resolved)
            self._add_peers(resolver)
            loop.add_reader(self.interface.tun.fileno(), self._tun_readable)
            loop.add_reader(self.datapath.events_fd(), self._datapath_readable)
            loop.add_reader(self.interface.monitor.fileno(), self._network_readable)
            for sock in self.interface.udp.sockets:
                loop.add_reader(sock.fileno(), self._udp_readable, sock)
            self._poll()
            self._act()
            chosen = self.datapath.describe()
            log.info("%s: port %d, MTU %d, path %s (%s)", self.config.name, self.interface.udp.port,
                     self.interface.mtu, chosen["path"], chosen["reason"])  # fmt: skip
            self._warn_of_filtering()
            ready()
            handover.ready(self.interface.descriptors())
            try:
                await self._stop.wait()
                # Packets go on meanwhile.
                await asyncio.wrap_future(self.datapath.stop_building())
            finally:
                resolver.close()

    def _down(self) -> dict[str, object]:
        self._stop.set()
        return {}

    def _restart(self) -> dict[str, object]:
        """OperatorError where the one that follows could not go on."""
        name, tun = self.config.name, self.interface.tun
        link = self.interface.netlink.link(tun.ifindex)
        if link is None or link.name != name:
            raise OperatorError(
                f"the device {name} is in another network namespace, or has another name: the next "
                "daemon would not find it"
            )
        if not os.access(sys.executable, os.X_OK):
            raise OperatorError(f"{sys.executable} is gone, by which the next daemon would start")
        self.restarts = True
        return self._down()

    def _add_peers(self, resolver: Resolver) -> None:
        renew = []
        for number, peer in self.interface.peers.items():
            left = self.interface.left.get(number)
            try:
                self.device.add_peer(
                    number,
                    peer.public_key,
                    preshared_key=peer.preshared_key,
                    persistent_keepalive=peer.persistent_keepalive,
                )
            except ValueError as error:
                raise OperatorError(f"{self.config.path}: PublicKey: {error}") from None
            if left is None or left.number is None:
                self.datapath.add_peer(number, peer.public_key)
            self.datapath.set_allowed_ips(number, peer.allowed_ips)
            self.datapath.set_flow_ports(number, peer.flow_ports)
            if left is not None:
                self._adopt(number, left)
                if left.renew:
                    renew.append(number)
            # Where the peer was heard under a live session is better than what the file says.
            heard = left is not None and left.endpoint is not None
            if peer.endpoint is not None and not (
                heard and (number in renew or self.device.has_session(number, now()))
            ):
                resolver.want(number, peer.endpoint)
            if peer.persistent_keepalive:
                self.device.want_session(number, now())
        self._renew(renew)
        self._loop.call_later(REJECT_AFTER_TIME, self.datapath.remove_older)

    def _adopt(self, number: int, left: Left) -> None:
        if left.number is None or left.renew:
            self.datapath.set_timestamp(number, left.timestamp)
            if left.endpoint is not None:
                self.datapath.set_endpoint(number, left.endpoint)
        self.device.adopt(number, left, now())

    def _renew(self, peers: list[int]) -> None:
        """New sessions for those whose packets take a way that is to be left."""
        for number in peers[:_RENEWED_AT_ONCE]:
            self.device.renew(number, now())
        self._act()
        if rest := peers[_RENEWED_AT_ONCE:]:
            self._loop.call_later(_RENEWAL_PAUSE, self._renew, rest)

    # What comes in.

    def _resolved(self, peer: int, endpoint: Endpoint) -> None:
        self.datapath.set_endpoint(peer, endpoint)
        self.device.set_endpoint(peer, endpoint)
        if self.staged.waiting(peer) or self.interface.peers[peer].persistent_keepalive:
            self.device.want_session(peer, now())
        self._act()

    def _udp_readable(self, sock: socket.socket) -> None:
        messages = self.datapath.messages(sock)
        # First: a session confirmed by its first packet comes before an initiation after that.
        told = self._take_events()
        for data, source in messages:
            self.device.receive(data, source, now())
        if told or messages:
            self._act()

    def _tun_readable(self) -> None:
        try:
            found = self.first_packets.read(now())
        except OSError as error:
            if error.errno != errno.EBADFD:
                raise
            self._tun_gone()
            return
        # With sessions in userspace every packet comes here: what it does not need costs too much.
        if self._take_events() or found:
            self._act()

    def _tun_gone(self) -> None:
        self.tun_is_gone = True
        self._loop.remove_reader(self.interface.tun.fileno())
        self._stop.set()

    def _datapath_readable(self) -> None:
        self._take_events()
        self._act()

    def _take_events(self) -> bool:
        """Whether there were any."""
        events = self.datapath.events()
        for event in events:
            if isinstance(event, Confirmed):
                self.device.confirmed(event.peer, event.local_index, now())
            elif isinstance(event, TooLong):
                sent = self.interface.udp.send(event.message, event.endpoint, event.tos)
                self.counters["sent_fragmented" if sent else "fragmented_send_failed"] += 1
            elif isinstance(event, PathChanged):
                self._path_changed(event)
            elif isinstance(event, MessagesUsed):
                self.device.messages_used(event.peer, event.local_index, now())
            elif (endpoint := self.datapath.endpoint(event.peer)) is not None:
                self.counters["roamed"] += 1
                self.device.set_endpoint(event.peer, endpoint)
        if events:
            self._log_ways()
        return bool(events)

    def _path_changed(self, event: PathChanged) -> None:
        if event.sealing_lost:
            peers = self.device.sealing_lost(now())
        else:
            peers = [n for n in self.interface.peers if self.device.has_session(n, now())]
        for sock in self.interface.udp.sockets:
            self._loop.call_soon(self._udp_readable, sock)
        self._renew(peers)
        if event.sealing_lost:
            self._warn_of_filtering()

    def _warn_of_filtering(self) -> None:
        in_userspace = self.datapath.describe()["path"] == "userspace"
        if in_userspace and self.interface.routes.filtered(self.config.networks()):
            log.warning(
                "strict reverse path filtering may drop what comes from endpoints, for there is a "
                "default route into the tunnel: sysctl net.ipv4.conf.all.rp_filter=2"
            )

    def _network_readable(self) -> None:
        changed = self.interface.monitor.read()
        if changed & _DAMAGES:
            self._check_path()
        if self._settle is None and changed - {"tc"}:
            self._settle = self._loop.call_later(_NETWORK_SETTLES, self._network_changed)

    def _network_changed(self) -> None:
        self._settle = None
        self.datapath.network_changed()
        self._log_ways()

    def _poll(self) -> None:
        """Feeds the timers that hang on data packets."""
        # First, so that one failure does not end the timers of all peers.
        self._loop.call_later(POLL_INTERVAL, self._poll)
        self._check_path()
        sessions = self.datapath.sessions()
        # What they show may have been told just now: Paths has to read it before it is acted on.
        self._take_events()
        if sessions:
            counters: dict[int, int] = {}
            newest: dict[int, float] = {}
            for state in sessions:
                session = state.session
                # The ring of events may have been full.
                if not session.initiator and state.receive_highest:
                    self.device.confirmed(state.peer, session.local_index, now())
                if session.created >= newest.get(state.peer, 0.0):
                    newest[state.peer] = session.created
                    counters[state.peer] = state.send_counter
            traffic = self.datapath.traffic()
            for number, counter in counters.items():
                if number in traffic:
                    self.device.traffic(number, traffic[number], counter, now())
        # Always: the loop's clock stands still while the machine is suspended, deadlines do not.
        self._act()

    def _check_path(self) -> None:
        done = self.datapath.check()
        for repair in done:
            self.counters["repairs"] += 1
            log.warning("%s", repair)
        self._datapath_readable()
        if done:
            self._described = self._ways()  # these lines have told

    def _advance(self) -> None:
        self._wake = None
        self.device.advance(now())
        self._act()

    # What goes out.

    def _act(self) -> None:
        """Does what the protocol wants, and sees to it that it is called again in time."""
        while actions := self.device.actions():
            for action in actions:
                self._try(action)
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        deadline = self.device.next_deadline()
        if deadline is not None:
            self._wake = self._loop.call_later(max(deadline - now(), 0.0), self._advance)

    def _try(self, action: Action) -> None:
        """One that fails must not take with it those behind it, which may be other peers'."""
        try:
            self._do(action)
        except (DatapathError, OSError) as error:
            self.counters["failed_actions"] += 1
            log.error("%s: %s", type(action).__name__, error)

    def _do(self, action: Action) -> None:
        match action:
            case Send(_, data, endpoint):
                sent = self.interface.udp.send(data, endpoint)
                self.counters["handshake_sent" if sent else "handshake_send_failed"] += 1
            case Install(peer, keypair, confirmed):
                self.datapath.install(peer, keypair, confirmed=confirmed)
            case TimestampReceived(peer, timestamp):
                self.datapath.set_timestamp(peer, timestamp)
            case Retire(local_index):
                self.datapath.retire(local_index)
            case SessionReady(peer, confirm):
                self._session_ready(peer, confirm=confirm)
            case Keepalive(peer):
                self.datapath.send(peer, [b""])
            case EndpointMoved(peer, endpoint):
                self.datapath.set_endpoint(peer, endpoint)
                self._log_ways()
            case GaveUp(peer):
                self.staged.drop(peer)
                log.info("peer %s does not answer", self._name(peer))

    def _session_ready(self, peer: int, *, confirm: bool) -> None:
        """First packets in order: those in the TUN's queue came before any that finds the
        session usable."""
        self.first_packets.read_all(now())
        packets = self.staged.take(peer)
        if confirm and not packets:
            packets = [b""]
        self.datapath.send(peer, packets)
        self.datapath.set_usable(peer, True)

    def _log_ways(self) -> None:
        """Each choice once, when it is made."""
        devices = self._ways()
        for device in devices:
            if device not in self._described:
                log.info("%(name)s: open by %(open)s, seal by %(seal)s (%(reason)s)", device)
        self._described = devices

    def _ways(self) -> list[object]:
        devices = self.datapath.describe()["devices"]
        assert isinstance(devices, list)
        return devices

    def _name(self, peer: int) -> str:
        return keys.encode_key(self.interface.peers[peer].public_key)
