"""KernelDatapath: the Datapath whose packets never leave the kernel.

What it makes belongs to the network namespace of the thread that constructs it, and every method
is to be called in that namespace. Nothing new is left when construction fails.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ebpfvpn.datapath import (
    REPLAY_WINDOW,
    Confirmed,
    DatapathError,
    Event,
    Left,
    MessagesUsed,
    Receiving,
    Roamed,
    SessionState,
    TooLong,
    Traffic,
)
from ebpfvpn.endpoint import Endpoint
from ebpfvpn.failures import logged
from ebpfvpn.kernel import (
    adoption,
    attach,
    bpffs,
    generation,
    layout,
    leftovers,
    objects,
    segmenter,
    steer,
    traffic,
    window,
)
from ebpfvpn.kernel.adoption import NOTHING, Found, Network
from ebpfvpn.kernel.attach import AttachMode, Programs, Tunnel
from ebpfvpn.kernel.btf import field_names
from ebpfvpn.kernel.frames import reinjected, to_seal
from ebpfvpn.kernel.generation import Facts
from ebpfvpn.kernel.health import Health
from ebpfvpn.kernel.layout import number, octets
from ebpfvpn.kernel.map import Map, RingBuffer
from ebpfvpn.kernel.objects import Object
from ebpfvpn.kernel.sealing import Sealing
from ebpfvpn.kernel.sessions import Sessions, await_programs
from ebpfvpn.kernel.ways import Ways
from ebpfvpn.keypair import Keypair, Session
from ebpfvpn.netlink import Netlink
from ebpfvpn.wire import REKEY_AFTER_MESSAGES

_SO_ATTACH_BPF = 50


class KernelDatapath:
    """See Datapath."""

    def __init__(
        self, name: str, *, tun_ifindex: int, listen_port: int, mtu: int, fwmark: int,
        peers: int, identity: str = "", attach_mode: AttachMode = "auto",
        rekey_after_messages: int = REKEY_AFTER_MESSAGES, replay_window: int = REPLAY_WINDOW,
        flow_ports: int = 1, found: Found = NOTHING,
    ) -> None:  # fmt: skip
        """`mtu` is the TUN's; `fwmark` 0: none; `peers`: how many there are; `replay_window`:
        packets; `flow_ports`: of the peer that has most; `identity` and `found`: see adoption.py.
        DatapathError: the machine lacks something."""
        self._mode: AttachMode = attach_mode
        self._mtu = mtu
        self._flow_ports = flow_ports
        self._send_failed = 0
        self._closing = contextlib.ExitStack()
        facts = Facts(
            bpffs.netns_inode(), tun_ifindex, _number(found), listen_port, fwmark,
            shape(mtu, attach_mode, replay_window), identity,
        )  # fmt: skip
        with contextlib.ExitStack() as undo:
            self._netlink = Netlink()
            undo.callback(self._netlink.close)
            self._older = [adoption.put_aside(one, attach_mode) for one in found.older]
            if found.current:
                self._generation = generation.set_fwmark(found.current, fwmark)
            else:
                # What fails now takes this one away; what was there before goes on.
                self._generation = generation.begin(name, facts)
                undo.callback(leftovers.remove_generation, self._netlink, self._generation)
            with contextlib.ExitStack() as closing:
                self._start(closing, peers, rekey_after_messages, replay_window)
                generation.complete(self._generation)
                self._closing = closing.pop_all()
            self._closing.callback(self._netlink.close)
            undo.pop_all()

    def _start(
        self, closing: contextlib.ExitStack, peers: int, rekey_after_messages: int,
        replay_window: int,
    ) -> None:  # fmt: skip
        """Loads and attaches, in the place of what is there."""
        facts = self._generation.facts
        loaded = self._load(closing, peers, replay_window)
        self._allowed = adoption.read_allowed_ips(self._generation)
        self._networks: dict[int, set[Network]] = {}
        for network, peer in self._allowed.items():
            self._networks.setdefault(peer, set()).add(network)
        self._sessions = Sessions(loaded, rekey_after_messages)
        closing.callback(self._sessions.close)
        self._events = RingBuffer(self._map("events"))
        closing.callback(self._events.close)
        self._poll = select.epoll()
        closing.callback(self._poll.close)
        self._poll.register(self._events.fileno(), select.EPOLLIN)
        self._sealing = Sealing(
            self._netlink, self._generation, loaded, self._mark, self._mtu, self._mode, self._poll
        )
        closing.callback(self._sealing.close)
        steer.attach(facts, loaded)
        self._ways = Ways(
            loaded, self._netlink, Tunnel.of(self._generation),
            Programs.of(self._mark, loaded.programs), self._mtu, facts.fwmark, self._mode,
            flow_ports=self._flow_ports > 1,
        )  # fmt: skip
        devices = attach.attached_devices(self._generation)
        self._ways.adopt(ifindex for netns, ifindex in devices if netns == facts.netns)
        self._health = Health(self._netlink, self._generation, loaded, self._sealing, self._ways)
        closing.callback(self._health.close)

    def _load(self, closing: contextlib.ExitStack, peers: int, replay_window: int) -> Object:
        self._mark = bpffs.mark()
        loaded = objects.load_tunnel(
            self._generation.pins, peers=objects.room(peers), xdp=self._mode != "tc",
            replay_window=replay_window,
        )  # fmt: skip
        closing.callback(loaded.close)
        self._loaded = loaded
        self._reasons = field_names(objects.TC_OBJECT, "drops")
        return loaded

    def _map(self, name: str) -> Map:
        return self._loaded.maps[name]

    def describe(self) -> dict[str, object]:
        devices = []
        for attachment in self._ways.attachments.values():
            seal, reason = self._sealing.seal, f"open: {attachment.reason}"
            if seal == "xdp" and not attachment.redirect:
                seal = "tc"
                reason += "; seal: the device takes no XDP_REDIRECT"
            elif seal == "tc":
                reason += f"; seal: {self._sealing.reason}"
            devices.append(
                {"name": attachment.device, "open": attachment.open, "seal": seal, "reason": reason}
                | {"spread": self._ways.spread[attachment.ifindex]}
            )
        return {"path": "kernel", "devices": devices, "pins": str(self._generation.pins)}

    def accept_only_messages(self, sock: socket.socket) -> None:
        """From now on a UDP socket of the daemon takes well-formed handshake messages, and data
        messages of live sessions (for `reinject`); the rest is counted in `drops`, as
        "socket_refused". See accept.h."""
        program = self._loaded.programs["accept_message"]
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, program.fd)

    def left(self) -> list[Left]:
        """What an earlier daemon left, to be asked for at the start. Whoever of it is in the
        configuration no more is to be removed."""
        older = {one.public_key: one for one in adoption.left(self._older)}
        here = [_joined(one, older.pop(one.public_key, None)) for one in self._left_here()]
        return [*here, *older.values()]

    def _left_here(self) -> list[Left]:
        sessions: dict[int, dict[int, Session]] = {}
        for state in self.sessions():
            sessions.setdefault(state.peer, {})[state.session.local_index] = state.session
        found = []
        for key, value in self._map("peers").items():
            peer = layout.Peer.from_buffer_copy(value)
            peer_number = layout.from_number(key)
            live = sessions.get(peer_number, {})
            current, following = live.pop(peer.current, None), live.pop(peer.next, None)
            found.append(
                Left(
                    bytes(peer.public_key), peer_number, current, following, [*live.values()],
                    self.endpoint(peer_number), bytes(peer.timestamp),
                )
            )  # fmt: skip
        return found

    def remove_older(self) -> None:
        """To be called REJECT_AFTER_TIME after the start: older versions' programs have nothing to
        do any more."""
        while self._older:
            leftovers.remove_generation(self._netlink, self._older.pop())

    def add_peer(self, peer: int, public_key: bytes) -> None:
        entry = layout.Peer(public_key=octets(public_key))
        self._map("peers").update(number(peer), bytes(entry))

    def remove_peer(self, peer: int) -> None:
        self.set_usable(peer, False)
        self.set_allowed_ips(peer, ())
        for local_index in self._sessions.of_peer(peer):
            self._sessions.retire(local_index)
        del self._networks[peer]
        self._ways.forget(peer)
        self._map("peers").delete(number(peer))

    def set_allowed_ips(self, peer: int, networks: Iterable[Network]) -> None:
        wanted, had = set(networks), self._networks.get(peer, set())
        for network in wanted - had:
            self._allowed_map(network).update(_trie_key(network), number(peer))
            if (owner := self._allowed.get(network)) is not None:
                self._networks[owner].discard(network)
            self._allowed[network] = peer
        for network in had - wanted:
            self._allowed_map(network).delete(_trie_key(network))
            del self._allowed[network]
        self._networks[peer] = wanted

    def _allowed_map(self, network: Network) -> Map:
        return self._map(f"allowed_ips{network.version}")

    def set_endpoint(self, peer: int, endpoint: Endpoint) -> None:
        self._ways.set_endpoint(peer, endpoint)

    def endpoint(self, peer: int) -> Endpoint | None:
        return self._ways.endpoint(peer)

    def install(self, peer: int, keypair: Keypair, *, confirmed: bool) -> None:
        self._sessions.install(peer, keypair, confirmed=confirmed)

    def retire(self, local_index: int) -> None:
        self._sessions.retire(local_index)

    def has(self, local_index: int) -> bool:
        """Whether it is a session here, and not retired."""
        return self._sessions.has(local_index)

    def set_usable(self, peer: int, usable: bool) -> None:
        to = layout.SetPeer(peer=peer, fields=layout.SET_USABLE, usable=usable)
        self._loaded.programs["set_peer"].syscall(to)

    def set_flow_ports(self, peer: int, count: int) -> None:
        to = layout.SetPeer(peer=peer, fields=layout.SET_FLOW_PORTS, flow_ports=count)
        self._loaded.programs["set_peer"].syscall(to)

    def set_timestamp(self, peer: int, timestamp: bytes) -> None:
        to = layout.SetPeer(peer=peer, fields=layout.SET_TIMESTAMP, timestamp=octets(timestamp))
        self._loaded.programs["set_peer"].syscall(to)

    def max_inner(self, peer: int) -> int:
        raw = self._map("peers").lookup(number(peer))
        return int(layout.Peer.from_buffer_copy(raw).max_inner) if raw else 0

    def send(self, peer: int, packets: Sequence[bytes]) -> None:
        for packet in packets:
            if not self._sealing.send(to_seal(self._mark, peer, packet)):
                self._send_failed += 1

    def reinject(self, message: bytes, source: Endpoint, tos: int) -> None:
        """A data message that came to the UDP socket (reassembled from fragments, say): opened
        as if it had come by the device `source.ifindex`. `tos` is the outer TOS byte."""
        port = self._generation.facts.port
        frame = reinjected(self._sealing.mac, message, source, port, tos)
        if not self._sealing.reinject(frame):
            self._send_failed += 1

    def traffic(self) -> dict[int, Traffic]:
        found = {}
        for key, value in self._map("peers").items():
            found[layout.from_number(key)] = traffic.of(value)
        return found

    def sessions(self) -> list[SessionState]:
        return self._sessions.states()

    def drops(self) -> dict[str, int]:
        """Also "daemon_send_failed": frames of `send` and `reinject` the kernel did not take; and
        "lost_in_segmenter": messages too long for their way, on their way to the daemon."""
        raw = memoryview(self._map("drops").lookup(number(0)) or b"").cast("Q")
        counters = {
            reason: sum(raw[i :: len(self._reasons)]) for i, reason in enumerate(self._reasons)
        }
        return counters | {
            "daemon_send_failed": self._send_failed,
            "lost_in_segmenter": self._sealing.lost(),
        }

    def events_fd(self) -> int:
        return self._poll.fileno()

    def events(self) -> list[Event]:
        events: list[Event] = []
        roamed: set[int] = set()
        for sample in self._events.consume():
            event = layout.Event.from_buffer_copy(sample)
            if event.type == layout.EVENT_CONFIRMED:
                events.append(Confirmed(event.peer, event.local_index))
            elif event.type == layout.EVENT_MESSAGES_USED:
                events.append(MessagesUsed(event.peer, event.local_index))
            elif event.type == layout.EVENT_ROAMED:
                roamed.add(event.peer)
                events.append(Roamed(event.peer))
        if roamed:
            self._ways.roamed(roamed)
        return [*events, *self._sealing.sent_up()]

    def network_changed(self) -> None:
        self._ways.network_changed()

    def release(self) -> list[Receiving]:
        """Moves nothing any more, from here on, but what is in the segmenter; as far as that can be
        had, the rest is logged. Returns the receiving halves of all live sessions."""
        # Who is killed from here on is followed by nobody who goes on with these sessions.
        with logged("a later daemon may go on with sessions that others go on with"):
            generation.abandon(self._generation)
        with logged("what is taken away may be put back"):
            self._health.close()
        with logged("packets may still be led into the kernel path"):
            steer.detach(self._generation.facts, self._loaded)
        self._ways.stop_opening()
        with logged("what was reinjected may still be opened by the kernel path"):
            self._sealing.stop_opening()
        # What was being opened is delivered.
        await_programs()
        return self._sessions.receiving()

    def unread(self) -> list[TooLong]:
        """After `release`: what still waits to be sent by the daemon."""
        return [message for batch in iter(self._sealing.sent_up, []) for message in batch]

    def discard(self) -> None:
        """As `remove`, but the TUN device stays, for another datapath. What fails is logged, and
        the rest is taken away all the same."""
        facts, label = self._generation.facts, self._generation.label
        for step in (
            self._sessions.retire_all,
            self._ways.detach,
            lambda: steer.detach(facts, self._loaded),
            lambda: segmenter.remove(self._netlink, label),
            # They would go on sealing for peers that make new sessions with another datapath now,
            # and forget those before.
            self.remove_older,
            self.close,
            self._remove_pins,
        ):
            with logged("what is left of the kernel path cannot be taken away"):
                step()

    def _remove_pins(self) -> None:
        netlink = Netlink()
        try:
            leftovers.remove_generation(netlink, self._generation)
        finally:
            netlink.close()

    def check(self) -> list[str]:
        """Looks whether all that packets need is in place, and puts back what is not; cheap, and
        without effect, while all is well. Returns what was found and done, one line for the
        operator each. DatapathError: it cannot be put back, so packets need another path."""
        return self._health.check()

    def close(self) -> None:
        self._closing.close()

    def remove(self) -> None:
        self._sessions.retire_all()
        # By what is pinned all is found that is to be taken away.
        with contextlib.suppress(DatapathError):
            self.check()
        self.close()
        netlink = Netlink()
        try:
            leftovers.remove(netlink, self._generation.name)
        finally:
            netlink.close()


def shape(mtu: int, attach_mode: AttachMode, replay_window: int) -> str:
    """What programs and maps of two starts must have alike to take each other's place."""
    size = "jumbo" if segmenter.is_jumbo(mtu) else "small"
    return f"{layout.LAYOUT}-{attach_mode}-{size}-{window.ring_bytes(replay_window)}"


def _joined(here: Left, older: Left | None) -> Left:
    """The daemon that began this generation may have died before it had a session in it."""
    if older is None or here.current is not None:
        return here
    return replace(
        here,
        endpoint=here.endpoint or older.endpoint,
        timestamp=max(here.timestamp, older.timestamp),
        renew=older.renew,
    )


def _number(found: Found) -> int:
    """Of the generation that is gone on with, or follows."""
    if found.current:
        return found.current.facts.number
    return max((one.facts.number for one in found.older), default=-1) + 1


def _trie_key(network: Network) -> bytes:
    address = octets(network.network_address.packed)
    if network.version == 4:
        return bytes(layout.AllowedIp4(network.prefixlen, address))
    return bytes(layout.AllowedIp6(network.prefixlen, address))
